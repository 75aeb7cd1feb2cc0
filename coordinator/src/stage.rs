//! The stages of a recipe, one file each. A stage reads what earlier stages left in [`Outputs`],
//! leaves its own, and returns its figures.

mod course;
mod dpo;
mod draw;
pub mod evaluate;
mod export;
mod grpo;
mod journal;
pub mod label;
mod meter;
mod model_source;
pub mod prepare;
pub mod record;
mod rows;
mod sample;
mod sample_log;
mod score_model;
mod sft;
mod skipped;
pub mod training_data;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use plumb_config::{LoraConfig, Recipe, Stage};
use plumb_domain::Prompt;

use crate::fleet::commits::Commits;
use crate::fleet::policy::PolicyFleet;
use crate::fleet::rewards::RewardFleet;
use crate::fleet::trainer::Trainer;
use crate::fleet::{Fleet, RoleGroup};
use crate::job::error::JobError;
use crate::job::events::EventLog;
use crate::job::folder::RunFolder;
use crate::job::log::RunLog;
use crate::job::summary::{AnswerPair, KlSummary, MeasureResult};
use crate::ports::PlainSample;

/// Figures by name.
pub type Figures = BTreeMap<String, f64>;

/// What every stage may use.
pub struct StageContext {
    /// The recipe.
    pub recipe: Arc<Recipe>,
    /// Relative paths of the recipe are taken from here.
    pub base_dir: PathBuf,
    /// The run folder.
    pub folder: RunFolder,
    /// Where events go.
    pub events: Arc<EventLog>,
    /// Where figures go.
    pub log: RunLog,
    /// The worker groups.
    pub fleet: Fleet,
}

impl StageContext {
    /// The commits of a stage: what its groups have trained, below `checkpoint/STAGE`.
    fn commits(&self, stage: &str, groups: Vec<Arc<RoleGroup>>) -> Commits {
        let root = self.folder.checkpoints(stage);
        Commits::new(stage, root, &self.recipe.checkpoint, groups, self.events.clone())
    }
}

/// What stages leave for later ones.
#[derive(Default)]
pub struct Outputs {
    /// Folder of the model that is trained.
    pub model: PathBuf,
    /// Training prompts.
    pub train: Vec<Prompt>,
    /// Held-out prompts.
    pub heldout: Vec<Prompt>,
    /// Rows of their data that were left out.
    pub skipped_rows: u64,
    /// Stage -> samples of the untrained model.
    pub samples: BTreeMap<String, Vec<PlainSample>>,
    /// Stage -> preference pairs.
    pub pairs: BTreeMap<String, label::Pairs>,
    /// The trained policy, as long as its group lives.
    pub policy: Option<Arc<PolicyFleet>>,
    /// The reward group with its components loaded.
    pub rewards: Option<Arc<RewardFleet>>,
    /// The leash.
    pub kl: KlSummary,
    /// Held-out measures.
    pub measures: Vec<MeasureResult>,
    /// A few answers before and after.
    pub answers: Vec<AnswerPair>,
    /// What lies where.
    pub artefacts: BTreeMap<String, String>,
}

impl Outputs {
    /// Later stages start from the model that this stage has left.
    fn trained(&mut self, context: &StageContext, stage: &str) {
        self.model = context.folder.model(stage);
        self.artefacts.insert(stage.to_owned(), format!("models/{stage}"));
    }
}

/// Writes a stage's model to `models/STAGE`, and adapters to `adapters/STAGE`, too; returns the
/// model's `bytes`.
async fn export_model(
    context: &StageContext,
    trainer: &Trainer,
    stage: &str,
    lora: Option<&LoraConfig>,
) -> Result<Figures, JobError> {
    let dtype = context.recipe.model.dtype.as_str();
    let place = |folder: PathBuf| match folder.parent().map(std::fs::create_dir_all) {
        Some(Err(source)) => Err(JobError::Io { what: "made", path: folder, source }),
        _ => Ok(folder),
    };
    let folder = place(context.folder.model(stage))?;
    let bytes = trainer.export(&folder, dtype).await?;
    if lora.is_some() {
        let folder = place(context.folder.path("adapters").join(stage))?;
        trainer.export_adapter(&folder, dtype).await?;
    }
    Ok([("bytes".to_owned(), bytes as f64)].into())
}

/// Runs one stage.
///
/// # Errors
/// What the stage ran into.
pub async fn run(
    stage: &Stage,
    context: &StageContext,
    outputs: &mut Outputs,
) -> Result<Figures, JobError> {
    match stage {
        Stage::Prepare(stage) => prepare::run(stage, context, outputs).await,
        Stage::Sample(stage) => sample::run(stage, context, outputs).await,
        Stage::Label(stage) => label::run(stage, context, outputs),
        Stage::Sft(stage) => sft::run(stage, context, outputs).await,
        Stage::RewardModel(stage) => score_model::run_reward(stage, context, outputs).await,
        Stage::CostModel(stage) => score_model::run_cost(stage, context, outputs).await,
        Stage::Dpo(stage) => dpo::run(stage, context, outputs).await,
        Stage::Grpo(stage) | Stage::Ppo(stage) | Stage::PpoLag(stage) => {
            grpo::run(stage, context, outputs).await
        }
        Stage::Export(stage) => export::run(stage, context, outputs).await,
        Stage::Evaluate(stage) => evaluate::run(stage, context, outputs).await,
    }
}

/// Whether a finished stage must be entered again because a later one needs what lived in its
/// workers: the policy that an `export` stage writes. It then finds no step left to run.
///
/// # Errors
/// A stage's record cannot be read.
pub fn is_needed_again(context: &StageContext, index: usize) -> Result<bool, JobError> {
    let stages = &context.recipe.stage;
    if !stages.get(index).is_some_and(Stage::reinforces) {
        return Ok(false);
    }
    let export = stages.iter().skip(index).find(|stage| matches!(stage, Stage::Export(_)));
    match export {
        Some(export) => Ok(record::StageRecord::read(&context.folder, export)?.is_none()),
        None => Ok(false),
    }
}

/// Steps of a stage, for the progress view; 0 where they are not known beforehand.
#[must_use]
pub fn steps(stage: &Stage, recipe: &Recipe) -> u64 {
    if stage.reinforces() { recipe.algorithm.steps } else { 0 }
}
