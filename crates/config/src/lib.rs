//! The recipe: one TOML file that says what a run is.
//!
//! - [`schema`] holds the keys, typed and documented; `docs/recipe.md` is made from those comments.
//! - [`Recipe::from_toml`] reads a file and `--set` overrides; an unknown key is an error that
//!   names the key and the nearest valid one.
//! - [`Recipe::validate`] finds values that contradict one another and says how to mend them.
//! - [`derive`] works out what follows from the values (`plumb explain`); [`memory`] what the
//!   processes will hold.

pub mod derive;
pub mod document;
mod error;
pub mod memory;
mod parse;
pub mod schema;
mod validate;

pub use error::{ConfigError, Contradiction};
pub use parse::Override;
pub use plumb_domain::KlKind;
pub use schema::{
    Advantage, AlgorithmConfig, Best, CheckpointConfig, Component, ComponentKind, CostModelStage,
    CpgdWeight, CriticConfig, DataConfig, DataSources, DpoStage, Dtype, EmaConfig, EngineConfig,
    EvaluateStage, ExportStage, GaeConfig, GroupConfig, GroupsConfig, GrpoStage, ImportanceConfig,
    ImportanceKind, KlConfig, KlPlace, LabelStage, LagrangeConfig, LoraConfig, LoraTarget,
    LossConfig, LossKind, Measure, ModelConfig, MomentState, OffloadConfig, OldLogps, OnBadRow,
    OptimizerConfig, ParameterGroupConfig, PreferenceLoss, PreferredBy, PrepareStage, PtxConfig,
    Recipe, RewardConfig, RewardModelStage, RolloutConfig, SampleStage, SamplingConfig, Schedule,
    ScoreHeadConfig, ScoreHeadKind, ScoreInput, SftStage, Stage, Strategy, TimeoutConfig,
    Transform,
};

#[cfg(test)]
mod recipes {
    use std::path::Path;

    use crate::Recipe;

    #[test]
    fn the_recipes_of_the_repository_stand() {
        for name in [
            "quickstart.toml",
            "tiny/tiny.toml",
            "tiny/sft.toml",
            "tiny/score_models.toml",
            "tiny/dpo.toml",
            "tiny/lora.toml",
            "tiny/ppo.toml",
            "tiny/ppo_lag.toml",
        ] {
            let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../recipes").join(name);
            Recipe::read(&path, &[]).unwrap_or_else(|error| panic!("{error}"));
        }
    }
}
