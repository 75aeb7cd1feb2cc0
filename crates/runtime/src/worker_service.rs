//! The service that every worker offers, whatever its role.

use std::sync::Arc;
use std::time::Duration;

use plumb_proto::worker::worker_service_server::WorkerService;
use plumb_proto::worker::{
    AbortGroupRequest, AbortGroupResponse, InitGroupRequest, InitGroupResponse, ShutdownRequest,
    ShutdownResponse, StatusRequest, StatusResponse,
};
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status};

use crate::idempotent::Idempotent;
use crate::memory::resident_bytes;
use crate::rendezvous::Rendezvous;
use crate::worker::WorkerContext;

/// A collective library.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Backend {
    /// Gloo, on CPU.
    Gloo,
    /// NCCL, on CUDA devices.
    Nccl,
}

/// A place in a collective group, as the coordinator gave it.
#[derive(Debug, Clone)]
pub struct GroupPlace {
    /// For example `policy` or `weights`.
    pub group: String,
    /// Counts the formations of this group.
    pub epoch: u64,
    /// This process's rank in it.
    pub rank: usize,
    /// Ranks in all.
    pub world_size: usize,
    /// The library to use.
    pub backend: Backend,
    /// After this long without progress an operation is an error.
    pub timeout: Duration,
    /// Where the ranks find one another.
    pub store: Rendezvous,
}

/// What a role adds to the common worker service.
#[tonic::async_trait]
pub trait WorkerHooks: Send + Sync + 'static {
    /// Joins a collective group. Called once per (group, epoch).
    ///
    /// # Errors
    /// What the role reports; the coordinator names worker, rank and phase.
    async fn init_group(&self, place: GroupPlace) -> Result<(), Status>;

    /// Leaves a group and fails what is pending in it. Must not wait for the device thread,
    /// which may be the one that is stuck in the group.
    ///
    /// # Errors
    /// What the role reports. A group that does not exist is no error.
    async fn abort_group(&self, group: &str) -> Result<(), Status>;

    /// The version of the weights that are live, 0 where there are none.
    fn policy_version(&self) -> u64 {
        0
    }

    /// Called when serving has ended, with about four seconds left to live.
    async fn stopping(&self) {}
}

pub(crate) struct WorkerServer {
    context: WorkerContext,
    hooks: Arc<dyn WorkerHooks>,
    stop: CancellationToken,
    inits: Idempotent<()>,
}

impl WorkerServer {
    pub(crate) fn new(
        context: WorkerContext,
        hooks: Arc<dyn WorkerHooks>,
        stop: CancellationToken,
    ) -> Self {
        let inits = context.idempotent();
        Self { context, hooks, stop, inits }
    }

    fn place(&self, request: &InitGroupRequest) -> Result<GroupPlace, Status> {
        let wrong = |what: String| {
            Err(Status::invalid_argument(format!("group {:?}: {what}", request.group)))
        };
        let backend = match request.backend.as_str() {
            "gloo" => Backend::Gloo,
            "nccl" => Backend::Nccl,
            other => return wrong(format!("backend {other:?}: expected \"gloo\" or \"nccl\"")),
        };
        if request.group.is_empty() {
            return wrong("a group needs a name".to_owned());
        }
        if request.rank >= request.world_size {
            return wrong(format!(
                "rank {} is not below world size {}",
                request.rank, request.world_size
            ));
        }
        if request.timeout_millis == 0 {
            return wrong("timeout_millis is 0; expected at least 1".to_owned());
        }
        Ok(GroupPlace {
            group: request.group.clone(),
            epoch: request.group_epoch,
            rank: request.rank as usize,
            world_size: request.world_size as usize,
            backend,
            timeout: Duration::from_millis(u64::from(request.timeout_millis)),
            store: self.context.rendezvous(&request.group, request.group_epoch),
        })
    }
}

#[tonic::async_trait]
impl WorkerService for WorkerServer {
    async fn init_group(
        &self,
        request: Request<InitGroupRequest>,
    ) -> Result<Response<InitGroupResponse>, Status> {
        let request = request.into_inner();
        let place = self.place(&request)?;
        let mut context = request.context;
        if let Some(context) = &mut context {
            // A new formation of the same group is another call.
            context.phase = format!("init group {} ({})", place.group, place.epoch);
        }
        let hooks = Arc::clone(&self.hooks);
        self.inits.run(context, |_| async move { hooks.init_group(place).await }).await?;
        Ok(Response::new(InitGroupResponse {}))
    }

    async fn abort_group(
        &self,
        request: Request<AbortGroupRequest>,
    ) -> Result<Response<AbortGroupResponse>, Status> {
        let request = request.into_inner();
        self.context.check_epoch(request.context)?;
        self.hooks.abort_group(&request.group).await?;
        Ok(Response::new(AbortGroupResponse {}))
    }

    async fn status(
        &self,
        _request: Request<StatusRequest>,
    ) -> Result<Response<StatusResponse>, Status> {
        Ok(Response::new(StatusResponse {
            worker_id: self.context.worker_id().to_string(),
            role: self.context.role().to_string(),
            epoch: self.context.epoch().0,
            phase: self.context.phase().current(),
            policy_version: self.hooks.policy_version(),
            resident_bytes: resident_bytes(),
            peak_bytes: self.context.phase().peak_bytes().into_iter().collect(),
        }))
    }

    async fn shutdown(
        &self,
        _request: Request<ShutdownRequest>,
    ) -> Result<Response<ShutdownResponse>, Status> {
        tracing::info!("the coordinator asks this worker to stop");
        self.stop.cancel();
        Ok(Response::new(ShutdownResponse {}))
    }
}
