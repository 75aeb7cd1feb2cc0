//! Keys of the model, the worker groups and the engines.

use serde::{Deserialize, Serialize};

use super::is_default;

/// The language model that is trained.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ModelConfig {
    /// A Hugging Face folder (relative to the recipe's folder), or a hub id such as `org/name`.
    pub path: String,
    /// Type that the arithmetic runs in: `fp32` or `bf16`. Master weights are always fp32.
    pub dtype: Dtype,
}

/// A floating-point type.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Dtype {
    /// 32 bits.
    Fp32,
    /// 16 bits with the exponent of fp32.
    Bf16,
}

impl Dtype {
    /// The name on the wire.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Fp32 => "fp32",
            Self::Bf16 => "bf16",
        }
    }

    /// Bytes of one number.
    #[must_use]
    pub fn bytes(self) -> u64 {
        match self {
            Self::Fp32 => 4,
            Self::Bf16 => 2,
        }
    }
}

/// Worker groups by role. Co-located roles take turns on the same cores.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct GroupsConfig {
    /// Ranks that train, each with a shard of the weights.
    pub policy: GroupConfig,
    /// Ranks that train the critic of the reward.
    pub critic: GroupConfig,
    /// Ranks that train the critic of the cost.
    pub cost_critic: GroupConfig,
    /// Ranks that hold the frozen model of the KL leash; none with `[algorithm.lora]`, where the
    /// policy is its own reference.
    pub reference: GroupConfig,
    /// Processes that generate.
    pub rollout: GroupConfig,
    /// Processes that score.
    pub reward: GroupConfig,
    /// Ranks that train a reward model.
    pub reward_trainer: GroupConfig,
}

/// One worker group.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct GroupConfig {
    /// Number of processes.
    pub world_size: u32,
    /// Threads that each process computes with.
    pub threads: u32,
    /// CPUs that placement sets aside for each process; below 1 lets roles share a core.
    pub cpus: f64,
    /// GPUs for each process; a fraction shares one. 0 is the CPU.
    pub gpus: f64,
    /// How the processes are laid over nodes: `pack`, `spread`, `strict_pack`, `strict_spread`.
    pub strategy: Strategy,
    /// Restarts that are allowed before the job fails.
    pub max_restarts: u32,
    /// Wait before the first restart; it doubles with each one.
    pub backoff_secs: f64,
}

impl Default for GroupConfig {
    fn default() -> Self {
        Self {
            world_size: 1,
            threads: 1,
            cpus: 0.25,
            gpus: 0.0,
            strategy: Strategy::Pack,
            max_restarts: 3,
            backoff_secs: 0.5,
        }
    }
}

/// How processes are laid over nodes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Strategy {
    /// As few nodes as possible.
    Pack,
    /// As many nodes as possible.
    Spread,
    /// One node, or fail.
    StrictPack,
    /// A node each, or fail.
    StrictSpread,
}

/// How the training engine cuts its work.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct EngineConfig {
    /// Upper bound of tokens in a packed micro-batch.
    pub micro_batch_tokens: u32,
    /// Type that gradients are summed over ranks in: `fp32` or `bf16`.
    pub reduce_dtype: Dtype,
    /// Recompute a block's forward pass in the backward pass (less memory, more arithmetic).
    pub recompute: bool,
    /// Free a block's gathered weights after its forward pass (less memory, more communication).
    pub reshard_after_forward: bool,
    /// What lives in host memory instead of the GPU's.
    #[serde(skip_serializing_if = "is_default")]
    pub offload: OffloadConfig,
}

/// What lives in (pinned) host memory instead of the GPU's, as DeepSpeed and FSDP offload. For
/// groups with GPUs only.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct OffloadConfig {
    /// The fp32 master weights, the optimiser's state and the moving average; the optimiser's step
    /// runs on the host.
    pub optimizer: bool,
    /// Each rank's weights in compute type, those of frozen models included: a block's are copied
    /// to the GPU when it is gathered. Needs `optimizer`.
    pub parameters: bool,
}

impl Default for EngineConfig {
    fn default() -> Self {
        Self {
            micro_batch_tokens: 2048,
            reduce_dtype: Dtype::Fp32,
            recompute: true,
            reshard_after_forward: true,
            offload: OffloadConfig::default(),
        }
    }
}

/// Limits of the generation engine.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RolloutConfig {
    /// Sequences that are decoded together.
    pub max_sequences: u32,
    /// Memory for keys and values, MiB.
    pub kv_cache_mib: u64,
    /// Longest prompt, tokens; a longer one is an error.
    pub max_prompt_tokens: u32,
    /// Prompt tokens that are computed in one step beside the sequences that are writing: these
    /// wait no longer for a long prompt.
    pub prefill_tokens: u32,
    /// Each sample is the same to the bit in whatever batch and on however many workers, and the
    /// trainer computes the very log-probs that were recorded. Slower: batches are filled up,
    /// responses scored once more, and the trainer takes one sample a pass. On CPUs only.
    pub deterministic: bool,
}

impl Default for RolloutConfig {
    fn default() -> Self {
        Self {
            max_sequences: 64,
            kv_cache_mib: 1024,
            max_prompt_tokens: 512,
            prefill_tokens: 2048,
            deterministic: false,
        }
    }
}

/// How tokens are drawn.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SamplingConfig {
    /// Longest answer, tokens.
    pub max_new_tokens: u32,
    /// Tokens before which neither an end-of-sequence token nor a stop string ends an answer.
    #[serde(default, skip_serializing_if = "is_default")]
    pub min_new_tokens: u32,
    /// 0 is greedy; training needs more than 0.
    #[serde(default = "one")]
    pub temperature: f64,
    /// Nucleus mass in (0, 1]; 1 is off.
    #[serde(default = "one")]
    pub top_p: f64,
    /// Number of most probable tokens kept; absent is off.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub top_k: Option<u32>,
    /// Tokens below this share of the best token's probability are cut, in [0, 1]; 0 is off.
    #[serde(default, skip_serializing_if = "is_default")]
    pub min_p: f64,
    /// Logits of tokens in prompt and answer so far are divided by this when positive, multiplied
    /// when negative; 1 is off.
    #[serde(default = "one", skip_serializing_if = "is_one")]
    pub repetition_penalty: f64,
    /// Added to the logits of single tokens: `[{ token = 7, bias = -2.5 }]`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub logit_bias: Vec<TokenBiasConfig>,
    /// The only token ids that may be drawn; absent allows all.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub allowed_tokens: Vec<u32>,
    /// Most probable tokens recorded with each token of a sample, with their log-probs; up to 64.
    #[serde(default, skip_serializing_if = "is_default")]
    pub top_logps: u32,
    /// Strings that end an answer and are cut off it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub stop: Vec<String>,
}

impl Default for SamplingConfig {
    /// Of a recipe that generates nothing: no tokens.
    fn default() -> Self {
        Self {
            max_new_tokens: 0,
            min_new_tokens: 0,
            temperature: one(),
            top_p: one(),
            top_k: None,
            min_p: 0.0,
            repetition_penalty: one(),
            logit_bias: Vec::new(),
            allowed_tokens: Vec::new(),
            top_logps: 0,
            stop: Vec::new(),
        }
    }
}

impl SamplingConfig {
    /// The same for the engine; not yet validated.
    #[must_use]
    pub fn params(&self) -> plumb_domain::SamplingParams {
        plumb_domain::SamplingParams {
            max_new_tokens: self.max_new_tokens,
            min_new_tokens: self.min_new_tokens,
            temperature: self.temperature,
            top_p: self.top_p,
            top_k: self.top_k,
            min_p: self.min_p,
            repetition_penalty: self.repetition_penalty,
            logit_bias: self.logit_bias.iter().map(|b| (b.token, b.bias)).collect(),
            allowed_tokens: self.allowed_tokens.iter().copied().collect(),
            top_logps: self.top_logps,
            stop: self.stop.clone(),
            ignore_eos: false,
        }
    }
}

/// What is added to one token's logit.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TokenBiasConfig {
    /// The token's id.
    pub token: u32,
    /// Added to its logit.
    pub bias: f64,
}

#[allow(clippy::trivially_copy_pass_by_ref, reason = "serde passes a reference")]
fn is_one(value: &f64) -> bool {
    *value == 1.0
}

fn one() -> f64 {
    1.0
}

/// How long to wait for what.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct TimeoutConfig {
    /// A collective in which a peer does not appear.
    pub collective_secs: f64,
    /// A worker process that does not register.
    pub start_secs: f64,
    /// One phase of a step (a call to a worker).
    pub phase_secs: f64,
}

impl Default for TimeoutConfig {
    fn default() -> Self {
        Self { collective_secs: 60.0, start_secs: 60.0, phase_secs: 900.0 }
    }
}
