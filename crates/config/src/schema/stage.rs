//! Keys of stages.

use serde::{Deserialize, Serialize};

use super::{CostModelStage, DpoStage, RewardModelStage, SamplingConfig, SftStage};

/// One stage. Its `kind` says which keys it has.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Stage {
    /// Checks data, models and disk.
    Prepare(PrepareStage),
    /// Answers prompts with the untrained model.
    Sample(SampleStage),
    /// Makes preference pairs out of samples by a rule.
    Label(LabelStage),
    /// Fine-tunes the model on dialogues.
    Sft(SftStage),
    /// Trains a reward model on pairs.
    RewardModel(RewardModelStage),
    /// Trains a cost model on pairs.
    CostModel(CostModelStage),
    /// Trains the model on pairs of answers.
    Dpo(DpoStage),
    /// Trains the policy, answers to one prompt compared with one another.
    Grpo(GrpoStage),
    /// Trains the policy and a critic.
    Ppo(GrpoStage),
    /// Trains the policy and two critics under a constraint.
    PpoLag(GrpoStage),
    /// Writes the policy as a Hugging Face folder.
    Export(ExportStage),
    /// Measures held-out prompts before and after.
    Evaluate(EvaluateStage),
}

impl Stage {
    /// The stage's name: unique, used in `stage:NAME`.
    #[must_use]
    pub fn name(&self) -> &str {
        match self {
            Self::Prepare(s) => &s.name,
            Self::Sample(s) => &s.name,
            Self::Label(s) => &s.name,
            Self::Sft(s) => &s.name,
            Self::RewardModel(s) => &s.name,
            Self::CostModel(s) => &s.name,
            Self::Dpo(s) => &s.name,
            Self::Grpo(s) | Self::Ppo(s) | Self::PpoLag(s) => &s.name,
            Self::Export(s) => &s.name,
            Self::Evaluate(s) => &s.name,
        }
    }

    /// Whether it trains the policy by reinforcement.
    #[must_use]
    pub fn reinforces(&self) -> bool {
        matches!(self, Self::Grpo(_) | Self::Ppo(_) | Self::PpoLag(_))
    }

    /// The stage's kind as it stands in a recipe.
    #[must_use]
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Prepare(_) => "prepare",
            Self::Sample(_) => "sample",
            Self::Label(_) => "label",
            Self::Sft(_) => "sft",
            Self::RewardModel(_) => "reward_model",
            Self::CostModel(_) => "cost_model",
            Self::Dpo(_) => "dpo",
            Self::Grpo(_) => "grpo",
            Self::Ppo(_) => "ppo",
            Self::PpoLag(_) => "ppo_lag",
            Self::Export(_) => "export",
            Self::Evaluate(_) => "evaluate",
        }
    }
}

/// `kind = "prepare"`: checks data, models and disk before anything costs time.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PrepareStage {
    /// Unique name.
    pub name: String,
    /// Free space that the run folder must have, MiB.
    #[serde(default)]
    pub free_disk_mib: u64,
}

/// `kind = "sample"`: answers training prompts with the untrained model.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SampleStage {
    /// Unique name.
    pub name: String,
    /// Labels whose prompts are answered; empty: all.
    #[serde(default)]
    pub labels: Vec<String>,
    /// Most prompts, drawn by seed; 0: all.
    #[serde(default)]
    pub max_prompts: usize,
    /// Answers to each prompt.
    pub samples_per_prompt: u32,
    /// How tokens are drawn; absent: `[sampling]`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sampling: Option<SamplingConfig>,
}

/// `kind = "label"`: makes preference pairs out of samples by a rule that anyone can read, and
/// writes each pair with the rule's scores.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LabelStage {
    /// Unique name.
    pub name: String,
    /// The `sample` stage that the answers come from.
    pub samples: String,
    /// The rule; a higher score is better.
    pub rule: toml::Table,
    /// Least difference of scores within a pair.
    pub min_gap: f64,
    /// Most pairs from one prompt.
    pub pairs_per_prompt: usize,
    /// Share of prompts whose pairs are held out to measure accuracy, in [0, 1).
    pub heldout_share: f64,
}

/// `kind = "grpo"`, `"ppo"` or `"ppo_lag"`: trains the policy as `[algorithm]` says; with `ppo` beside
/// a critic (`[algorithm.critic]`), with `ppo_lag` beside two and under a constraint
/// (`[algorithm.lagrange]`).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GrpoStage {
    /// Unique name.
    pub name: String,
}

/// `kind = "export"`: writes the policy as a Hugging Face folder, `export/` in the run folder.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ExportStage {
    /// Unique name.
    pub name: String,
    /// Type of the stored weights: `fp32` or `bf16`.
    pub dtype: super::Dtype,
    /// Write the adapters alone too, as a PEFT folder `adapter/` in the run folder. Needs
    /// `[algorithm.lora]`; `export/` holds the merged model either way.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub adapter: bool,
    /// Write the policy's moving average in place of its last weights. Needs
    /// `[algorithm.optimizer.ema]`.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub average: bool,
}

/// `kind = "evaluate"`: answers held-out prompts with the untrained and the exported model and
/// compares them.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EvaluateStage {
    /// Unique name.
    pub name: String,
    /// Answers to each prompt.
    pub samples_per_prompt: u32,
    /// Most prompts of each label, the first of the file; 0: all.
    #[serde(default)]
    pub max_prompts_per_label: usize,
    /// How tokens are drawn; absent: `[sampling]`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sampling: Option<SamplingConfig>,
    /// Sample answers shown in the table and the report, for each label.
    #[serde(default = "shown")]
    pub shown_per_label: usize,
    /// What is measured.
    pub measure: Vec<Measure>,
}

/// One measure. Exactly one of `component`, `rule` and `reward` says what it is.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Measure {
    /// Unique name in the table and in `summary.json`.
    pub name: String,
    /// Label whose prompts are measured; absent: all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub label: Option<String>,
    /// A reward component.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub component: Option<String>,
    /// A rule.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rule: Option<toml::Table>,
    /// The mixed reward.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub reward: bool,
    /// Whether a lower figure is the better one, as for over-refusal.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub lower_is_better: bool,
}

fn shown() -> usize {
    2
}
