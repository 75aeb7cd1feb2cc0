//! Submits a recipe and follows the job to its end.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, anyhow, bail};
use plumb_config::Recipe;
use plumb_proto::job::job_event::Event;
use plumb_proto::job::job_service_client::JobServiceClient;
use plumb_proto::job::{CancelRequest, JobFinished, SubmitRequest, WatchRequest};
use tonic::Status;
use tonic::transport::Channel;

use super::Ended;
use super::args::TrainArgs;
use super::progress::Progress;
use super::table;
use crate::job::summary::Summary;

/// How long a cancelled job may take to end.
const CANCEL_PATIENCE: Duration = Duration::from_secs(20);

/// A recipe that was read and checked, ready to be submitted.
pub(super) struct Submission {
    recipe: Recipe,
    pub(super) base_dir: PathBuf,
    pub(super) run_dir: PathBuf,
    resume: bool,
}

impl Submission {
    pub(super) fn read(args: &TrainArgs) -> anyhow::Result<Self> {
        let path = &args.recipe.recipe;
        let recipe = Recipe::read(path, &args.recipe.set)?;
        let folder = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let base_dir = folder
            .canonicalize()
            .with_context(|| format!("find the recipe's folder {}", folder.display()))?;
        let run_dir = args.run_dir.clone().unwrap_or_else(|| Path::new("runs").join(&recipe.name));
        let run_dir = std::path::absolute(&run_dir)
            .with_context(|| format!("find the run folder {}", run_dir.display()))?;
        Ok(Self { recipe, base_dir, run_dir, resume: args.resume })
    }

    /// The recipe.
    pub(super) fn recipe(&self) -> &Recipe {
        &self.recipe
    }

    /// Submits and follows; Ctrl-C cancels the job and waits for its end.
    pub(super) async fn run(&self, channel: Channel) -> anyhow::Result<Ended> {
        let mut client = JobServiceClient::new(channel)
            .max_decoding_message_size(plumb_runtime::MAX_MESSAGE_BYTES);
        let request = SubmitRequest {
            recipe_toml: self.recipe.to_toml()?,
            run_dir: self.run_dir.display().to_string(),
            base_dir: self.base_dir.display().to_string(),
            resume: self.resume,
        };
        let job_id = client.submit(request).await.map_err(said)?.into_inner().job_id;
        let stop = plumb_runtime::exit::stop_on_signal()?;
        let follow = follow(client.clone(), &job_id);
        tokio::pin!(follow);
        let finished = tokio::select! {
            finished = &mut follow => finished?,
            () = stop.cancelled() => {
                eprintln!("cancelling {job_id}");
                client.cancel(CancelRequest { job_id: job_id.clone() }).await.map_err(said)?;
                tokio::time::timeout(CANCEL_PATIENCE, &mut follow)
                    .await
                    .context("the cancelled job did not end in time")??
            }
        };
        self.ended(&finished)
    }

    fn ended(&self, finished: &JobFinished) -> anyhow::Result<Ended> {
        match finished.outcome.as_str() {
            "succeeded" => {
                let path = Path::new(&finished.summary_path);
                let text = std::fs::read(path)
                    .with_context(|| format!("read the summary {}", path.display()))?;
                let summary: Summary = serde_json::from_slice(&text)
                    .with_context(|| format!("{} is no summary", path.display()))?;
                print!("{}", table::render(&summary, &self.run_dir));
                Ok(Ended::Well)
            }
            "cancelled" => {
                eprintln!("cancelled");
                Ok(Ended::Cancelled)
            }
            _ => bail!("{}", finished.error),
        }
    }
}

/// Shows events until the last one.
async fn follow(
    mut client: JobServiceClient<Channel>,
    job_id: &str,
) -> anyhow::Result<JobFinished> {
    let mut progress = Progress::new();
    let request = WatchRequest { job_id: job_id.to_owned(), from_event: 0 };
    let mut events = client.watch(request).await.map_err(said)?.into_inner();
    loop {
        match events.message().await {
            Ok(Some(event)) => {
                progress.show(&event);
                if let Some(Event::JobFinished(finished)) = event.event {
                    return Ok(finished);
                }
            }
            Ok(None) => bail!("the coordinator ended before the job {job_id} did"),
            Err(status) => {
                progress.clear();
                return Err(said(status).context(format!("follow job {job_id}")));
            }
        }
    }
}

/// What the coordinator said, without the transport's decoration.
pub(super) fn said(status: Status) -> anyhow::Error {
    anyhow!("{}", status.message())
}
