//! A process for the cluster tests. Called `rollout-worker`, `reward-worker` or `actor-worker` it
//! is a worker that holds no model; `cluster-node agent <token file>` is an agent whose worker
//! binaries lie beside it.
//!
//! The worker plays the rollout service: `Generate` behaves as the prompt's id says.

#![allow(clippy::print_stderr)] // its agent captures stderr

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail};
use bytes::Bytes;
use futures::stream::BoxStream;
use plumb_coordinator::agent::{self, AgentSettings};
use plumb_coordinator::cluster::AgentToken;
use plumb_proto::rollout::rollout_service_server::{RolloutService, RolloutServiceServer};
use plumb_proto::rollout::{
    ActivateRequest, ActivateResponse, GenerateProgress, GenerateRequest, LoadRequest,
    LoadResponse, ReceiveRequest, ReceiveResponse,
};
use plumb_runtime::{
    Bootstrap, DeviceThread, GroupPlace, Idempotent, Worker, WorkerContext, WorkerHooks,
};
use tonic::{Request, Response, Status};

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let mut args = std::env::args();
    let name = args.next().unwrap_or_default();
    if name.ends_with("-worker") {
        return worker().await;
    }
    match (args.next().as_deref(), args.next()) {
        (Some("agent"), Some(token)) => {
            let token = AgentToken::read(Path::new(&token))?;
            Ok(agent::run(AgentSettings::new(token)?).await?)
        }
        _ => bail!("usage: cluster-node agent <token file>"),
    }
}

async fn worker() -> anyhow::Result<()> {
    let bootstrap = Bootstrap::from_stdin()?;
    eprintln!("{} epoch {} starts", bootstrap.worker_id, bootstrap.epoch);
    let worker = Worker::start(bootstrap).await?;
    let context = worker.context().clone();
    let device = DeviceThread::spawn("test", || 0_u64)?;
    let role = Role { loads: context.idempotent(), context, device };
    let role = Arc::new(role);
    let routes = tonic::service::Routes::new(RolloutServiceServer::from_arc(Arc::clone(&role)));
    worker.serve(role, routes).await.context("serve")
}

struct Role {
    context: WorkerContext,
    device: DeviceThread<u64>,
    loads: Idempotent<LoadResponse>,
}

#[tonic::async_trait]
impl WorkerHooks for Role {
    /// Every rank leaves its rank in the store and waits for the others.
    async fn init_group(&self, place: GroupPlace) -> Result<(), Status> {
        let joined = self.device.run(move |_| {
            place.store.set(&format!("rank/{}", place.rank), &[1])?;
            let arrived = place.store.add("arrived", 1)?;
            let keys: Vec<String> = (0..place.world_size).map(|r| format!("rank/{r}")).collect();
            place.store.wait(&keys, place.timeout)?;
            Ok::<_, plumb_runtime::RendezvousError>(arrived)
        });
        joined.await?.map(|_| ()).map_err(|e| Status::aborted(e.to_string()))
    }

    async fn abort_group(&self, group: &str) -> Result<(), Status> {
        eprintln!("told to abort group {group}");
        Ok(())
    }
}

#[tonic::async_trait]
impl RolloutService for Role {
    type GenerateStream = BoxStream<'static, Result<GenerateProgress, Status>>;

    /// Counts how often it really ran.
    async fn load(&self, request: Request<LoadRequest>) -> Result<Response<LoadResponse>, Status> {
        let device = self.device.clone();
        let work = |_| async move {
            let parameters = device
                .run(|runs| {
                    *runs += 1;
                    *runs
                })
                .await?;
            Ok(LoadResponse { parameters })
        };
        self.loads.run(request.into_inner().context, work).await.map(Response::new)
    }

    async fn receive(
        &self,
        _request: Request<ReceiveRequest>,
    ) -> Result<Response<ReceiveResponse>, Status> {
        Err(Status::unimplemented("the test worker has no weights"))
    }

    async fn activate(
        &self,
        _request: Request<ActivateRequest>,
    ) -> Result<Response<ActivateResponse>, Status> {
        Err(Status::unimplemented("the test worker has no weights"))
    }

    async fn generate(
        &self,
        request: Request<GenerateRequest>,
    ) -> Result<Response<Self::GenerateStream>, Status> {
        let request = request.into_inner();
        let call = self.context.check_epoch(request.context)?;
        let _phase = self.context.phase().enter("generate");
        let prompt_id = request.prompts.first().map(|p| p.id.clone()).unwrap_or_default();
        match prompt_id.as_str() {
            // A kernel that takes for ever: only the device thread is busy.
            "hang" => {
                self.device.run(|_| std::thread::sleep(Duration::from_secs(600))).await?;
                Err(Status::internal("the hang ended"))
            }
            "die" => {
                eprintln!("cannot go on: out of luck");
                std::process::exit(7);
            }
            _ => {
                let text = Bytes::from(prompt_id.clone().repeat(100_000));
                let object = self.context.objects().put(call.step, &prompt_id, text)?;
                let progress =
                    GenerateProgress { prompt_id, object: Some(object), samples: Vec::new() };
                Ok(Response::new(Box::pin(futures::stream::iter([Ok(progress)]))))
            }
        }
    }
}
