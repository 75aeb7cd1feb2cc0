//! `plumb train`: a cluster of its own for one recipe. The coordinator and the agent are children
//! that end when this process does, however it ends: they hold the other end of a pipe.

use std::fs::{File, OpenOptions};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context as _, bail};
use plumb_domain::AgentId;
use plumb_proto::job::ShutdownRequest;
use plumb_proto::job::job_service_client::JobServiceClient;
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::process::{Child, Command};

use super::Ended;
use super::args::LocalTrainArgs;
use super::follow::Submission;
use crate::cluster::{AdminAccess, token_file};
use crate::job::folder::{AGENT_LOG, COORDINATOR_LOG, RunFolder};

const AGENT: &str = "node-0";
/// How long the coordinator may take to listen.
const START_PATIENCE: Duration = Duration::from_secs(30);
/// How long children may take to end before they are killed.
const END_PATIENCE: Duration = Duration::from_secs(15);

pub(super) async fn run(args: LocalTrainArgs) -> anyhow::Result<Ended> {
    let submission = Submission::read(&args.train)?;
    super::explain::check(submission.recipe(), &submission.base_dir, &args.memory)?;
    // Fails at once when another job runs there; the coordinator takes the lock itself later.
    drop(RunFolder::open(&submission.run_dir)?);
    let mut cluster = Embedded::start(&submission.run_dir.join("logs")).await?;
    let ended = match AdminAccess::read(&cluster.state.0) {
        Ok(access) => match access.connect().await {
            Ok(channel) => submission.run(channel).await,
            Err(error) => Err(error.into()),
        },
        Err(error) => Err(error.into()),
    };
    cluster.stop().await;
    ended
}

/// The children and their state folder.
struct Embedded {
    coordinator: Child,
    agent: Child,
    state: StateFolder,
}

impl Embedded {
    async fn start(logs: &Path) -> anyhow::Result<Self> {
        let state = StateFolder::make()?;
        let mut coordinator = child(&logs.join(COORDINATOR_LOG), |command| {
            command.arg("coordinator").arg("--embedded").arg("--state-dir").arg(&state.0);
        })?;
        let stdout = coordinator.stdout.take().context("the coordinator has no stdout")?;
        let mut lines = BufReader::new(stdout).lines();
        let line = tokio::time::timeout(START_PATIENCE, lines.next_line())
            .await
            .context("the coordinator did not start in time")?
            .context("read the coordinator's address")?;
        if line.is_none() {
            bail!("the coordinator did not start; see {}", logs.join(COORDINATOR_LOG).display());
        }
        let path = token_file(&state.0, &AgentId::new(AGENT)?);
        let token = std::fs::read(&path).with_context(|| format!("read {}", path.display()))?;
        let mut agent = child(&logs.join(AGENT_LOG), |command| {
            command.arg("agent");
        })?;
        // The token travels on one line; the pipe then stays open as long as this process lives.
        let token: serde_json::Value = serde_json::from_slice(&token)
            .with_context(|| format!("{} is not JSON", path.display()))?;
        let line = format!("{token}\n");
        let stdin = agent.stdin.as_mut().context("the agent has no stdin")?;
        stdin.write_all(line.as_bytes()).await.context("hand the agent its token")?;
        Ok(Self { coordinator, agent, state })
    }

    /// Asks the coordinator to stop everything, then sees to it that it has.
    async fn stop(&mut self) {
        if let Ok(access) = AdminAccess::read(&self.state.0)
            && let Ok(channel) = access.connect().await
        {
            let mut client = JobServiceClient::new(channel);
            let call = client.shutdown(ShutdownRequest {});
            // The children end with their stdin in any case.
            let _ = tokio::time::timeout(END_PATIENCE, call).await;
        }
        for child in [&mut self.coordinator, &mut self.agent] {
            drop(child.stdin.take());
            if tokio::time::timeout(END_PATIENCE, child.wait()).await.is_err() {
                tracing::warn!(pid = child.id(), "child did not end and is killed");
                let _ = child.kill().await;
            }
        }
    }
}

/// Starts this program again. A group of its own keeps a terminal's Ctrl-C from it: this process
/// cancels the job in order.
fn child(log: &Path, arguments: impl FnOnce(&mut Command)) -> anyhow::Result<Child> {
    let own = std::env::current_exe().context("find this program's own path")?;
    let mut command = Command::new(&own);
    arguments(&mut command);
    command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(log_file(log)?)
        .process_group(0)
        .kill_on_drop(true)
        .spawn()
        .with_context(|| format!("start {}", own.display()))
}

fn log_file(path: &Path) -> anyhow::Result<File> {
    OpenOptions::new()
        .create(true)
        .write(true)
        .truncate(true)
        .open(path)
        .with_context(|| format!("open the log {}", path.display()))
}

/// Where the embedded coordinator leaves keys: a private folder that goes with this process.
struct StateFolder(PathBuf);

impl StateFolder {
    fn make() -> anyhow::Result<Self> {
        let tag: u64 = rand::random();
        let path = std::env::temp_dir().join(format!("plumb-{}-{tag:016x}", std::process::id()));
        let mut builder = std::fs::DirBuilder::new();
        std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
        builder.create(&path).with_context(|| format!("make the folder {}", path.display()))?;
        Ok(Self(path))
    }
}

impl Drop for StateFolder {
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_dir_all(&self.0) {
            tracing::warn!(path = %self.0.display(), %error, "state folder not removed");
        }
    }
}
