//! The worker processes of this node.

use std::collections::BTreeMap;
use std::fs::OpenOptions;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use plumb_domain::{Epoch, WorkerId};
use plumb_proto::agent::{RunningWorker, StartWorkerRequest, WorkerKind};
use plumb_proto::cluster::ReportExitRequest;
use plumb_proto::cluster::cluster_service_client::ClusterServiceClient;
use plumb_runtime::Bootstrap;
use tokio::io::AsyncWriteExt;
use tokio::process::{Child, ChildStdin, Command};
use tokio::sync::watch;
use tonic::Status;
use tonic::transport::Channel;

use super::AgentSettings;
use super::output::{OutputFiles, exit_reason};

/// Tries to report an end before giving up; the lease then tells.
const REPORT_TRIES: u32 = 3;
/// A process that was sent SIGKILL is waited for this long.
const KILL_WAIT: Duration = Duration::from_secs(5);

type Key = (String, u64);

pub(super) struct Processes {
    agent_id: String,
    ca_fingerprint: String,
    coordinator: String,
    listen_host: String,
    binaries: PathBuf,
    log_filter: String,
    cluster: ClusterServiceClient<Channel>,
    running: Mutex<BTreeMap<Key, Running>>,
}

struct Running {
    pid: u32,
    /// Open for as long as the agent wants the worker to live (AG-1).
    _stdin: ChildStdin,
    asked_to_stop: bool,
    ended: watch::Receiver<bool>,
}

impl Processes {
    pub(super) fn new(
        settings: &AgentSettings,
        coordinator: String,
        cluster: ClusterServiceClient<Channel>,
    ) -> Arc<Self> {
        Arc::new(Self {
            agent_id: settings.token.agent_id.to_string(),
            ca_fingerprint: settings.token.ca_fingerprint.clone(),
            coordinator,
            listen_host: settings.listen_host.clone(),
            binaries: settings.binaries.clone(),
            log_filter: settings.log_filter.clone(),
            cluster,
            running: Mutex::default(),
        })
    }

    /// Starts a worker and hands it its bootstrap line.
    ///
    /// # Errors
    /// `INVALID_ARGUMENT` for a request that makes no sense, `ALREADY_EXISTS` for a worker and
    /// epoch that run, `FAILED_PRECONDITION` when the system cannot start it.
    pub(super) async fn start(
        self: &Arc<Self>,
        request: StartWorkerRequest,
    ) -> Result<u32, Status> {
        let binary = self.binary(&request)?;
        let bootstrap = self.bootstrap(&request)?;
        let key = (request.worker_id.clone(), request.epoch);
        if self.lock().contains_key(&key) {
            return Err(Status::already_exists(format!("{} epoch {} runs already", key.0, key.1)));
        }
        let log_dir = match request.log_dir.as_str() {
            "" => std::env::temp_dir().join("plumb-logs"),
            folder => PathBuf::from(folder),
        };
        let files = OutputFiles::new(&log_dir, &request.worker_id, request.epoch);
        let mut child = spawn(&binary, &log_dir, &files, request.threads)?;
        let pid = child.id().unwrap_or(0);
        let mut stdin = child
            .stdin
            .take()
            .ok_or_else(|| Status::internal(format!("{} has no stdin", binary.display())))?;
        let line = bootstrap.to_line();
        // A process that dies before it reads is reported by its exit.
        if let Err(error) = stdin.write_all(line.as_bytes()).await {
            tracing::warn!(worker = key.0, %error, "the bootstrap line was not taken");
        }
        let (ended, receiver) = watch::channel(false);
        let running = Running { pid, _stdin: stdin, asked_to_stop: false, ended: receiver };
        self.lock().insert(key.clone(), running);
        tracing::info!(worker = key.0, epoch = key.1, pid, binary = %binary.display(), "started");
        tokio::spawn(Arc::clone(self).watch(key, child, files, ended));
        Ok(pid)
    }

    /// Stops a worker: SIGTERM, then SIGKILL after the grace; returns whether there was one.
    pub(super) async fn stop(&self, worker: &str, epoch: u64, grace: Duration) -> bool {
        let found = {
            let mut running = self.lock();
            running.get_mut(&(worker.to_owned(), epoch)).map(|process| {
                process.asked_to_stop = true;
                (process.pid, process.ended.clone())
            })
        };
        let Some((pid, mut ended)) = found else { return false };
        if !grace.is_zero() {
            signal(pid, Signal::SIGTERM);
            // A stopped process takes no other signal until it goes on.
            signal(pid, Signal::SIGCONT);
            if tokio::time::timeout(grace, ended.wait_for(|e| *e)).await.is_ok() {
                return true;
            }
        }
        signal(pid, Signal::SIGKILL);
        if tokio::time::timeout(KILL_WAIT, ended.wait_for(|e| *e)).await.is_err() {
            tracing::error!(worker, epoch, pid, "the process does not end after SIGKILL");
        }
        true
    }

    /// Stops all workers at once.
    pub(super) async fn stop_all(&self, grace: Duration) {
        let keys: Vec<Key> = self.lock().keys().cloned().collect();
        let stops = keys.iter().map(|(worker, epoch)| self.stop(worker, *epoch, grace));
        futures::future::join_all(stops).await;
    }

    pub(super) fn list(&self) -> Vec<RunningWorker> {
        let running = self.lock();
        let view = |((worker_id, epoch), process): (&Key, &Running)| RunningWorker {
            worker_id: worker_id.clone(),
            epoch: *epoch,
            pid: process.pid,
        };
        running.iter().map(view).collect()
    }

    /// AG-3.
    async fn watch(
        self: Arc<Self>,
        key: Key,
        mut child: Child,
        files: OutputFiles,
        ended: watch::Sender<bool>,
    ) {
        let reason = match child.wait().await {
            Ok(status) => exit_reason(status),
            Err(error) => format!("its end could not be observed: {error}"),
        };
        let requested = self.lock().remove(&key).is_none_or(|process| process.asked_to_stop);
        // Children of the worker, if it had any, go with it.
        ended.send_replace(true);
        let stderr_tail = files.stderr_tail();
        let (worker_id, epoch) = key;
        tracing::info!(worker = worker_id, epoch, reason, requested, "ended");
        let report = ReportExitRequest {
            agent_id: self.agent_id.clone(),
            worker_id,
            epoch,
            reason,
            stderr_tail,
            requested,
        };
        self.report(report).await;
    }

    async fn report(&self, report: ReportExitRequest) {
        let mut cluster = self.cluster.clone();
        for attempt in 1..=REPORT_TRIES {
            match cluster.report_exit(report.clone()).await {
                Ok(_) => return,
                Err(status) if attempt == REPORT_TRIES => {
                    let reason = status.message();
                    tracing::warn!(worker = report.worker_id, reason, "exit not reported");
                }
                Err(_) => tokio::time::sleep(Duration::from_millis(200)).await,
            }
        }
    }

    fn bootstrap(&self, request: &StartWorkerRequest) -> Result<Bootstrap, Status> {
        let wrong = |e: plumb_domain::IdError| Status::invalid_argument(e.to_string());
        Ok(Bootstrap {
            coordinator: self.coordinator.clone(),
            ca_fingerprint: self.ca_fingerprint.clone(),
            join_token: request.join_token.clone(),
            worker_id: WorkerId::new(request.worker_id.clone()).map_err(wrong)?,
            epoch: Epoch(request.epoch),
            role: request.role.parse().map_err(wrong)?,
            device: request.device.clone(),
            threads: request.threads.max(1),
            log_filter: self.log_filter.clone(),
            listen_host: self.listen_host.clone(),
        })
    }

    fn binary(&self, request: &StartWorkerRequest) -> Result<PathBuf, Status> {
        let name = match request.kind() {
            WorkerKind::Actor => "actor-worker",
            WorkerKind::Rollout => "rollout-worker",
            WorkerKind::Reward => "reward-worker",
            WorkerKind::Unspecified => {
                return Err(Status::invalid_argument("the request names no worker kind"));
            }
        };
        let path = self.binaries.join(name);
        if path.is_file() {
            return Ok(path);
        }
        Err(Status::failed_precondition(format!(
            "there is no worker binary {}; build it, or start the agent from the folder that has it",
            path.display()
        )))
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<Key, Running>> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn spawn(
    binary: &Path,
    log_dir: &Path,
    files: &OutputFiles,
    threads: u32,
) -> Result<Child, Status> {
    let failed = |what: &Path, e: std::io::Error| {
        Status::failed_precondition(format!("{}: {e}", what.display()))
    };
    std::fs::create_dir_all(log_dir).map_err(|e| failed(log_dir, e))?;
    let open = |path: &Path| {
        let mut options = OpenOptions::new();
        options.create(true).append(true).mode(0o600).open(path).map_err(|e| failed(path, e))
    };
    Command::new(binary)
        .stdin(Stdio::piped())
        .stdout(open(&files.stdout)?)
        .stderr(open(&files.stderr)?)
        .env("OMP_NUM_THREADS", threads.max(1).to_string())
        // A Ctrl-C in the agent's terminal is for the agent, which then stops its workers.
        .process_group(0)
        .kill_on_drop(true)
        .spawn()
        .map_err(|e| failed(binary, e))
}

fn signal(pid: u32, signal: Signal) {
    let Ok(group) = i32::try_from(pid) else { return };
    // The group is gone when the process is.
    if group > 1 {
        let _ = killpg(Pid::from_raw(group), signal);
    }
}
