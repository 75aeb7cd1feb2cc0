//! The agent of a node: joins with a token, offers the node's resources, starts and stops worker
//! processes, keeps their output, and reports how they ended.
//!
//! - **AG-1**: a worker process never outlives its agent: its stdin ends with the agent, and the
//!   kernel kills it should it not notice.
//! - **AG-2**: an agent that loses its lease, or is told to stop, stops its workers first.
//! - **AG-3**: every end of a worker process is reported once, with its exit code or signal and the
//!   last lines of its stderr.
//! - **AG-4**: a secret reaches a worker on its stdin, never in its arguments or environment.

pub(crate) mod node;
mod output;
mod process;
mod service;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use plumb_domain::AgentId;
use plumb_proto::agent::agent_service_server::AgentServiceServer;
use plumb_proto::cluster::cluster_service_client::ClusterServiceClient;
use plumb_proto::cluster::{LeaveAgentRequest, RegisterAgentRequest};
use plumb_runtime::heartbeat::{self, Beat};
use plumb_runtime::{Identity, Peers, Phase, RuntimeError, bootstrap, exit, server};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tonic::service::Routes;

use crate::cluster::AgentToken;

pub use node::NodeError;
pub(crate) use node::gpus;
use process::Processes;

/// How an agent is run.
#[derive(Debug, Clone)]
pub struct AgentSettings {
    /// From the coordinator's token file.
    pub token: AgentToken,
    /// Where the coordinator is, if not where the token says.
    pub coordinator: Option<String>,
    /// Host to listen on, for the agent and its workers; loopback unless the operator says
    /// otherwise.
    pub listen_host: String,
    /// Folder with the worker binaries; the agent's own folder by default.
    pub binaries: PathBuf,
    /// CPUs to offer; `None` offers what the system has.
    pub cpus: Option<u32>,
    /// What workers log.
    pub log_filter: String,
    /// Stop when stdin ends: for an agent whose parent process holds the other end.
    pub exit_with_stdin: bool,
    /// How long workers have to stop in an orderly way.
    pub grace: Duration,
}

impl AgentSettings {
    /// Settings for this node, with the worker binaries beside the running one.
    ///
    /// # Errors
    /// [`AgentError::Node`] when the system does not say where the running binary lies.
    pub fn new(token: AgentToken) -> Result<Self, AgentError> {
        Ok(Self {
            token,
            coordinator: None,
            listen_host: "127.0.0.1".to_owned(),
            binaries: node::own_folder()?,
            cpus: None,
            log_filter: "info".to_owned(),
            exit_with_stdin: false,
            grace: Duration::from_secs(3),
        })
    }
}

/// Why an agent ended, other than being told to.
#[derive(Debug, thiserror::Error)]
pub enum AgentError {
    /// Joining, listening, certificates.
    #[error(transparent)]
    Runtime(#[from] RuntimeError),
    /// The node cannot be described.
    #[error(transparent)]
    Node(#[from] NodeError),
    /// AG-2.
    #[error("this agent lost its lease and has stopped its workers: {reason}")]
    LeaseLost {
        /// What the coordinator said, or did not.
        reason: String,
    },
}

/// Why the agent goes down.
#[derive(Debug, Clone)]
enum Ending {
    Told { grace: Duration },
    LeaseLost { reason: String },
}

/// Runs an agent until SIGTERM, SIGINT, the coordinator's word, or the loss of its lease.
///
/// # Errors
/// [`AgentError`]; a lost lease is one, an orderly end is not.
pub async fn run(settings: AgentSettings) -> Result<(), AgentError> {
    let signals = exit::stop_on_signal()?;
    if settings.exit_with_stdin {
        bootstrap::exit_with_stdin("agent")?;
    }
    let agent_id = settings.token.agent_id.clone();
    let coordinator =
        settings.coordinator.clone().unwrap_or_else(|| settings.token.coordinator.clone());
    let credentials = plumb_runtime::join(
        &coordinator,
        &settings.token.ca_fingerprint,
        &settings.token.join_token,
    )
    .await?;
    let resources = node::resources(settings.cpus)?;
    let (listener, address) = server::listen(&format!("{}:0", settings.listen_host)).await?;
    let peers = Peers::new(credentials.clone());
    let channel = peers.channel(&coordinator, &Identity::Coordinator.server_name())?;
    let cluster = ClusterServiceClient::new(channel);
    let processes = Processes::new(&settings, coordinator.clone(), cluster.clone());
    let ending = watch::Sender::new(None::<Ending>);
    let service =
        AgentServiceServer::new(service::Service::new(Arc::clone(&processes), ending.clone()));
    let closing = CancellationToken::new();
    let serving = {
        let (credentials, closed) = (credentials.clone(), closing.clone());
        let routes = Routes::new(service);
        tokio::spawn(async move {
            server::serve(listener, &credentials, false, routes, closed.cancelled_owned()).await
        })
    };
    let lease = register(cluster.clone(), &agent_id, address.to_string(), resources).await?;
    let beat = Beat { id: agent_id.to_string(), epoch: 0, phase: Phase::default(), lease };
    let lost = ending.clone();
    heartbeat::spawn(&coordinator, &credentials, beat, move |_, reason| {
        lost.send_if_modified(|e| set_once(e, Ending::LeaseLost { reason }));
    })?;
    tracing::info!(agent = %agent_id, %address, coordinator, "the agent has joined");
    let ending = wait_for_ending(&ending, &signals, settings.grace).await;
    finish(ending, &agent_id, &processes, cluster, settings.grace).await?;
    closing.cancel();
    serving.await.unwrap_or(Ok(()))?;
    Ok(())
}

async fn register(
    mut cluster: ClusterServiceClient<tonic::transport::Channel>,
    agent_id: &AgentId,
    address: String,
    resources: plumb_proto::cluster::Resources,
) -> Result<Duration, AgentError> {
    let request = RegisterAgentRequest {
        agent_id: agent_id.to_string(),
        address,
        resources: Some(resources),
        labels: node::labels().into_iter().collect(),
        pid: std::process::id(),
    };
    let response = cluster.register_agent(request).await.map_err(|status| {
        RuntimeError::Refused { call: "registration", message: status.message().to_owned() }
    })?;
    Ok(Duration::from_millis(u64::from(response.into_inner().lease_millis)))
}

async fn wait_for_ending(
    ending: &watch::Sender<Option<Ending>>,
    signals: &CancellationToken,
    grace: Duration,
) -> Ending {
    let mut told = ending.subscribe();
    let found = tokio::select! {
        () = signals.cancelled() => None,
        ending = told.wait_for(Option::is_some) => ending.ok().and_then(|e| (*e).clone()),
    };
    found.unwrap_or(Ending::Told { grace })
}

/// AG-2.
async fn finish(
    ending: Ending,
    agent_id: &AgentId,
    processes: &Arc<Processes>,
    mut cluster: ClusterServiceClient<tonic::transport::Channel>,
    grace: Duration,
) -> Result<(), AgentError> {
    match ending {
        Ending::Told { grace } => {
            // Leaving first keeps the coordinator from restarting here what stops now.
            let leave = cluster.leave_agent(LeaveAgentRequest { agent_id: agent_id.to_string() });
            let left = tokio::time::timeout(Duration::from_secs(1), leave).await;
            if !matches!(left, Ok(Ok(_))) {
                tracing::info!("the coordinator did not take note of our leaving");
            }
            processes.stop_all(grace).await;
            Ok(())
        }
        Ending::LeaseLost { reason } => {
            tracing::error!(reason, "lease lost; stopping the workers");
            processes.stop_all(grace.min(Duration::from_secs(1))).await;
            Err(AgentError::LeaseLost { reason })
        }
    }
}

/// The first reason to end is the one that counts.
fn set_once(slot: &mut Option<Ending>, ending: Ending) -> bool {
    if slot.is_some() {
        return false;
    }
    *slot = Some(ending);
    true
}
