//! The reward service.

use std::sync::{Arc, PoisonError, RwLock};

use plumb_proto::object::{Sample, SampleBatch};
use plumb_proto::reward::reward_service_server::RewardService;
use plumb_proto::reward::{LoadRequest, LoadResponse, ScoreRequest, ScoreResponse};
use plumb_runtime::{DeviceThread, GroupPlace, Idempotent, WorkerContext, WorkerHooks};
use tonic::{Request, Response, Status};

use crate::component::{self, Component};
use crate::models::Models;
use crate::plan::Plan;
use crate::score;

/// Serves [`RewardService`].
pub struct RewardServer {
    context: WorkerContext,
    models: DeviceThread<Models>,
    /// The components of the last load; replaced as a whole.
    components: Arc<RwLock<Arc<Vec<Component>>>>,
    loads: Idempotent<LoadResponse>,
    scores: Idempotent<ScoreResponse>,
}

impl RewardServer {
    /// A service over the device thread.
    #[must_use]
    pub fn new(context: WorkerContext, models: DeviceThread<Models>) -> Self {
        Self {
            loads: context.idempotent(),
            scores: context.idempotent(),
            components: Arc::default(),
            context,
            models,
        }
    }
}

#[tonic::async_trait]
impl RewardService for RewardServer {
    async fn load(&self, request: Request<LoadRequest>) -> Result<Response<LoadResponse>, Status> {
        let LoadRequest { context, components: given } = request.into_inner();
        let new = component::parse_all(given)
            .map_err(|error| Status::invalid_argument(plumb_runtime::chain(&error)))?;
        let new = Arc::new(new);
        let (models, components) = (self.models.clone(), self.components.clone());
        let work = |_| async move {
            let wanted = new.clone();
            let parameters = models
                .run(move |models| models.load(&wanted))
                .await?
                .map_err(|error| Status::invalid_argument(plumb_runtime::chain(&error)))?;
            let names = new.iter().map(|component| component.name.clone()).collect();
            *components.write().unwrap_or_else(PoisonError::into_inner) = new;
            Ok(LoadResponse { components: names, parameters })
        };
        self.loads.run(context, work).await.map(Response::new)
    }

    async fn score(
        &self,
        request: Request<ScoreRequest>,
    ) -> Result<Response<ScoreResponse>, Status> {
        let ScoreRequest { context, samples, labels } = request.into_inner();
        let components = self.components.read().unwrap_or_else(PoisonError::into_inner).clone();
        let (worker, models) = (self.context.clone(), self.models.clone());
        let work = |_| async move {
            let mut fetched: Vec<Sample> = Vec::new();
            for reference in &samples {
                fetched.extend(worker.fetch_message::<SampleBatch>(reference).await?.samples);
            }
            let names: Vec<String> = components.iter().map(|c| c.name.clone()).collect();
            let plan = Plan::new(&names, &labels, &fetched)
                .map_err(|error| Status::invalid_argument(error.to_string()))?;
            let scores = score::score(&components, &models, Arc::new(fetched), &plan).await?;
            report_failures(&scores);
            Ok(ScoreResponse { scores })
        };
        self.scores.run(context, work).await.map(Response::new)
    }
}

/// One line for each component that failed, with its first reason: the caller decides what a
/// failure means, but the log must say that there was one.
fn report_failures(scores: &[plumb_proto::reward::SampleScore]) {
    let mut failed: std::collections::BTreeMap<&str, (usize, &str, &str)> = Default::default();
    for sample in scores {
        for score in &sample.scores {
            let Some(error) = &score.error else { continue };
            failed.entry(&score.component).or_insert((0, &sample.sample_id, error)).0 += 1;
        }
    }
    for (component, (samples, first, error)) in failed {
        tracing::warn!(component, samples, first, error, "a reward component failed");
    }
}

/// The worker's part of the common service: a reward worker is in no collective group.
#[derive(Debug, Clone, Copy, Default)]
pub struct NoGroups;

#[tonic::async_trait]
impl WorkerHooks for NoGroups {
    async fn init_group(&self, place: GroupPlace) -> Result<(), Status> {
        Err(Status::unimplemented(format!(
            "a reward worker takes no part in group {:?}",
            place.group
        )))
    }

    async fn abort_group(&self, _group: &str) -> Result<(), Status> {
        Ok(())
    }
}
