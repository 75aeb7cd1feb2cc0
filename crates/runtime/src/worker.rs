//! The life of a worker process: join, listen, register, serve, stop.

use std::sync::Arc;
use std::time::Duration;

use plumb_domain::{Epoch, Role, WorkerId};
use plumb_proto::Message;
use plumb_proto::cluster::RegisterWorkerRequest;
use plumb_proto::cluster::cluster_service_client::ClusterServiceClient;
use plumb_proto::object::ObjectRef;
use plumb_proto::object::object_service_server::ObjectServiceServer;
use plumb_proto::worker::CallContext;
use plumb_proto::worker::worker_service_server::WorkerServiceServer;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tonic::Status;
use tonic::service::Routes;

use crate::bootstrap::Bootstrap;
use crate::error::RuntimeError;
use crate::exit::{exit_now, kill_after, stop_on_signal};
use crate::heartbeat::{self, Beat};
use crate::idempotent::{Idempotent, check_epoch};
use crate::identity::Identity;
use crate::object::ObjectStore;
use crate::peers::{Peers, decode};
use crate::phase::Phase;
use crate::rendezvous::{Rendezvous, RendezvousThread};
use crate::worker_service::{WorkerHooks, WorkerServer};

/// A worker that stops has this long for its native threads before it is killed.
const STOP_PATIENCE: Duration = Duration::from_secs(4);

/// A worker that has joined and listens, but does not serve yet.
pub struct Worker {
    context: WorkerContext,
    listener: TcpListener,
    stop: CancellationToken,
}

/// What role code needs of its process. Cheap to clone.
#[derive(Clone)]
pub struct WorkerContext {
    inner: Arc<Inner>,
}

struct Inner {
    bootstrap: Bootstrap,
    address: String,
    objects: ObjectStore,
    peers: Peers,
    phase: Phase,
    rendezvous: RendezvousThread,
}

impl Worker {
    /// Joins the cluster and opens the listener. Nobody knows the worker until [`serve`](Self::serve).
    ///
    /// # Errors
    /// [`RuntimeError`] when the coordinator cannot be reached or refuses, or no port is to be had.
    pub async fn start(bootstrap: Bootstrap) -> Result<Self, RuntimeError> {
        let stop = stop_on_signal()?;
        let credentials = crate::join::join(
            &bootstrap.coordinator,
            &bootstrap.ca_fingerprint,
            &bootstrap.join_token,
        )
        .await?;
        check_granted(&bootstrap, credentials.identity())?;
        let (listener, address) =
            crate::server::listen(&format!("{}:0", bootstrap.listen_host)).await?;
        let address = address.to_string();
        let rendezvous = RendezvousThread::spawn(&bootstrap.coordinator, &credentials)?;
        let objects = ObjectStore::new(bootstrap.worker_id.clone(), address.clone());
        let context = WorkerContext {
            inner: Arc::new(Inner {
                objects,
                peers: Peers::new(credentials),
                phase: Phase::default(),
                rendezvous,
                address,
                bootstrap,
            }),
        };
        Ok(Self { context, listener, stop })
    }

    /// What role code needs.
    #[must_use]
    pub fn context(&self) -> &WorkerContext {
        &self.context
    }

    /// Registers, then serves the role's routes beside the worker and object services until the
    /// coordinator, the agent or a signal says stop.
    ///
    /// When this returns, `main` should return too: a timer then ends the process if native
    /// threads hold it up.
    ///
    /// # Errors
    /// [`RuntimeError::Refused`] when the coordinator does not take the registration (a stale
    /// epoch, for example), [`RuntimeError::Serve`] when the listener fails.
    pub async fn serve(
        self,
        hooks: Arc<dyn WorkerHooks>,
        routes: Routes,
    ) -> Result<(), RuntimeError> {
        let Self { context, listener, stop } = self;
        let worker_server = WorkerServer::new(context.clone(), Arc::clone(&hooks), stop.clone());
        let routes = routes
            .add_service(WorkerServiceServer::new(worker_server))
            .add_service(ObjectServiceServer::new(context.objects().clone()));
        let credentials = context.inner.peers.credentials().clone();
        let serving = {
            let stop = stop.clone();
            tokio::spawn(async move {
                crate::server::serve(listener, &credentials, false, routes, stop.cancelled_owned())
                    .await
            })
        };
        // The listener accepts before the coordinator hears of it: no call can come too early.
        register(&context).await?;
        let served = serving.await;
        kill_after(STOP_PATIENCE);
        hooks.stopping().await;
        served.unwrap_or_else(|e| {
            Err(RuntimeError::Serve { address: context.inner.address.clone(), what: e.to_string() })
        })
    }
}

fn check_granted(bootstrap: &Bootstrap, granted: &Identity) -> Result<(), RuntimeError> {
    let asked = Identity::Worker {
        role: bootstrap.role,
        epoch: bootstrap.epoch,
        id: bootstrap.worker_id.clone(),
    };
    if granted == &asked {
        return Ok(());
    }
    Err(RuntimeError::BootstrapField {
        field: "join_token",
        value: "(secret)".to_owned(),
        expected: format!("a token for {asked}, but the coordinator made it for {granted}"),
    })
}

async fn register(context: &WorkerContext) -> Result<(), RuntimeError> {
    let inner = &context.inner;
    let credentials = inner.peers.credentials();
    let coordinator = &inner.bootstrap.coordinator;
    let channel = inner.peers.channel(coordinator, &Identity::Coordinator.server_name())?;
    let response = ClusterServiceClient::new(channel)
        .register_worker(RegisterWorkerRequest {
            worker_id: context.worker_id().to_string(),
            epoch: context.epoch().0,
            address: inner.address.clone(),
            pid: std::process::id(),
        })
        .await
        .map_err(|status| RuntimeError::Refused {
            call: "registration",
            message: status.message().to_owned(),
        })?
        .into_inner();
    let beat = Beat {
        id: context.worker_id().to_string(),
        epoch: context.epoch().0,
        phase: inner.phase.clone(),
        lease: Duration::from_millis(u64::from(response.lease_millis)),
    };
    heartbeat::spawn(coordinator, credentials, beat, |code, reason| {
        tracing::error!(reason, "this worker must stop");
        exit_now(code);
    })
}

impl WorkerContext {
    /// The slot that this process fills.
    #[must_use]
    pub fn worker_id(&self) -> &WorkerId {
        &self.inner.bootstrap.worker_id
    }

    /// The epoch that it was started under.
    #[must_use]
    pub fn epoch(&self) -> Epoch {
        self.inner.bootstrap.epoch
    }

    /// What its group does.
    #[must_use]
    pub fn role(&self) -> Role {
        self.inner.bootstrap.role
    }

    /// `cpu`, `cuda:0`, ...
    #[must_use]
    pub fn device(&self) -> &str {
        &self.inner.bootstrap.device
    }

    /// Threads for tensor operations.
    #[must_use]
    pub fn threads(&self) -> u32 {
        self.inner.bootstrap.threads
    }

    /// Where this process listens.
    #[must_use]
    pub fn address(&self) -> &str {
        &self.inner.address
    }

    /// The objects that this process owns.
    #[must_use]
    pub fn objects(&self) -> &ObjectStore {
        &self.inner.objects
    }

    /// Connections to other processes.
    #[must_use]
    pub fn peers(&self) -> &Peers {
        &self.inner.peers
    }

    /// What this process is doing, as heartbeats tell it.
    #[must_use]
    pub fn phase(&self) -> &Phase {
        &self.inner.phase
    }

    /// A result cache for one kind of call.
    #[must_use]
    pub fn idempotent<T: Clone + Send + Sync + 'static>(&self) -> Idempotent<T> {
        Idempotent::new(self.worker_id().clone(), self.epoch(), self.inner.phase.clone())
    }

    /// EP-1 for a call whose results are not cached.
    ///
    /// # Errors
    /// `FAILED_PRECONDITION` naming both epochs, `INVALID_ARGUMENT` without a context.
    // A `Status` is what the handler returns; boxing it would be undone at once.
    #[allow(clippy::result_large_err)]
    pub fn check_epoch(&self, context: Option<CallContext>) -> Result<CallContext, Status> {
        check_epoch(self.worker_id(), self.epoch(), context)
    }

    /// The coordinator's rendezvous store for one collective group.
    #[must_use]
    pub fn rendezvous(&self, group: &str, group_epoch: u64) -> Rendezvous {
        self.inner.rendezvous.store(group, group_epoch)
    }

    /// Fetches an object, from this process's own store where it is the owner.
    ///
    /// # Errors
    /// As [`Peers::fetch`].
    pub async fn fetch(&self, reference: &ObjectRef) -> Result<bytes::Bytes, Status> {
        if reference.owner == self.worker_id().as_str()
            && reference.address == self.address()
            && let Some(bytes) = self.inner.objects.get(&reference.id)
        {
            crate::object::verify(reference, &bytes)?;
            return Ok(bytes);
        }
        self.inner.peers.fetch(reference).await
    }

    /// [`fetch`](Self::fetch), decoded.
    ///
    /// # Errors
    /// As [`Peers::fetch_message`].
    pub async fn fetch_message<M: Message + Default>(
        &self,
        reference: &ObjectRef,
    ) -> Result<M, Status> {
        decode(reference, &self.fetch(reference).await?)
    }
}

impl std::fmt::Debug for WorkerContext {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "WorkerContext({} epoch {})", self.worker_id(), self.epoch())
    }
}
