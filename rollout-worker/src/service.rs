//! The rollout service: checks, hands work to the device thread, streams what is finished.

use std::sync::Arc;

use plumb_domain::{FinishReason, PolicyVersion};
use plumb_proto::rollout::rollout_service_server::RolloutService;
use plumb_proto::rollout::{
    ActivateRequest, ActivateResponse, GenerateProgress, GenerateRequest, LoadRequest,
    LoadResponse, ReceiveRequest, ReceiveResponse, SampleInfo,
};
use plumb_proto::{object, worker::CallContext};
use plumb_runtime::{DeviceThread, Idempotent, WorkerContext};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};

use crate::engine::{EngineError, FinishedGroup, FinishedSample, RequestId};
use crate::groups::Groups;
use crate::progress::ProgressLog;
use crate::request::{Generation, Loading, RequestError};
use crate::state::{State, StateError};

/// Serves [`RolloutService`].
pub struct RolloutServer {
    context: WorkerContext,
    device: DeviceThread<State>,
    groups: Arc<Groups>,
    loads: Idempotent<LoadResponse>,
    receives: Idempotent<ReceiveResponse>,
    activations: Idempotent<ActivateResponse>,
    generations: Idempotent<ProgressLog>,
}

impl RolloutServer {
    /// A service over the device thread.
    #[must_use]
    pub fn new(context: WorkerContext, device: DeviceThread<State>, groups: Arc<Groups>) -> Self {
        Self {
            loads: context.idempotent(),
            receives: context.idempotent(),
            activations: context.idempotent(),
            generations: context.idempotent(),
            context,
            device,
            groups,
        }
    }
}

#[tonic::async_trait]
impl RolloutService for RolloutServer {
    async fn load(&self, request: Request<LoadRequest>) -> Result<Response<LoadResponse>, Status> {
        let request = request.into_inner();
        let loading = Loading::try_from(&request).map_err(invalid)?;
        let (device, groups) = (self.device.clone(), self.groups.clone());
        let work = |_| async move {
            let version = loading.version;
            let parameters =
                device.run(move |state| state.load(&loading)).await?.map_err(status)?;
            groups.set_version(version);
            Ok(LoadResponse { parameters })
        };
        self.loads.run(request.context, work).await.map(Response::new)
    }

    async fn receive(
        &self,
        request: Request<ReceiveRequest>,
    ) -> Result<Response<ReceiveResponse>, Status> {
        let ReceiveRequest { context, policy_version, group } = request.into_inner();
        let device = self.device.clone();
        let work = |_| async move {
            let version = PolicyVersion(policy_version);
            let buckets =
                device.run(move |state| state.receive(&group, version)).await?.map_err(status)?;
            Ok(ReceiveResponse { policy_version, buckets })
        };
        self.receives.run(context, work).await.map(Response::new)
    }

    async fn activate(
        &self,
        request: Request<ActivateRequest>,
    ) -> Result<Response<ActivateResponse>, Status> {
        let ActivateRequest { context, policy_version, buckets } = request.into_inner();
        let (device, groups) = (self.device.clone(), self.groups.clone());
        let work = |_| async move {
            let version = PolicyVersion(policy_version);
            device.run(move |state| state.activate(version, &buckets)).await?.map_err(status)?;
            groups.set_version(version);
            Ok(ActivateResponse { policy_version })
        };
        self.activations.run(context, work).await.map(Response::new)
    }

    type GenerateStream = ReceiverStream<Result<GenerateProgress, Status>>;

    async fn generate(
        &self,
        request: Request<GenerateRequest>,
    ) -> Result<Response<Self::GenerateStream>, Status> {
        let mut request = request.into_inner();
        let call = request.context.take();
        let step = call.as_ref().map_or(0, |context| context.step);
        let generation = Generation::new(request, step).map_err(invalid)?;
        let (context, device) = (self.context.clone(), self.device.clone());
        let work = |call: CallContext| async move {
            let version = generation.version;
            let id = device.run(move |state| state.submit(generation)).await?.map_err(status)?;
            let log = ProgressLog::default();
            let phase = context.phase().enter(&call.phase);
            let driver = Driver { context, device, call, version, id, log: log.clone() };
            tokio::spawn(async move {
                driver.run().await;
                drop(phase);
            });
            Ok(log)
        };
        let log = self.generations.run(call, work).await?;
        Ok(Response::new(log.follow()))
    }
}

/// Keeps the engine stepping for one request and stores what it finishes. The device thread is
/// free for other calls between two steps.
struct Driver {
    context: WorkerContext,
    device: DeviceThread<State>,
    call: CallContext,
    version: PolicyVersion,
    id: RequestId,
    log: ProgressLog,
}

impl Driver {
    async fn run(self) {
        let outcome = self.drive().await;
        if let Err(status) = &outcome {
            tracing::error!(
                job = self.call.job_id,
                step = self.call.step,
                version = %self.version,
                error = status.message(),
                "generation failed"
            );
        }
        self.log.end(outcome);
    }

    async fn drive(&self) -> Result<(), Status> {
        let id = self.id;
        loop {
            let collected =
                self.device.run(move |state| state.advance(id)).await?.map_err(status)?;
            for group in collected.groups {
                self.log.push(self.store(group)?);
            }
            if collected.done {
                let figures = self.device.run(|state| state.figures()).await?;
                tracing::info!(
                    job = self.call.job_id,
                    step = self.call.step,
                    version = %self.version,
                    steps = figures.steps,
                    prefilled_tokens = figures.prefilled_tokens,
                    reused_tokens = figures.reused_tokens,
                    preemptions = figures.preemptions,
                    "generated; figures since the model was loaded"
                );
                return Ok(());
            }
        }
    }

    /// Puts a finished group into the object store.
    // A `Status` is what the stream carries.
    #[allow(clippy::result_large_err)]
    fn store(&self, group: FinishedGroup) -> Result<GenerateProgress, Status> {
        let CallContext { step, phase, shard, attempt, .. } = &self.call;
        let prompt_id = group.prompt.id.clone();
        let batch = sample_batch(*step, group);
        let samples = batch.samples.iter().map(sample_info).collect();
        let name = format!("{phase}/{shard}.{attempt}/{prompt_id}");
        let object = self.context.objects().put_message(*step, &name, &batch)?;
        Ok(GenerateProgress { prompt_id, object: Some(object), samples })
    }
}

/// A finished group as it lies in the object store.
fn sample_batch(step: u64, group: FinishedGroup) -> object::SampleBatch {
    let FinishedGroup { prompt, samples } = group;
    let sample = |sample: FinishedSample| object::Sample {
        id: format!("{step}/{}/{}", prompt.id, sample.index),
        prompt_id: prompt.id.clone(),
        label: prompt.label.clone(),
        prompt_ids: prompt.ids.clone(),
        response_ids: sample.response_ids,
        logps: sample.logps,
        top_logps: sample.top_logps.into_iter().map(top_log_probs).collect(),
        segments: sample
            .segments
            .iter()
            .map(|s| object::VersionSegment { policy_version: s.version.0, tokens: s.tokens })
            .collect(),
        finish: finish_reason(sample.finish).into(),
        question: prompt.question.clone(),
        response: sample.text,
        reference: prompt.reference.clone(),
    };
    object::SampleBatch { samples: samples.into_iter().map(sample).collect() }
}

fn top_log_probs(best: Vec<(u32, f32)>) -> object::TopLogProbs {
    let (ids, logps) = best.into_iter().unzip();
    object::TopLogProbs { ids, logps }
}

fn finish_reason(reason: FinishReason) -> object::FinishReason {
    match reason {
        FinishReason::Eos => object::FinishReason::Eos,
        FinishReason::StopString => object::FinishReason::StopString,
        FinishReason::Length => object::FinishReason::Length,
    }
}

fn sample_info(sample: &object::Sample) -> SampleInfo {
    let tokens = sample.response_ids.len();
    let sum: f64 = sample.logps.iter().map(|p| f64::from(*p)).sum();
    SampleInfo {
        sample_id: sample.id.clone(),
        prompt_id: sample.prompt_id.clone(),
        prompt_tokens: u32::try_from(sample.prompt_ids.len()).unwrap_or(u32::MAX),
        response_tokens: u32::try_from(tokens).unwrap_or(u32::MAX),
        finish: sample.finish,
        mean_logp: sum / tokens.max(1) as f64,
    }
}

fn invalid(error: RequestError) -> Status {
    Status::invalid_argument(error.to_string())
}

fn status(error: StateError) -> Status {
    let message = plumb_runtime::chain(&error);
    match error {
        StateError::Model { .. }
        | StateError::Tokenizer { .. }
        | StateError::Template { .. }
        | StateError::Prompt(_) => Status::invalid_argument(message),
        StateError::NotLoaded
        | StateError::NoGroup { .. }
        | StateError::Version { .. }
        | StateError::Activation(_) => Status::failed_precondition(message),
        StateError::Receive { .. } => Status::aborted(message),
        StateError::Weights { .. } => Status::data_loss(message),
        StateError::Engine(error) => match error {
            EngineError::EmptyPrompt { .. }
            | EngineError::PromptTooLong { .. }
            | EngineError::UnknownToken { .. }
            | EngineError::UnknownPromptToken { .. }
            | EngineError::NothingAllowed
            | EngineError::CacheTooSmall { .. } => Status::invalid_argument(message),
            _ => Status::internal(message),
        },
    }
}

#[cfg(test)]
mod tests {
    use plumb_domain::VersionSegment;

    use super::*;
    use crate::engine::EncodedPrompt;

    #[test]
    fn a_group_becomes_samples_that_pass_their_own_checks() {
        let group = FinishedGroup {
            prompt: EncodedPrompt {
                id: "p-1".into(),
                label: "safety".into(),
                ids: vec![1, 2, 3],
                question: "how?".into(),
                reference: Some("so".into()),
            },
            samples: vec![FinishedSample {
                index: 1,
                response_ids: vec![4, 5],
                logps: vec![-0.5, -1.5],
                top_logps: vec![vec![(4, -0.5)], vec![(9, -0.25), (5, -1.5)]],
                segments: vec![VersionSegment { version: PolicyVersion(7), tokens: 2 }],
                finish: FinishReason::Eos,
                text: "thus".into(),
            }],
        };
        let batch = sample_batch(9, group);
        let sample = &batch.samples[0];
        assert_eq!(sample.id, "9/p-1/1");
        assert_eq!((sample.question.as_str(), sample.response.as_str()), ("how?", "thus"));
        assert_eq!(sample.segments[0].policy_version, 7);
        assert_eq!(
            (&sample.top_logps[1].ids[..], sample.top_logps[1].logps[0]),
            (&[9, 5][..], -0.25)
        );
        let info = sample_info(sample);
        assert_eq!((info.prompt_tokens, info.response_tokens), (3, 2));
        assert_eq!((info.mean_logp, info.finish()), (-1.0, object::FinishReason::Eos));
    }
}
