//! The AgentService: what the coordinator may ask of a node.

use std::sync::Arc;
use std::time::Duration;

use plumb_proto::agent::agent_service_server::AgentService;
use plumb_proto::agent::{
    ListWorkersRequest, ListWorkersResponse, ShutdownRequest, ShutdownResponse, StartWorkerRequest,
    StartWorkerResponse, StopWorkerRequest, StopWorkerResponse,
};
use tokio::sync::watch;
use tonic::{Request, Response, Status};

use super::process::Processes;
use super::{Ending, set_once};

pub(super) struct Service {
    processes: Arc<Processes>,
    ending: watch::Sender<Option<Ending>>,
}

impl Service {
    pub(super) fn new(processes: Arc<Processes>, ending: watch::Sender<Option<Ending>>) -> Self {
        Self { processes, ending }
    }
}

#[tonic::async_trait]
impl AgentService for Service {
    async fn start_worker(
        &self,
        request: Request<StartWorkerRequest>,
    ) -> Result<Response<StartWorkerResponse>, Status> {
        if self.ending.borrow().is_some() {
            return Err(Status::unavailable("this agent is stopping"));
        }
        let pid = self.processes.start(request.into_inner()).await?;
        Ok(Response::new(StartWorkerResponse { pid }))
    }

    async fn stop_worker(
        &self,
        request: Request<StopWorkerRequest>,
    ) -> Result<Response<StopWorkerResponse>, Status> {
        let request = request.into_inner();
        let grace = Duration::from_millis(u64::from(request.grace_millis));
        let existed = self.processes.stop(&request.worker_id, request.epoch, grace).await;
        Ok(Response::new(StopWorkerResponse { existed }))
    }

    async fn list_workers(
        &self,
        _request: Request<ListWorkersRequest>,
    ) -> Result<Response<ListWorkersResponse>, Status> {
        Ok(Response::new(ListWorkersResponse { workers: self.processes.list() }))
    }

    async fn shutdown(
        &self,
        request: Request<ShutdownRequest>,
    ) -> Result<Response<ShutdownResponse>, Status> {
        let grace = Duration::from_millis(u64::from(request.into_inner().grace_millis));
        // The workers are gone when this answers; the agent itself ends right after.
        self.processes.stop_all(grace).await;
        self.ending.send_if_modified(|e| set_once(e, Ending::Told { grace }));
        Ok(Response::new(ShutdownResponse {}))
    }
}
