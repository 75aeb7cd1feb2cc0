//! A cluster of real processes in a temporary folder: the coordinator in this process, one agent
//! and its workers as children.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use plumb_coordinator::cluster::{
    AdminAccess, Bundle, Cluster, ClusterError, ClusterSettings, GroupSpec, RestartPolicy,
    RestartScope, Strategy, Worker, token_file,
};
use plumb_domain::{AgentId, Role};
use plumb_proto::rollout::rollout_service_client::RolloutServiceClient;
use plumb_proto::rollout::{GenerateProgress, GenerateRequest, LoadRequest, Prompt};
use tempfile::TempDir;
use tokio::process::{Child, Command};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

/// Generous for a busy machine; every wait ends as soon as its condition holds.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

pub(crate) struct TestCluster {
    pub(crate) cluster: Cluster,
    pub(crate) folder: TempDir,
    pub(crate) agent: Child,
    pub(crate) stop: CancellationToken,
    pub(crate) task: JoinHandle<Result<(), ClusterError>>,
}

impl TestCluster {
    /// A coordinator and one agent, with leases of this length.
    pub(crate) async fn start(lease: Duration) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let (cluster, stop, task) = coordinator(folder.path(), lease).await;
        let agent = start_agent(folder.path(), &token(folder.path()));
        Self { cluster, folder, agent, stop, task }
    }

    pub(crate) fn log_dir(&self) -> PathBuf {
        self.folder.path().join("logs")
    }

    /// Process ids of the workers, as the system lists them.
    pub(crate) fn worker_pids(&self) -> Vec<u32> {
        children_of(self.agent.id().unwrap_or(0))
    }

    pub(crate) fn agent_pid(&self) -> u32 {
        self.agent.id().unwrap_or(0)
    }

    /// Stops everything as Ctrl-C would, and checks that nothing is left.
    pub(crate) async fn finish(mut self) {
        let workers = self.worker_pids();
        self.stop.cancel();
        tokio::time::timeout(PATIENCE, self.task).await.unwrap().unwrap().unwrap();
        let status = tokio::time::timeout(PATIENCE, self.agent.wait()).await.unwrap().unwrap();
        assert!(status.success(), "the agent ended with {status}");
        gone(&workers).await;
    }
}

/// A coordinator that writes its state below `folder`.
pub(crate) async fn coordinator(
    folder: &Path,
    lease: Duration,
) -> (Cluster, CancellationToken, JoinHandle<Result<(), ClusterError>>) {
    let agents = vec![AgentId::new("node-0").unwrap()];
    let mut settings = ClusterSettings::local(folder.join("state"), "test", agents);
    settings.lease = lease;
    settings.grace = Duration::from_secs(2);
    let stop = CancellationToken::new();
    let (cluster, task) =
        Cluster::start(settings, stop.clone(), |_| tonic::service::Routes::default())
            .await
            .unwrap();
    (cluster, stop, task)
}

pub(crate) fn token(folder: &Path) -> PathBuf {
    token_file(&folder.join("state"), &AgentId::new("node-0").unwrap())
}

pub(crate) fn admin(folder: &Path) -> AdminAccess {
    AdminAccess::read(&folder.join("state")).unwrap()
}

/// The test node's binary under the names that agents look for, in `folder/bin`.
pub(crate) fn start_agent(folder: &Path, token: &Path) -> Child {
    let bin = folder.join("bin");
    std::fs::create_dir_all(&bin).unwrap();
    let node = Path::new(env!("CARGO_BIN_EXE_cluster-node"));
    for name in ["rollout-worker", "reward-worker", "actor-worker", "cluster-node"] {
        let path = bin.join(name);
        if !path.exists() {
            std::fs::hard_link(node, &path)
                .or_else(|_| std::fs::copy(node, &path).map(|_| ()))
                .unwrap();
        }
    }
    Command::new(bin.join("cluster-node"))
        .arg("agent")
        .arg(token)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(std::fs::File::create(folder.join("agent.err")).unwrap())
        .process_group(0)
        .kill_on_drop(true)
        .spawn()
        .unwrap()
}

/// A group of test workers.
pub(crate) fn spec(name: &str, role: Role, world_size: u32, max_restarts: u32) -> GroupSpec {
    let scope = match role {
        Role::Policy => RestartScope::Group,
        _ => RestartScope::Worker,
    };
    GroupSpec {
        name: name.to_owned(),
        role,
        world_size,
        bundle: Bundle { cpus_milli: 100, memory_bytes: 0, gpus_milli: 0 },
        threads: 1,
        strategy: Strategy::Pack,
        restart: RestartPolicy {
            max_restarts,
            back_off_millis: 50,
            max_back_off_millis: 500,
            scope,
        },
        start_timeout_millis: 30_000,
    }
}

/// `Load` of a test worker: how often it has really run.
pub(crate) async fn load(worker: &Worker, step: u64, attempt: u32) -> u64 {
    let mut client = RolloutServiceClient::new(worker.channel());
    let context = Some(worker.context("job", step, "load", 0, attempt));
    let request = LoadRequest { context, ..LoadRequest::default() };
    worker.call("load", client.load(request)).await.unwrap().into_inner().parameters
}

/// `Generate` of a test worker with one prompt.
pub(crate) async fn generate(
    worker: &Worker,
    prompt: &str,
) -> Result<GenerateProgress, plumb_coordinator::cluster::CallError> {
    let mut client = RolloutServiceClient::new(worker.channel());
    let request = GenerateRequest {
        context: Some(worker.context("job", 0, "generate", 0, 0)),
        prompts: vec![Prompt { id: prompt.to_owned(), ..Prompt::default() }],
        ..GenerateRequest::default()
    };
    let call = async {
        let mut stream = client.generate(request).await?.into_inner();
        let first = stream.message().await?;
        first.ok_or_else(|| tonic::Status::internal("the stream was empty"))
    };
    worker.call("generate", call).await
}

pub(crate) fn signal(pid: u32, signal: Signal) {
    kill(Pid::from_raw(i32::try_from(pid).unwrap()), signal).unwrap();
}

/// Waits until no such process runs (a zombie does not).
pub(crate) async fn gone(pids: &[u32]) {
    let deadline = tokio::time::Instant::now() + PATIENCE;
    loop {
        let left: Vec<u32> = pids.iter().copied().filter(|pid| runs(*pid)).collect();
        if left.is_empty() {
            return;
        }
        assert!(tokio::time::Instant::now() < deadline, "processes {left:?} are left");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

fn runs(pid: u32) -> bool {
    stat(pid).is_some_and(|(state, _)| state != 'Z')
}

/// State and parent of a process.
fn stat(pid: u32) -> Option<(char, u32)> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let mut rest = text.rsplit_once(')')?.1.split_whitespace();
    Some((rest.next()?.chars().next()?, rest.next()?.parse().ok()?))
}

fn children_of(parent: u32) -> Vec<u32> {
    let entries = std::fs::read_dir("/proc").unwrap();
    let pids = entries.filter_map(|e| e.ok()?.file_name().to_str()?.parse::<u32>().ok());
    pids.filter(|pid| stat(*pid).is_some_and(|(state, p)| p == parent && state != 'Z')).collect()
}
