//! Keys of stages that train on a data set.

use serde::{Deserialize, Serialize};

use super::{DataSources, LoraConfig, OptimizerConfig, PreferredBy};

/// `kind = "sft"`: fine-tunes the model on the assistant's turns of dialogues. Later stages start
/// from the result.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SftStage {
    /// Unique name.
    pub name: String,
    /// Dialogues to train on: sources as under `[data]`. A path without a name has rows of
    /// `messages`, or of `prompt` and `response` (or `answer`).
    pub train: DataSources,
    /// Dialogues that only measure.
    #[serde(default, skip_serializing_if = "DataSources::is_empty")]
    pub heldout: DataSources,
    /// Longest dialogue, tokens; a longer one is cut at its end. Absent:
    /// `engine.micro_batch_tokens`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_tokens: Option<u32>,
    /// Passes over the dialogues.
    pub epochs: u32,
    /// Dialogues in an optimiser step; the loss is the mean over all their targets.
    pub dialogues_per_step: usize,
    /// Steps between measurements of the held-out dialogues; 0: before the first step and after
    /// the last.
    #[serde(default)]
    pub eval_every_steps: u64,
    /// Layers, from the lowest, that stay as they are; the embedding then does too. 0: all train.
    #[serde(default)]
    pub frozen_layers: u32,
    /// AdamW and its schedule.
    pub optimizer: OptimizerConfig,
    /// Low-rank adapters; absent: the whole model is trained.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lora: Option<LoraConfig>,
    /// Held-out loss (nats a token) above which the stage fails.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_loss: Option<f64>,
}

/// `kind = "reward_model"`: trains a score head and its backbone on pairs.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RewardModelStage {
    /// Unique name; `stage:NAME` in a component names the model.
    pub name: String,
    /// The `label` stage that the pairs come from. Exactly one of `pairs` and `train` is given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pairs: Option<String>,
    /// Pairs to train on: sources as under `[data]`. A path without a name has rows of `prompt` or
    /// `messages`, `chosen` and `rejected` (or `better` and `worse`).
    #[serde(default, skip_serializing_if = "DataSources::is_empty")]
    pub train: DataSources,
    /// Pairs that only measure.
    #[serde(default, skip_serializing_if = "DataSources::is_empty")]
    pub heldout: DataSources,
    /// By which judgement of data sets that have two an answer is preferred: `better` (the more
    /// helpful one, the default) or `safer`.
    #[serde(default, skip_serializing_if = "PreferredBy::is_better")]
    pub preferred_by: PreferredBy,
    /// Longest prompt with its answer, tokens; a pair with a longer one is left out and counted.
    /// Absent: `engine.micro_batch_tokens` for the pair.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_tokens: Option<u32>,
    /// The score head.
    #[serde(default)]
    pub head: ScoreHeadConfig,
    /// Passes over the pairs.
    pub epochs: u32,
    /// Pairs in an optimiser step.
    pub pairs_per_step: usize,
    /// Steps between measurements of the held-out pairs; 0: before the first step and after the
    /// last.
    #[serde(default)]
    pub eval_every_steps: u64,
    /// Layers, from the lowest, that stay as they are; the embedding then does too. 0: all train.
    #[serde(default)]
    pub frozen_layers: u32,
    /// Whether the loss takes the scores of all tokens in which a pair's answers differ, and not
    /// those of their ends alone (safe-rlhf's token-wise loss). An answer that has ended stands
    /// with its last score.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub token_wise: bool,
    /// Coefficient of the squared scores in the loss.
    #[serde(default)]
    pub regularization: f64,
    /// AdamW and its schedule.
    pub optimizer: OptimizerConfig,
    /// Low-rank adapters; absent: the whole model is trained.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lora: Option<LoraConfig>,
    /// Held-out accuracy below which the stage fails.
    #[serde(default)]
    pub min_accuracy: f64,
}

/// `kind = "cost_model"`: trains a score head and its backbone on pairs to give the less safe
/// answer the higher cost, unsafe answers costs above 0 and safe ones below (safe-rlhf). Exactly
/// one of `pairs` and `train` says where the pairs come from.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CostModelStage {
    /// Unique name; `stage:NAME` in a component names the model.
    pub name: String,
    /// The `label` stage that the pairs come from; needs `sign_terms = false`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pairs: Option<String>,
    /// Pairs to train on: sources as under `[data]`. A path without a name has rows of `prompt` or
    /// `messages`, `chosen` and `rejected` (or `better` and `worse`);
    /// the chosen answer is the safer one, and with `sign_terms` `chosen_safe` and `rejected_safe`
    /// say which are safe.
    #[serde(default, skip_serializing_if = "DataSources::is_empty")]
    pub train: DataSources,
    /// Pairs that only measure.
    #[serde(default, skip_serializing_if = "DataSources::is_empty")]
    pub heldout: DataSources,
    /// Longest prompt with its answer, tokens; a pair with a longer one is left out and counted.
    /// Absent: `engine.micro_batch_tokens` for the pair.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_tokens: Option<u32>,
    /// The score head.
    #[serde(default)]
    pub head: ScoreHeadConfig,
    /// Whether the loss asks for the sign of every cost, and not for the ranking alone.
    #[serde(default = "yes")]
    pub sign_terms: bool,
    /// Whether the loss takes the scores of all tokens in which a pair's answers differ, and not
    /// those of their ends alone (safe-rlhf's token-wise loss). An answer that has ended stands
    /// with its last score.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub token_wise: bool,
    /// Coefficient of the squared costs in the loss.
    #[serde(default)]
    pub regularization: f64,
    /// Passes over the pairs.
    pub epochs: u32,
    /// Pairs in an optimiser step.
    pub pairs_per_step: usize,
    /// Steps between measurements of the held-out pairs; 0: before the first step and after the
    /// last.
    #[serde(default)]
    pub eval_every_steps: u64,
    /// Layers, from the lowest, that stay as they are; the embedding then does too. 0: all train.
    #[serde(default)]
    pub frozen_layers: u32,
    /// AdamW and its schedule.
    pub optimizer: OptimizerConfig,
    /// Low-rank adapters; absent: the whole model is trained.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lora: Option<LoraConfig>,
    /// Held-out accuracy below which the stage fails.
    #[serde(default)]
    pub min_accuracy: f64,
}

/// `kind = "dpo"`: trains the model on pairs of answers. Later stages start from the result.
/// Exactly one of `pairs` and `train` says where the pairs come from.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DpoStage {
    /// Unique name.
    pub name: String,
    /// The `label` stage that the pairs come from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pairs: Option<String>,
    /// Pairs to train on: sources as under `[data]`. A path without a name has rows of `prompt` or
    /// `messages`, `chosen` and `rejected` (or `better` and `worse`).
    #[serde(default, skip_serializing_if = "DataSources::is_empty")]
    pub train: DataSources,
    /// Pairs that only measure.
    #[serde(default, skip_serializing_if = "DataSources::is_empty")]
    pub heldout: DataSources,
    /// By which judgement of data sets that have two an answer is preferred: `better` (the more
    /// helpful one, the default) or `safer`.
    #[serde(default, skip_serializing_if = "PreferredBy::is_better")]
    pub preferred_by: PreferredBy,
    /// Longest prompt with its answer, tokens; a pair with a longer one is left out and counted.
    /// Absent: `engine.micro_batch_tokens` for the pair.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_tokens: Option<u32>,
    /// `dpo` or `ipo` (log-ratios to the model before the stage), `simpo` (mean log-probs, without
    /// a reference), or, of rows of two pairs (`pop`), `pop` (both pairs are learnt, and the
    /// preferred one's gap is to be the wider) or `pop_fixed` (the unpreferred pair's clamped gap
    /// is the preferred one's margin).
    #[serde(default)]
    pub loss: PreferenceLoss,
    /// Scale of the implicit reward. DPO's paper takes 0.1, SimPO's about 2.
    pub beta: f64,
    /// By how much the rewards of a pair are to differ; with `dpo` and `simpo` only (that of `ipo`
    /// is `1 / (2 beta)`).
    #[serde(default)]
    pub margin: f64,
    /// Whether every pair has a margin of its own, its row's `margin` or else `score_chosen -
    /// score_rejected` (HC-RLHF's adaptive margin); with `dpo` and `simpo` only, in place of
    /// `margin`.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub own_margins: bool,
    /// With `pop`: weight of the constraint that the preferred pair's gap is the wider. Default 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pop_lambda: Option<f64>,
    /// With `pop_fixed`: least gap of the unpreferred pair, before `beta`. Default 0.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub margin_min: Option<f64>,
    /// With `pop_fixed`: greatest gap of the unpreferred pair, before `beta`. Default 10.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub margin_max: Option<f64>,
    /// Assumed share of pairs that are labelled the wrong way round; with `dpo` only.
    #[serde(default)]
    pub label_smoothing: f64,
    /// Passes over the pairs.
    pub epochs: u32,
    /// Pairs in an optimiser step.
    pub pairs_per_step: usize,
    /// Steps between measurements of the held-out pairs; 0: before the first step and after the
    /// last.
    #[serde(default)]
    pub eval_every_steps: u64,
    /// Layers, from the lowest, that stay as they are; the embedding then does too. 0: all train.
    #[serde(default)]
    pub frozen_layers: u32,
    /// AdamW and its schedule.
    pub optimizer: OptimizerConfig,
    /// Low-rank adapters; absent: the whole model is trained.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lora: Option<LoraConfig>,
    /// Held-out accuracy below which the stage fails.
    #[serde(default)]
    pub min_accuracy: f64,
}

/// Loss of a `dpo` stage.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PreferenceLoss {
    /// Logistic in the log-ratios.
    #[default]
    Dpo,
    /// Squared distance of the log-ratios' gap to `1 / (2 beta)`.
    Ipo,
    /// Logistic in the mean log-probs.
    Simpo,
    /// Preference over preferences: two pairs a row (HC-RLHF).
    Pop,
    /// The same with the unpreferred pair's gap as a margin.
    PopFixed,
}

impl PreferenceLoss {
    /// The name on the wire.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Dpo => "dpo",
            Self::Ipo => "ipo",
            Self::Simpo => "simpo",
            Self::Pop => "pop",
            Self::PopFixed => "pop_fixed",
        }
    }

    /// Whether a row is two pairs, of which one is preferred.
    #[must_use]
    pub fn compares_pairs(self) -> bool {
        matches!(self, Self::Pop | Self::PopFixed)
    }

    /// Whether a pair may have a margin.
    #[must_use]
    pub fn takes_margin(self) -> bool {
        matches!(self, Self::Dpo | Self::Simpo)
    }
}

/// The head that turns a hidden state into a score.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ScoreHeadConfig {
    /// `linear` or `mlp`.
    pub kind: ScoreHeadKind,
    /// Widths of an `mlp`'s hidden layers.
    pub hidden_dims: Vec<u32>,
}

impl Default for ScoreHeadConfig {
    fn default() -> Self {
        Self { kind: ScoreHeadKind::Linear, hidden_dims: Vec::new() }
    }
}

/// Shape of a score head.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ScoreHeadKind {
    /// One matrix.
    Linear,
    /// Hidden layers with leaky ReLU, then one matrix (UPS-RM).
    Mlp,
}

impl ScoreHeadKind {
    /// The name on the wire.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Linear => "linear",
            Self::Mlp => "mlp",
        }
    }
}

fn yes() -> bool {
    true
}
