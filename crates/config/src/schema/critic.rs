//! Keys of algorithms with critics: PPO and PPO-Lag.

use serde::{Deserialize, Serialize};

use super::{DataSources, OptimizerConfig};

/// Generalised advantage estimation, for `advantage = "gae"`. The discount is `algorithm.gamma`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct GaeConfig {
    /// Trade of bias for variance, in [0, 1].
    pub lambda: f64,
    /// A token's reward, its KL included where `kl.place` is `reward`, is clamped to plus or minus
    /// this; 0 is off. safe-rlhf's `clip_range_score` is 50.
    pub reward_clip: f64,
    /// Whiten the advantages over the tokens of the step, as verl and LightRFT do and safe-rlhf does
    /// not.
    pub whiten: bool,
}

impl Default for GaeConfig {
    fn default() -> Self {
        Self { lambda: 0.95, reward_clip: 0.0, whiten: false }
    }
}

/// A critic: a model with a linear score head that tells the value before every token of an answer.
/// It has a worker group of its own (`groups.critic`, `groups.cost_critic`) and is committed with
/// the policy.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CriticConfig {
    /// What it starts from: a folder, or `stage:NAME`, what a `reward_model` or
    /// `cost_model` stage trained; with the policy's tokenizer. Absent: the policy's model with a
    /// fresh head.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub model: Option<String>,
    /// How far a value may move in a step before its loss is clipped; 0 is off. verl takes 0.5,
    /// LightRFT 0.2, safe-rlhf 5.
    #[serde(default = "value_clip")]
    pub value_clip: f64,
    /// `token-mean`, `seq-mean-token-sum` or `seq-mean-token-mean`.
    #[serde(default = "token_mean")]
    pub aggregation: String,
    /// Optimiser steps that a step's samples are cut into; absent: `algorithm.mini_batches`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mini_batches: Option<u32>,
    /// Passes over a step's samples; absent: `algorithm.epochs`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub epochs: Option<u32>,
    /// Layers, from the lowest, that stay as they are; the embedding then does too. 0: all train.
    #[serde(default)]
    pub frozen_layers: u32,
    /// Steps at the beginning in which only critics learn (LightRFT's `freezing_actor_steps`). In
    /// `[algorithm.critic]` only.
    #[serde(default)]
    pub warmup_steps: u64,
    /// AdamW and its schedule.
    pub optimizer: OptimizerConfig,
}

/// A constraint on the cost of answers, for a `ppo_lag` stage: the mean cost of recent answers is to
/// be at most `threshold`. A multiplier weighs the cost against the reward; the policy's advantage
/// is `(A_reward - lambda A_cost) / (1 + lambda)`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LagrangeConfig {
    /// The component that tells the cost of an answer of any label; above `threshold` is bad. For a
    /// model of a `cost_model` stage give it `transform = "identity"`.
    pub cost: String,
    /// What the mean cost must not exceed.
    #[serde(default)]
    pub threshold: f64,
    /// The multiplier at the start, above 0.
    #[serde(default = "unit")]
    pub initial: f64,
    /// Step size of `log lambda += learning_rate (mean cost - threshold) lambda`.
    #[serde(default = "multiplier_rate")]
    pub learning_rate: f64,
    /// Largest multiplier; absent: none. safe-rlhf's script takes 5.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max: Option<f64>,
    /// Answers whose costs the mean is of, the latest ones.
    #[serde(default = "window")]
    pub window: usize,
    /// Steps before the multiplier moves.
    #[serde(default)]
    pub delay_steps: u64,
}

/// A language-modelling loss beside reinforcement learning (PTX): after each step of the policy one
/// optimiser step on dialogues, so that it does not forget them.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PtxConfig {
    /// Dialogues, as in a `sft` stage: sources as under `[data]`.
    pub train: DataSources,
    /// The loss is multiplied by this. safe-rlhf's scripts take 16, LightRFT 0.05.
    pub coef: f64,
    /// Dialogues in a step.
    pub dialogues_per_step: usize,
    /// Longest dialogue, tokens; a longer one is cut at its end. Absent:
    /// `engine.micro_batch_tokens`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_tokens: Option<u32>,
}

fn value_clip() -> f64 {
    0.5
}
fn token_mean() -> String {
    "token-mean".to_owned()
}
fn unit() -> f64 {
    1.0
}
fn multiplier_rate() -> f64 {
    0.1
}
fn window() -> usize {
    128
}
