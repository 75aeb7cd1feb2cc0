//! Membership, placement and supervision: the driver of [`plumb_machine::Machine`].
//!
//! ```text
//! agents, workers ──ClusterService──> events ──> Machine ──> effects ──> AgentService, notices
//! stage code ──place / wait_ready / call──> Group, Worker
//! ```
//!
//! - **CL-1**: a call to a worker ends when the worker's epoch does, with the worker, its rank,
//!   the phase and the cause; it never waits for a timeout of its own.
//! - **CL-2**: when a member of a collective group is lost, the other members are told to abort
//!   the group at once.
//! - **CL-3**: when a cluster stops, every agent is told to stop its workers and itself.

mod audit;
mod collective;
mod driver;
mod error;
mod event;
mod group;
mod service;
mod settings;
mod state_dir;
mod store;
mod token;

use std::future::Future;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use plumb_domain::AgentId;
use plumb_machine::{Event, NodeResources};
use plumb_proto::agent::ShutdownRequest;
use plumb_proto::agent::agent_service_client::AgentServiceClient;
use plumb_proto::cluster::cluster_service_server::ClusterServiceServer;
use plumb_runtime::{CertificateAuthority, Identity, MAX_MESSAGE_BYTES, Peers, server};
use tokio::sync::broadcast;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tonic::service::Routes;

use driver::Driver;
pub use error::{CallError, ClusterError, GroupError, Loss};
pub use event::ClusterEvent;
pub use group::{Group, Worker};
pub use plumb_machine::{Bundle, GroupSpec, RestartPolicy, RestartScope, Strategy};
pub use settings::ClusterSettings;
pub use state_dir::{AdminAccess, AgentToken, admin_file, file_stem, token_file};

/// A running cluster. Cheap to clone.
#[derive(Clone)]
pub struct Cluster {
    driver: Arc<Driver>,
}

/// One node, for people.
#[derive(Debug, Clone)]
pub struct NodeView {
    /// Its agent.
    pub agent: AgentId,
    /// Where the agent listens.
    pub address: String,
    /// What the node has.
    pub resources: NodeResources,
    /// The workers placed on it.
    pub workers: Vec<String>,
}

impl Cluster {
    /// Makes the run's CA, opens the listener, writes the admin's access and the agents' tokens
    /// into the state folder, and serves until `stop` is cancelled. `routes` adds further
    /// services, which may hold the cluster.
    ///
    /// The returned task ends when all agents were told to stop (CL-3) and the listener is closed.
    ///
    /// # Errors
    /// [`ClusterError`] when the address is taken or the state folder cannot be written.
    pub async fn start(
        settings: ClusterSettings,
        stop: CancellationToken,
        routes: impl FnOnce(&Cluster) -> Routes,
    ) -> Result<(Self, JoinHandle<Result<(), ClusterError>>), ClusterError> {
        let (listener, address) = server::listen(&settings.listen).await?;
        state_dir::make_private_folder(&settings.state_dir.join("tokens"))?;
        let ca = CertificateAuthority::new(&settings.run)?;
        let credentials = ca.issue(&Identity::Coordinator)?;
        let audit = audit::Audit::open(&settings.state_dir)?;
        let peers = Peers::new(credentials.clone());
        let driver = Driver::start(settings, ca, peers, audit, address.to_string());
        let cluster = Self { driver };
        cluster.write_access()?;
        let cluster_service = ClusterServiceServer::new(service::Service::new(&cluster.driver))
            .max_decoding_message_size(MAX_MESSAGE_BYTES);
        let routes = routes(&cluster).add_service(cluster_service);
        let served = cluster.clone();
        let task = tokio::spawn(async move {
            let closing = CancellationToken::new();
            let stopping = async {
                stop.cancelled().await;
                served.stop_agents().await;
                closing.cancel();
            };
            let serving = server::serve(listener, &credentials, true, routes, closing.cancelled());
            let (result, ()) = tokio::join!(serving, stopping);
            served.driver.close();
            Ok(result?)
        });
        Ok((cluster, task))
    }

    /// Where the coordinator listens.
    #[must_use]
    pub fn address(&self) -> &str {
        self.driver.address()
    }

    /// Connections to workers; fetches objects.
    #[must_use]
    pub fn peers(&self) -> &Peers {
        self.driver.peers()
    }

    /// Notices from now on, for people and logs.
    #[must_use]
    pub fn events(&self) -> broadcast::Receiver<ClusterEvent> {
        self.driver.events()
    }

    /// The nodes that hold a lease.
    #[must_use]
    pub fn nodes(&self) -> Vec<NodeView> {
        self.driver.nodes()
    }

    /// A join token for an agent, as it is written to a token file.
    #[must_use]
    pub fn agent_token(&self, agent_id: AgentId) -> AgentToken {
        let life = self.driver.settings().token_life;
        let identity = Identity::Agent(agent_id.clone());
        let join_token = self.driver.tokens().issue(identity, life, Instant::now());
        AgentToken {
            coordinator: self.address().to_owned(),
            agent_id,
            ca_fingerprint: self.driver.ca().fingerprint().to_owned(),
            join_token,
            expires_unix_secs: unix_secs_after(life),
        }
    }

    /// Places a group and waits until every rank has registered. Worker output goes to files
    /// in `log_dir`.
    ///
    /// # Errors
    /// [`GroupError`] names what does not fit, or which worker did not start and why.
    pub async fn place(
        &self,
        spec: GroupSpec,
        log_dir: impl Into<std::path::PathBuf>,
    ) -> Result<Group, GroupError> {
        let name = spec.name.clone();
        self.wait_for_an_agent().await;
        self.driver.set_log_dir(&name, log_dir.into());
        self.driver.handle(Event::PlaceGroup { spec })?;
        let group = Group::new(Arc::clone(&self.driver), name);
        match group.wait_ready().await {
            Ok(_) => Ok(group),
            Err(error) => {
                group.release();
                Err(error)
            }
        }
    }

    /// Tells every agent to stop its workers and itself (CL-3), and waits until they answered.
    pub async fn stop_agents(&self) {
        let grace = self.driver.settings().grace;
        let stops = self.driver.agents().into_iter().map(|(id, channel)| async move {
            let mut client = AgentServiceClient::new(channel);
            let request = ShutdownRequest { grace_millis: millis(grace) };
            let answered = tokio::time::timeout(grace * 3, client.shutdown(request)).await;
            match answered {
                Ok(Ok(_)) => {}
                Ok(Err(status)) => {
                    tracing::warn!(agent = %id, reason = status.message(), "agent did not stop");
                }
                Err(_) => tracing::warn!(agent = %id, "agent did not answer the stop"),
            }
        });
        self.driver.close();
        futures::future::join_all(stops).await;
    }

    /// In an embedded cluster the agent joins a moment after the coordinator is up.
    async fn wait_for_an_agent(&self) {
        let joined = self.driver.until(|driver| !driver.agents().is_empty());
        // Without an agent the placement itself says that no node has joined.
        let _ = tokio::time::timeout(self.driver.settings().agent_wait, joined).await;
    }

    fn write_access(&self) -> Result<(), ClusterError> {
        let settings = self.driver.settings();
        let access = AdminAccess {
            coordinator: self.address().to_owned(),
            credentials: self.driver.ca().issue(&Identity::Admin)?,
        };
        state_dir::write_private(&admin_file(&settings.state_dir), &access)?;
        for agent in &settings.agents {
            let token = self.agent_token(agent.clone());
            state_dir::write_private(&token_file(&settings.state_dir, agent), &token)?;
        }
        Ok(())
    }
}

impl std::fmt::Debug for Cluster {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Cluster({})", self.address())
    }
}

pub(crate) fn millis(duration: Duration) -> u32 {
    u32::try_from(duration.as_millis()).unwrap_or(u32::MAX)
}

fn unix_secs_after(life: Duration) -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    (now + life).as_secs()
}

/// Runs a future until `lost` says that it cannot end well; the shape of CL-1.
pub(crate) async fn unless_lost<T>(
    work: impl Future<Output = T>,
    lost: impl Future<Output = Arc<Loss>>,
) -> Result<T, Arc<Loss>> {
    tokio::select! {
        biased;
        loss = lost => Err(loss),
        result = work => Ok(result),
    }
}
