//! One job from its first stage to its last file.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use plumb_config::memory::stage_memory;
use plumb_config::{Recipe, Stage};
use plumb_domain::JobId;
use tokio_util::sync::CancellationToken;

use super::error::{JobError, chain};
use super::events::EventLog;
use super::folder::{RunFolder, write_whole};
use super::footprint::Footprint;
use super::log::RunLog;
use super::summary::Summary;
use crate::cluster::Cluster;
use crate::fleet::Fleet;
use crate::ports::PhaseError;
use crate::report::Report;
use crate::stage::record::StageRecord;
use crate::stage::{self, Outputs, StageContext};

/// How long the job's workers may take to go before half-written files are swept.
const WORKERS_GONE: Duration = Duration::from_secs(6);

/// An admitted job.
pub struct Job {
    /// Its id.
    pub id: JobId,
    /// Before every group's name; empty for a cluster's first job.
    pub prefix: String,
    /// The recipe.
    pub recipe: Recipe,
    /// Folder of the recipe's relative paths.
    pub base_dir: PathBuf,
    /// Where results go.
    pub folder: RunFolder,
    /// Where events go.
    pub events: Arc<EventLog>,
    /// Ends the job early.
    pub cancel: CancellationToken,
    /// Go on with what is in the folder, which this recipe has left there.
    pub resume: bool,
}

/// Runs a job and tells its end as its last event.
pub async fn run(job: Job, cluster: Cluster) {
    let events = job.events.clone();
    let id = job.id.clone();
    let notices = tokio::spawn(forward_notices(cluster.clone(), events.clone()));
    let result = run_stages(job, cluster).await;
    notices.abort();
    match result {
        Ok(summary_path) => {
            events.job_finished("succeeded", "", &summary_path.display().to_string());
        }
        Err(error) if error.is_cancelled() => {
            tracing::info!(job = %id, "job cancelled");
            events.job_finished("cancelled", &error.to_string(), "");
        }
        Err(error) => {
            let text = chain(&error);
            tracing::error!(job = %id, error = %text, "job failed");
            events.job_finished("failed", &text, "");
        }
    }
}

/// Losses and restarts become notices of the job.
async fn forward_notices(cluster: Cluster, events: Arc<EventLog>) {
    let mut notices = cluster.events();
    while let Ok(notice) = notices.recv().await {
        if notice.level() != "info" {
            events.notice(notice.level(), notice.to_string());
        }
    }
}

async fn run_stages(job: Job, cluster: Cluster) -> Result<PathBuf, JobError> {
    match job.resume {
        true => job.folder.sweep(),
        false => job.folder.clear()?,
    }
    let recipe_text = job.recipe.to_toml()?;
    write_whole(&job.folder.path("recipe.toml"), recipe_text.as_bytes())?;
    let recipe = Arc::new(job.recipe);
    let log = RunLog::open(job.folder.path("metrics.jsonl"))?;
    let logs = job.folder.path("logs");
    let fleet = Fleet::new(cluster, job.id, job.prefix, recipe.clone(), logs, job.cancel.clone());
    let context = StageContext {
        recipe,
        base_dir: job.base_dir,
        folder: job.folder,
        events: job.events,
        log,
        fleet,
    };
    let done = tokio::select! {
        done = all_stages(&context, &recipe_text) => done,
        () = job.cancel.cancelled() => Err(PhaseError::Cancelled.into()),
    };
    context.fleet.release_all().await;
    if done.is_err() {
        workers_gone(&context).await;
        context.folder.sweep();
    }
    done
}

async fn all_stages(context: &StageContext, recipe_text: &str) -> Result<PathBuf, JobError> {
    let recipe = &context.recipe;
    let mut outputs = stage::prepare::inputs(context).await?;
    let mut summary = Summary {
        name: recipe.name.clone(),
        seed: recipe.seed,
        model: recipe.model.path.clone(),
        versions: [("plumbline".to_owned(), env!("CARGO_PKG_VERSION").to_owned())].into(),
        recipe_digest: blake3::hash(recipe_text.as_bytes()).to_hex().to_string(),
        ..Summary::default()
    };
    let stages = recipe.stage.len();
    for (index, stage) in recipe.stage.iter().enumerate() {
        let (name, steps) = (stage.name(), stage::steps(stage, recipe));
        let before = StageRecord::read(&context.folder, stage)?;
        context.events.stage_started(name, stage.kind(), index, stages, steps);
        let record = match before {
            Some(record) if !stage::is_needed_again(context, index)? => {
                record.restore(name, &context.folder, &mut outputs)?;
                context.log.set_restarts(record.restarts);
                context.events.notice("info", format!("stage {name} was finished before"));
                record
            }
            before => {
                let taken = before.map_or(0.0, |record| record.seconds);
                one_stage(context, stage, &mut outputs, taken).await?
            }
        };
        context.events.stage_finished(name, record.seconds, &record.figures);
        summary.stage_seconds.insert(name.to_owned(), record.seconds);
        summary.memory.extend(record.memory);
        summary.stages.insert(name.to_owned(), record.figures);
    }
    finish(context, summary, outputs, recipe_text)
}

/// Runs a stage that took `taken` seconds before, and notes that it is finished.
async fn one_stage(
    context: &StageContext,
    stage: &Stage,
    outputs: &mut Outputs,
    taken: f64,
) -> Result<StageRecord, JobError> {
    let name = stage.name();
    tracing::info!(stage = name, kind = stage.kind(), "stage begins");
    let start = Instant::now();
    let figures = stage::run(stage, context, outputs).await?;
    let seconds = start.elapsed().as_secs_f64();
    context.log.span(stage.kind(), &format!("stage {name}"), seconds, true);
    let memory = footprints(context, stage).await;
    let mut logged = figures.clone();
    logged.extend(memory.iter().flat_map(Footprint::figures));
    context.log.stage(name, &logged)?;
    let mut record = StageRecord::of(stage, &context.folder, outputs, figures);
    record.seconds = taken + seconds;
    record.restarts = context.log.restarts();
    record.memory = memory;
    record.write(&context.folder, name)?;
    Ok(record)
}

/// What the stage's roles have held beside what was predicted; a prediction that was far too low is
/// told.
async fn footprints(context: &StageContext, stage: &Stage) -> Vec<Footprint> {
    let measured = context.fleet.take_peak_bytes().await;
    let shapes = match crate::memory::model_shapes(&context.recipe, &context.base_dir) {
        Ok(Some(shapes)) => shapes,
        // A model from the hub lies elsewhere; then nothing was predicted.
        Ok(None) => return Vec::new(),
        Err(error) => {
            tracing::warn!(error = %chain(&error), "memory cannot be predicted");
            return Vec::new();
        }
    };
    let predicted = stage_memory(&context.recipe, stage, &shapes);
    let found = Footprint::of_stage(stage.name(), &predicted, &measured);
    for text in found.iter().filter_map(Footprint::warning) {
        tracing::warn!(stage = stage.name(), "{text}");
        context.events.notice("warn", text);
    }
    found
}

/// Writes `report.html`, then `summary.json`: who finds the summary finds all of the run.
fn finish(
    context: &StageContext,
    mut summary: Summary,
    outputs: Outputs,
    recipe_text: &str,
) -> Result<PathBuf, JobError> {
    summary.outcome = "succeeded".to_owned();
    summary.measures = outputs.measures;
    summary.kl = outputs.kl;
    summary.answers = outputs.answers;
    summary.seconds = context.log.seconds();
    summary.restarts = context.log.restarts();
    summary.artefacts = outputs.artefacts;
    let files: BTreeMap<&str, &str> = [
        ("metrics", "metrics.jsonl"),
        ("samples", "samples"),
        ("report", "report.html"),
        ("logs", "logs"),
        ("recipe", "recipe.toml"),
        ("summary", "summary.json"),
    ]
    .into();
    summary.artefacts.extend(files.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())));
    let report = Report {
        summary: &summary,
        steps: &context.log.steps(),
        spans: &context.log.spans(),
        recipe: recipe_text,
    };
    write_whole(&context.folder.path("report.html"), report.html().as_bytes())?;
    let path = context.folder.path("summary.json");
    write_whole(&path, &serde_json::to_vec_pretty(&summary)?)?;
    Ok(path)
}

/// Waits until no worker of the cluster writes any more.
async fn workers_gone(context: &StageContext) {
    let start = Instant::now();
    let busy = || context.fleet.cluster().nodes().iter().any(|node| !node.workers.is_empty());
    while busy() && start.elapsed() < WORKERS_GONE {
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}
