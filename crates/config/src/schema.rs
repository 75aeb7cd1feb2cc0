//! The keys of a recipe. The comments of this module's structs are the text of `docs/recipe.md`.

mod advantage;
mod algorithm;
mod critic;
mod data;
mod lora;
mod loss;
mod model;
mod optimizer;
mod reward;
mod stage;
mod training;

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

pub use advantage::{Advantage, CpgdWeight};
pub use algorithm::{AlgorithmConfig, KlConfig, KlPlace, OldLogps};
pub use critic::{CriticConfig, GaeConfig, LagrangeConfig, PtxConfig};
pub use data::{DataConfig, DataSources, OnBadRow, PreferredBy};
pub use lora::{LoraConfig, LoraTarget};
pub use loss::{ImportanceConfig, ImportanceKind, LossConfig, LossKind};
pub use model::{
    Dtype, EngineConfig, GroupConfig, GroupsConfig, ModelConfig, OffloadConfig, RolloutConfig,
    SamplingConfig, Strategy, TimeoutConfig,
};
pub use optimizer::{EmaConfig, MomentState, OptimizerConfig, ParameterGroupConfig, Schedule};
pub use reward::{Component, ComponentKind, RewardConfig, ScoreInput, Transform};
pub use stage::{
    EvaluateStage, ExportStage, GrpoStage, LabelStage, Measure, PrepareStage, SampleStage, Stage,
};
pub use training::{
    CostModelStage, DpoStage, PreferenceLoss, RewardModelStage, ScoreHeadConfig, ScoreHeadKind,
    SftStage,
};

/// A recipe: the whole of a run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Recipe {
    /// Name of the run; it stands in the job id and the report.
    pub name: String,
    /// Seed of data order, sampling, fresh heads and reported intervals. `--set seed=7` overrides it.
    pub seed: u64,
    /// The language model that is trained.
    pub model: ModelConfig,
    /// Prompts to train on and to evaluate with, for stages that generate.
    #[serde(default, skip_serializing_if = "is_default")]
    pub data: DataConfig,
    /// Worker groups: how many processes each role has.
    #[serde(default)]
    pub groups: GroupsConfig,
    /// How the training engine cuts its work.
    #[serde(default)]
    pub engine: EngineConfig,
    /// Limits of the generation engine.
    #[serde(default)]
    pub rollout: RolloutConfig,
    /// How tokens are drawn during training, for stages that generate.
    #[serde(default, skip_serializing_if = "is_default")]
    pub sampling: SamplingConfig,
    /// The reinforcement learning algorithm, for a `grpo`, `ppo` or `ppo_lag` stage.
    #[serde(default, skip_serializing_if = "is_default")]
    pub algorithm: AlgorithmConfig,
    /// Rules with names: `rule = "NAME"` stands for `[rules.NAME]` wherever a rule may stand.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub rules: BTreeMap<String, toml::Table>,
    /// What an answer is worth, for `grpo`, `ppo`, `ppo_lag` and `evaluate` stages.
    #[serde(default, skip_serializing_if = "is_default")]
    pub reward: RewardConfig,
    /// Commits to disk.
    #[serde(default)]
    pub checkpoint: CheckpointConfig,
    /// How long to wait for what.
    #[serde(default)]
    pub timeouts: TimeoutConfig,
    /// What runs, in order.
    pub stage: Vec<Stage>,
}

/// When a stage that trains is committed to disk, in `checkpoint/STAGE` of the run folder. A lost
/// rank takes the stage back to its last commit, and `plumb train --resume` goes on from there.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct CheckpointConfig {
    /// Steps between commits; a stage's last step is always committed.
    pub every_steps: u64,
    /// Newest commits of a stage that are kept. With 1 there is none to fall back to when the
    /// disk has damaged it.
    pub keep: usize,
    /// The commit with the best value of this figure of `metrics.jsonl` is kept besides, for
    /// example `heldout_loss`; a held-out figure is then measured at every commit. Needs `best`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub keep_best: Option<String>,
    /// Which value of `keep_best` is the best: `lowest` or `highest`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub best: Option<Best>,
}

/// Which value of a figure is the best.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Best {
    /// As of a loss.
    Lowest,
    /// As of an accuracy.
    Highest,
}

impl Default for CheckpointConfig {
    fn default() -> Self {
        Self { every_steps: 20, keep: 2, keep_best: None, best: None }
    }
}

impl Recipe {
    /// Whether a stage answers prompts: then `[data]` and `[sampling]` are needed.
    #[must_use]
    pub fn generates(&self) -> bool {
        let generates =
            |s: &Stage| s.reinforces() || matches!(s, Stage::Sample(_) | Stage::Evaluate(_));
        self.stage.iter().any(generates)
    }

    /// Whether a stage asks what answers are worth: then `[reward]` is needed.
    #[must_use]
    pub fn rewards(&self) -> bool {
        self.stage.iter().any(|s| s.reinforces() || matches!(s, Stage::Evaluate(_)))
    }

    /// Whether a stage trains by reinforcement: then `[algorithm]` is needed.
    #[must_use]
    pub fn reinforces(&self) -> bool {
        self.stage.iter().any(Stage::reinforces)
    }
}

fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}
