//! The service that the command line calls: admits jobs, shows and ends them.
//!
//! - **JO-1**: a job that cannot run is refused at submission, before anything starts.
//! - **JO-2**: one job at a time in a run folder, whoever runs the other one.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};

use plumb_config::Recipe;
use plumb_domain::JobId;
use plumb_proto::job::job_event::Event;
use plumb_proto::job::job_service_server::{JobService, JobServiceServer};
use plumb_proto::job::{
    CancelRequest, CancelResponse, JobEvent, Node, NodesRequest, NodesResponse, ShutdownRequest,
    ShutdownResponse, SubmitRequest, SubmitResponse, WatchRequest,
};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio_stream::Stream;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status};

use super::error::{JobError, chain};
use super::events::EventLog;
use super::folder::RunFolder;
use super::resume;
use super::runner::{self, Job};
use crate::cluster::Cluster;

/// The jobs of a coordinator. Cheap to clone.
#[derive(Clone)]
pub struct Jobs(Arc<Inner>);

struct Inner {
    cluster: Cluster,
    stop: CancellationToken,
    jobs: Mutex<BTreeMap<String, Running>>,
}

struct Running {
    events: Arc<EventLog>,
    cancel: CancellationToken,
    task: Option<JoinHandle<()>>,
}

impl Jobs {
    /// No job yet; `stop` is cancelled by `Shutdown`.
    #[must_use]
    pub fn new(cluster: Cluster, stop: CancellationToken) -> Self {
        Self(Arc::new(Inner { cluster, stop, jobs: Mutex::default() }))
    }

    /// The gRPC service.
    #[must_use]
    pub fn service(&self) -> JobServiceServer<Self> {
        JobServiceServer::new(self.clone())
            .max_decoding_message_size(plumb_runtime::MAX_MESSAGE_BYTES)
    }

    /// Cancels every job and waits until each has ended and its workers are told to stop.
    pub async fn cancel_all(&self) {
        let tasks: Vec<JoinHandle<()>> = {
            let mut jobs = self.jobs();
            jobs.values_mut()
                .filter_map(|job| {
                    job.cancel.cancel();
                    job.task.take()
                })
                .collect()
        };
        for task in tasks {
            // A job that panicked has ended too.
            let _ = task.await;
        }
    }

    fn jobs(&self) -> std::sync::MutexGuard<'_, BTreeMap<String, Running>> {
        self.0.jobs.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Checks a recipe, takes the run folder's lock and starts the job.
    fn admit(&self, request: &SubmitRequest) -> Result<JobId, JobError> {
        let recipe = Recipe::from_toml(&request.recipe_toml, Path::new("(submitted)"), &[])?;
        let folder = RunFolder::open(Path::new(&request.run_dir))?;
        let resume = request.resume && resume::is_there(&folder, &recipe)?;
        let mut jobs = self.jobs();
        let number = jobs.len() + 1;
        let id = job_id(&recipe.name, number)?;
        let events = Arc::new(EventLog::default());
        let cancel = CancellationToken::new();
        let job = Job {
            id: id.clone(),
            prefix: if number == 1 { String::new() } else { format!("job{number}.") },
            recipe,
            base_dir: PathBuf::from(&request.base_dir),
            folder,
            events: events.clone(),
            cancel: cancel.clone(),
            resume,
        };
        if request.resume && !resume {
            let folder = job.folder.root().display();
            events.notice("info", format!("{folder} holds no job to resume; a new one begins"));
        }
        let task = tokio::spawn(runner::run(job, self.0.cluster.clone()));
        jobs.insert(id.to_string(), Running { events, cancel, task: Some(task) });
        Ok(id)
    }

    fn find<T>(&self, id: &str, take: impl Fn(&Running) -> T) -> Result<T, Status> {
        let jobs = self.jobs();
        jobs.get(id).map(take).ok_or_else(|| {
            let known: Vec<&str> = jobs.keys().map(String::as_str).collect();
            Status::not_found(format!("no job {id:?}; there are: {}", known.join(", ")))
        })
    }
}

/// `<recipe name>-<number>`, with what an id may not hold replaced.
fn job_id(name: &str, number: usize) -> Result<JobId, JobError> {
    let plain: String = name
        .chars()
        .take(80)
        .map(|c| if c.is_ascii_alphanumeric() || c == '-' || c == '_' { c } else { '-' })
        .collect();
    JobId::new(format!("{plain}-{number}")).map_err(|error| JobError::Input {
        what: format!("name = {name:?}"),
        problem: error.to_string(),
        fix: "give the recipe a short plain name".to_owned(),
    })
}

#[tonic::async_trait]
impl JobService for Jobs {
    async fn submit(
        &self,
        request: Request<SubmitRequest>,
    ) -> Result<Response<SubmitResponse>, Status> {
        let id = self.admit(&request.into_inner()).map_err(|error| match &error {
            JobError::FolderInUse { .. } => Status::already_exists(chain(&error)),
            JobError::Io { .. } | JobError::OtherRecipe { .. } => {
                Status::failed_precondition(chain(&error))
            }
            _ => Status::invalid_argument(chain(&error)),
        })?;
        tracing::info!(job = %id, "job admitted");
        Ok(Response::new(SubmitResponse { job_id: id.to_string() }))
    }

    type WatchStream = Pin<Box<dyn Stream<Item = Result<JobEvent, Status>> + Send>>;

    async fn watch(
        &self,
        request: Request<WatchRequest>,
    ) -> Result<Response<Self::WatchStream>, Status> {
        let request = request.into_inner();
        let events = self.find(&request.job_id, |job| job.events.clone())?;
        let (sender, receiver) = mpsc::channel(64);
        tokio::spawn(send_events(events, request.from_event as usize, sender));
        Ok(Response::new(Box::pin(ReceiverStream::new(receiver))))
    }

    async fn cancel(
        &self,
        request: Request<CancelRequest>,
    ) -> Result<Response<CancelResponse>, Status> {
        self.find(&request.into_inner().job_id, |job| job.cancel.cancel())?;
        Ok(Response::new(CancelResponse {}))
    }

    async fn nodes(&self, _: Request<NodesRequest>) -> Result<Response<NodesResponse>, Status> {
        let nodes = self.0.cluster.nodes().into_iter().map(|node| Node {
            agent_id: node.agent.to_string(),
            address: node.address,
            cpus: (node.resources.cpus_milli / 1000) as u32,
            memory_bytes: node.resources.memory_bytes,
            gpus: node.resources.gpus.len() as u32,
            workers: node.workers,
        });
        Ok(Response::new(NodesResponse { nodes: nodes.collect() }))
    }

    async fn shutdown(
        &self,
        _: Request<ShutdownRequest>,
    ) -> Result<Response<ShutdownResponse>, Status> {
        self.cancel_all().await;
        self.0.stop.cancel();
        Ok(Response::new(ShutdownResponse {}))
    }
}

/// Sends events from `next` on until the job's last one, or until the watcher has gone.
async fn send_events(
    events: Arc<EventLog>,
    mut next: usize,
    sender: mpsc::Sender<Result<JobEvent, Status>>,
) {
    loop {
        let (batch, mut count) = events.from(next);
        for event in batch {
            next += 1;
            let last = matches!(event.event, Some(Event::JobFinished(_)));
            if sender.send(Ok(event)).await.is_err() || last {
                return;
            }
        }
        if count.wait_for(|count| *count > next).await.is_err() {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_job_id_is_plain() {
        assert_eq!(job_id("my run/é", 2).unwrap().as_str(), "my-run---2");
    }

    #[tokio::test]
    async fn a_watcher_gets_events_until_the_last_one() {
        let events = Arc::new(EventLog::default());
        let (sender, mut receiver) = mpsc::channel(4);
        let task = tokio::spawn(send_events(events.clone(), 0, sender));
        events.notice("info", "one");
        events.job_finished("succeeded", "", "");
        events.notice("info", "after the end");
        let mut seen = 0;
        while receiver.recv().await.is_some() {
            seen += 1;
        }
        task.await.unwrap();
        assert_eq!(seen, 2);
    }
}
