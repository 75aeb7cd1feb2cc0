//! The ClusterService: how agents and workers reach the driver.

use std::sync::Arc;
use std::time::Instant;

use plumb_domain::{AgentId, Epoch, WorkerId};
use plumb_machine::{Event, GpuSlot, NodeResources, Refusal};
use plumb_proto::cluster::cluster_service_server::ClusterService;
use plumb_proto::cluster::{
    HeartbeatRequest, HeartbeatResponse, IssueTokenRequest, IssueTokenResponse, JoinRequest,
    JoinResponse, LeaveAgentRequest, LeaveAgentResponse, RegisterAgentRequest,
    RegisterAgentResponse, RegisterWorkerRequest, RegisterWorkerResponse, ReportExitRequest,
    ReportExitResponse, Resources, StoreAddRequest, StoreAddResponse, StoreDeleteRequest,
    StoreDeleteResponse, StoreGetRequest, StoreGetResponse, StoreSetRequest, StoreSetResponse,
};
use plumb_runtime::Identity;
use plumb_runtime::identity::agent_server_name;
use plumb_runtime::permission::peer;
use tonic::{Request, Response, Status};

use super::driver::Driver;
use super::store::Member;
use super::{millis, unix_secs_after};

pub(super) struct Service {
    driver: Arc<Driver>,
}

impl Service {
    pub(super) fn new(driver: &Arc<Driver>) -> Self {
        Self { driver: Arc::clone(driver) }
    }

    fn lease_millis(&self) -> u32 {
        millis(self.driver.settings().lease)
    }
}

#[tonic::async_trait]
impl ClusterService for Service {
    async fn join(&self, request: Request<JoinRequest>) -> Result<Response<JoinResponse>, Status> {
        let from = request.remote_addr().map(|a| a.to_string()).unwrap_or_default();
        let request = request.into_inner();
        let audit = self.driver.audit();
        let taken = self.driver.tokens().take(&request.token, Instant::now());
        let identity = taken.map_err(|error| {
            audit.record(&from, "join refused", &error.to_string());
            Status::permission_denied(error.to_string())
        })?;
        let ca = self.driver.ca();
        let certificate_pem = ca
            .sign(&request.csr_pem, &identity)
            .map_err(|error| Status::invalid_argument(error.to_string()))?;
        audit.record(&identity.to_string(), "joined", &from);
        Ok(Response::new(JoinResponse {
            certificate_pem,
            ca_pem: ca.ca_pem().to_owned(),
            identity: identity.to_string(),
        }))
    }

    async fn issue_token(
        &self,
        request: Request<IssueTokenRequest>,
    ) -> Result<Response<IssueTokenResponse>, Status> {
        let who = peer(&request)?.to_string();
        let agent = agent_id(request.into_inner().agent_id)?;
        let life = self.driver.settings().token_life;
        let identity = Identity::Agent(agent.clone());
        let token = self.driver.tokens().issue(identity, life, Instant::now());
        self.driver.audit().record(&who, "token issued", &format!("agent/{agent}"));
        Ok(Response::new(IssueTokenResponse {
            token,
            ca_fingerprint: self.driver.ca().fingerprint().to_owned(),
            expires_unix_secs: unix_secs_after(life),
        }))
    }

    async fn register_agent(
        &self,
        request: Request<RegisterAgentRequest>,
    ) -> Result<Response<RegisterAgentResponse>, Status> {
        let agent = peer_agent(&request)?;
        let request = request.into_inner();
        claim_is_own(&request.agent_id, agent.as_str())?;
        let resources = node_resources(request.resources)?;
        let channel = self
            .driver
            .peers()
            .channel(&request.address, &agent_server_name(&agent))
            .map_err(|e| Status::invalid_argument(e.to_string()))?;
        let event = Event::AgentRegistered { agent: agent.clone(), resources };
        self.driver.handle(event).map_err(refused)?;
        self.driver.audit().record(&format!("agent/{agent}"), "registered", &request.address);
        self.driver.agent_joined(&agent, request.address, channel);
        Ok(Response::new(RegisterAgentResponse { lease_millis: self.lease_millis() }))
    }

    async fn leave_agent(
        &self,
        request: Request<LeaveAgentRequest>,
    ) -> Result<Response<LeaveAgentResponse>, Status> {
        let agent = peer_agent(&request)?;
        claim_is_own(&request.into_inner().agent_id, agent.as_str())?;
        self.driver.audit().record(&format!("agent/{agent}"), "left", "");
        self.driver.handle(Event::AgentLeft { agent }).map_err(refused)?;
        Ok(Response::new(LeaveAgentResponse {}))
    }

    async fn register_worker(
        &self,
        request: Request<RegisterWorkerRequest>,
    ) -> Result<Response<RegisterWorkerResponse>, Status> {
        let (worker, epoch) = peer_worker(&request)?;
        let request = request.into_inner();
        claim_is_own(&request.worker_id, worker.as_str())?;
        claim_is_own(&request.epoch.to_string(), &epoch.to_string())?;
        let who = format!("worker/{worker}");
        let event = Event::WorkerRegistered { worker, epoch, address: request.address.clone() };
        self.driver.handle(event).map_err(refused)?;
        self.driver.audit().record(&who, "registered", &request.address);
        Ok(Response::new(RegisterWorkerResponse { lease_millis: self.lease_millis() }))
    }

    async fn heartbeat(
        &self,
        request: Request<HeartbeatRequest>,
    ) -> Result<Response<HeartbeatResponse>, Status> {
        let event = match peer(&request)? {
            Identity::Agent(agent) => Event::AgentHeartbeat { agent: agent.clone() },
            Identity::Worker { id, epoch, .. } => Event::WorkerHeartbeat {
                worker: id.clone(),
                epoch: *epoch,
                phase: request.get_ref().phase.clone(),
            },
            other => return Err(wrong_kind(other)),
        };
        let response = match self.driver.handle(event) {
            Ok(()) => HeartbeatResponse { stop: false, reason: String::new() },
            Err(refusal) => HeartbeatResponse { stop: true, reason: refusal.to_string() },
        };
        Ok(Response::new(response))
    }

    async fn report_exit(
        &self,
        request: Request<ReportExitRequest>,
    ) -> Result<Response<ReportExitResponse>, Status> {
        let agent = peer_agent(&request)?;
        let request = request.into_inner();
        claim_is_own(&request.agent_id, agent.as_str())?;
        let worker = WorkerId::new(request.worker_id)
            .map_err(|e| Status::invalid_argument(e.to_string()))?;
        let epoch = Epoch(request.epoch);
        if !self.driver.placed_on(&worker, epoch, &agent) {
            // An older process of the slot, one of a released group, or another node's.
            return Ok(Response::new(ReportExitResponse {}));
        }
        self.driver.remember_exit(&worker, epoch, request.stderr_tail);
        let reason = format!("its process ended: {}", request.reason);
        self.driver.take(Event::WorkerExited { worker, epoch, reason });
        Ok(Response::new(ReportExitResponse {}))
    }

    async fn store_set(
        &self,
        request: Request<StoreSetRequest>,
    ) -> Result<Response<StoreSetResponse>, Status> {
        let peer = peer_worker(&request)?;
        self.driver.store().set(&peer, request.into_inner())?;
        Ok(Response::new(StoreSetResponse {}))
    }

    async fn store_get(
        &self,
        request: Request<StoreGetRequest>,
    ) -> Result<Response<StoreGetResponse>, Status> {
        let peer = peer_worker(&request)?;
        let values = self.driver.store().get(&peer, request.into_inner()).await?;
        Ok(Response::new(StoreGetResponse { values }))
    }

    async fn store_add(
        &self,
        request: Request<StoreAddRequest>,
    ) -> Result<Response<StoreAddResponse>, Status> {
        let peer = peer_worker(&request)?;
        let value = self.driver.store().add(&peer, request.into_inner())?;
        Ok(Response::new(StoreAddResponse { value }))
    }

    async fn store_delete(
        &self,
        request: Request<StoreDeleteRequest>,
    ) -> Result<Response<StoreDeleteResponse>, Status> {
        let peer = peer_worker(&request)?;
        let existed = self.driver.store().delete(&peer, request.get_ref())?;
        Ok(Response::new(StoreDeleteResponse { existed }))
    }
}

fn peer_agent<T>(request: &Request<T>) -> Result<AgentId, Status> {
    match peer(request)? {
        Identity::Agent(id) => Ok(id.clone()),
        other => Err(wrong_kind(other)),
    }
}

fn peer_worker<T>(request: &Request<T>) -> Result<Member, Status> {
    match peer(request)? {
        Identity::Worker { id, epoch, .. } => Ok((id.clone(), *epoch)),
        other => Err(wrong_kind(other)),
    }
}

fn wrong_kind(peer: &Identity) -> Status {
    Status::permission_denied(format!("{peer} may not make this call"))
}

/// PE-3: what a message says about its sender must agree with the sender's certificate.
fn claim_is_own(claimed: &str, own: &str) -> Result<(), Status> {
    if claimed == own {
        return Ok(());
    }
    Err(Status::permission_denied(format!(
        "PE-3: the message says {claimed:?}, the certificate says {own:?}"
    )))
}

fn agent_id(text: String) -> Result<AgentId, Status> {
    AgentId::new(text).map_err(|e| Status::invalid_argument(e.to_string()))
}

fn node_resources(resources: Option<Resources>) -> Result<NodeResources, Status> {
    let resources = resources
        .ok_or_else(|| Status::invalid_argument("the registration offers no resources"))?;
    if resources.cpus == 0 {
        return Err(Status::invalid_argument("the node offers 0 CPUs; expected at least 1"));
    }
    let gpu =
        |gpu: plumb_proto::cluster::Gpu| GpuSlot { uuid: gpu.uuid, memory_bytes: gpu.memory_bytes };
    Ok(NodeResources {
        cpus_milli: u64::from(resources.cpus) * 1_000,
        memory_bytes: resources.memory_bytes,
        gpus: resources.gpus.into_iter().map(gpu).collect(),
    })
}

fn refused(refusal: Refusal) -> Status {
    Status::failed_precondition(refusal.to_string())
}
