//! The RPCs of an actor worker. Each fetches what it needs, runs once per call context, and does
//! its tensor work on the device thread.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use plumb_algo::kl::{Clamps, Kind as KlKind};
use plumb_engine::checkpoint::Refused;
use plumb_engine::{EngineError, FileDigest, ShardedModel};
use plumb_proto::actor::actor_service_server::ActorService;
use plumb_proto::actor::{
    AdoptAverageRequest, AdoptAverageResponse, AnswerLogProbsRequest, AnswerLogProbsResponse,
    CheckpointFile, EncodeRequest, EncodeResponse, ExportRequest, ExportResponse,
    FinishCheckpointRequest, FinishCheckpointResponse, LoadCheckpointRequest,
    LoadCheckpointResponse, LoadRequest, LoadResponse, LogProbsRequest, LogProbsResponse,
    MeasurePreferencesRequest, MeasureTextsRequest, MetricsResponse, PublishRequest,
    PublishResponse, RefusedCheckpoint, SampleKl, SaveCheckpointRequest, SaveCheckpointResponse,
    ScorePairsRequest, ScorePairsResponse, TrainPairsRequest, TrainPairsResponse,
    TrainPreferencesRequest, TrainTextsRequest, UpdateRequest, UpdateResponse, UpdateValuesRequest,
    ValuesRequest, ValuesResponse, WeightBucket,
};
use plumb_proto::object::{LogProbBatch, LogProbs};
use plumb_proto::worker::CallContext;
use plumb_runtime::{DeviceThread, Idempotent, WorkerContext};
use tonic::{Request, Response, Status};

use crate::advantage::TokenAdvantages;
use crate::convert::{self, invalid};
use crate::dialogue::LoadedDialogues;
use crate::groups::Groups;
use crate::role::{ActorRole, status};
use crate::samples;
use crate::signal::CriticAdvantages;

/// Serves [`ActorService`].
pub(crate) struct ActorServer {
    worker: Arc<ActorCalls>,
    loads: Idempotent<LoadResponse>,
    log_probs: Idempotent<LogProbsResponse>,
    updates: Idempotent<UpdateResponse>,
    values: Idempotent<ValuesResponse>,
    pair_steps: Idempotent<TrainPairsResponse>,
    pair_scores: Idempotent<ScorePairsResponse>,
    encodings: Idempotent<EncodeResponse>,
    trainings: Idempotent<MetricsResponse>,
    answer_log_probs: Idempotent<AnswerLogProbsResponse>,
    publications: Idempotent<PublishResponse>,
    saves: Idempotent<SaveCheckpointResponse>,
    finished_saves: Idempotent<FinishCheckpointResponse>,
    restores: Idempotent<LoadCheckpointResponse>,
    adoptions: Idempotent<AdoptAverageResponse>,
    exports: Idempotent<ExportResponse>,
}

impl ActorServer {
    /// A server over a device thread.
    pub(crate) fn new(
        context: WorkerContext,
        device: DeviceThread<ActorRole>,
        groups: Arc<Groups>,
    ) -> Self {
        Self {
            loads: context.idempotent(),
            log_probs: context.idempotent(),
            updates: context.idempotent(),
            values: context.idempotent(),
            pair_steps: context.idempotent(),
            pair_scores: context.idempotent(),
            encodings: context.idempotent(),
            trainings: context.idempotent(),
            answer_log_probs: context.idempotent(),
            publications: context.idempotent(),
            saves: context.idempotent(),
            finished_saves: context.idempotent(),
            restores: context.idempotent(),
            adoptions: context.idempotent(),
            exports: context.idempotent(),
            worker: Arc::new(ActorCalls {
                context,
                device,
                groups,
                dialogues: LoadedDialogues::default(),
            }),
        }
    }
}

/// One RPC: unwrap, run once, wrap.
macro_rules! once {
    ($self:ident, $cache:ident, $request:ident, $method:ident) => {{
        let request = $request.into_inner();
        let worker = Arc::clone(&$self.worker);
        let context = request.context.clone();
        let run =
            $self.$cache.run(context, |call| async move { worker.$method(call, request).await });
        Ok(Response::new(run.await?))
    }};
}

#[tonic::async_trait]
impl ActorService for ActorServer {
    async fn load(&self, request: Request<LoadRequest>) -> Result<Response<LoadResponse>, Status> {
        once!(self, loads, request, load)
    }

    async fn log_probs(
        &self,
        request: Request<LogProbsRequest>,
    ) -> Result<Response<LogProbsResponse>, Status> {
        once!(self, log_probs, request, log_probs)
    }

    async fn update(
        &self,
        request: Request<UpdateRequest>,
    ) -> Result<Response<UpdateResponse>, Status> {
        once!(self, updates, request, update)
    }

    async fn values(
        &self,
        request: Request<ValuesRequest>,
    ) -> Result<Response<ValuesResponse>, Status> {
        once!(self, values, request, values)
    }

    async fn update_values(
        &self,
        request: Request<UpdateValuesRequest>,
    ) -> Result<Response<MetricsResponse>, Status> {
        once!(self, trainings, request, update_values)
    }

    async fn train_pairs(
        &self,
        request: Request<TrainPairsRequest>,
    ) -> Result<Response<TrainPairsResponse>, Status> {
        once!(self, pair_steps, request, train_pairs)
    }

    async fn score_pairs(
        &self,
        request: Request<ScorePairsRequest>,
    ) -> Result<Response<ScorePairsResponse>, Status> {
        once!(self, pair_scores, request, score_pairs)
    }

    async fn encode(
        &self,
        request: Request<EncodeRequest>,
    ) -> Result<Response<EncodeResponse>, Status> {
        once!(self, encodings, request, encode)
    }

    async fn train_texts(
        &self,
        request: Request<TrainTextsRequest>,
    ) -> Result<Response<MetricsResponse>, Status> {
        once!(self, trainings, request, train_texts)
    }

    async fn measure_texts(
        &self,
        request: Request<MeasureTextsRequest>,
    ) -> Result<Response<MetricsResponse>, Status> {
        once!(self, trainings, request, measure_texts)
    }

    async fn answer_log_probs(
        &self,
        request: Request<AnswerLogProbsRequest>,
    ) -> Result<Response<AnswerLogProbsResponse>, Status> {
        once!(self, answer_log_probs, request, answer_log_probs)
    }

    async fn train_preferences(
        &self,
        request: Request<TrainPreferencesRequest>,
    ) -> Result<Response<MetricsResponse>, Status> {
        once!(self, trainings, request, train_preferences)
    }

    async fn measure_preferences(
        &self,
        request: Request<MeasurePreferencesRequest>,
    ) -> Result<Response<MetricsResponse>, Status> {
        once!(self, trainings, request, measure_preferences)
    }

    async fn publish(
        &self,
        request: Request<PublishRequest>,
    ) -> Result<Response<PublishResponse>, Status> {
        once!(self, publications, request, publish)
    }

    async fn save_checkpoint(
        &self,
        request: Request<SaveCheckpointRequest>,
    ) -> Result<Response<SaveCheckpointResponse>, Status> {
        once!(self, saves, request, save_checkpoint)
    }

    async fn finish_checkpoint(
        &self,
        request: Request<FinishCheckpointRequest>,
    ) -> Result<Response<FinishCheckpointResponse>, Status> {
        once!(self, finished_saves, request, finish_checkpoint)
    }

    async fn load_checkpoint(
        &self,
        request: Request<LoadCheckpointRequest>,
    ) -> Result<Response<LoadCheckpointResponse>, Status> {
        once!(self, restores, request, load_checkpoint)
    }

    async fn adopt_average(
        &self,
        request: Request<AdoptAverageRequest>,
    ) -> Result<Response<AdoptAverageResponse>, Status> {
        once!(self, adoptions, request, adopt_average)
    }

    async fn export(
        &self,
        request: Request<ExportRequest>,
    ) -> Result<Response<ExportResponse>, Status> {
        once!(self, exports, request, export)
    }
}

/// The bodies of the RPCs; those of supervised and preference training are in `training`.
pub(crate) struct ActorCalls {
    pub(crate) context: WorkerContext,
    device: DeviceThread<ActorRole>,
    groups: Arc<Groups>,
    pub(crate) dialogues: LoadedDialogues,
}

impl ActorCalls {
    /// Runs on the loaded model.
    pub(crate) async fn on_model<R: Send + 'static>(
        &self,
        work: impl FnOnce(&mut ShardedModel) -> Result<R, EngineError> + Send + 'static,
    ) -> Result<R, Status> {
        self.device.run(move |role| work(role.model()?).map_err(status)).await?
    }

    async fn load(&self, _: CallContext, request: LoadRequest) -> Result<LoadResponse, Status> {
        let version = request.policy_version;
        let loaded = self.device.run(move |role| {
            let plan = convert::load_plan(&request, role.device())?;
            role.load(&PathBuf::from(&request.model_path), plan, &request.group, version)
        });
        let (parameters, shard_bytes) = loaded.await??;
        self.groups.set_policy_version(version);
        tracing::info!(parameters, shard_bytes, "model loaded");
        Ok(LoadResponse { parameters, shard_bytes })
    }

    async fn log_probs(
        &self,
        call: CallContext,
        request: LogProbsRequest,
    ) -> Result<LogProbsResponse, Status> {
        let kind = match request.kl_kind.as_str() {
            "" => None,
            name => Some(name.parse::<KlKind>().map_err(|error| invalid("kl_kind", error))?),
        };
        let all = samples::fetch_samples(&self.context, &request.samples).await?;
        let (temperature, without_adapters) = (request.temperature, request.without_adapters);
        let (all, rows) = self
            .on_model(move |model| {
                let rows =
                    |model: &mut ShardedModel| plumb_engine::log_probs(model, &all, temperature);
                let rows = match without_adapters {
                    true => model.without_adapters(rows)?,
                    false => rows(model)?,
                };
                Ok((all, rows))
            })
            .await?;
        let mut batch = LogProbBatch::default();
        let (mut kl, mut tokens) = (Vec::new(), 0);
        for row in rows {
            let sample = &all[row.index];
            tokens += row.logps.len() as u64;
            if let Some(kind) = kind {
                let pairs = sample.rollout_logps.iter().zip(&row.logps);
                let estimate = |(&sampler, &here): (&f32, &f32)| {
                    kind.estimate(Clamps::Off, f64::from(sampler), f64::from(here))
                };
                kl.push(SampleKl {
                    sample_id: sample.id.clone(),
                    kl_sum: pairs.map(estimate).sum(),
                    tokens: row.logps.len() as u32,
                });
            }
            batch.rows.push(LogProbs { sample_id: sample.id.clone(), logps: row.logps });
        }
        let name = format!("{}/{}/{}/logps", call.phase, call.shard, call.attempt);
        let logps = self.context.objects().put_message(call.step, &name, &batch)?;
        Ok(LogProbsResponse { logps: Some(logps), kl, tokens })
    }

    async fn update(
        &self,
        _: CallContext,
        request: UpdateRequest,
    ) -> Result<UpdateResponse, Status> {
        let update = convert::policy_update(&request)?;
        let layout = TokenAdvantages::new(request.token_advantage.as_ref())?;
        let critics = CriticAdvantages::new(&request)?;
        let inputs = samples::fetch_inputs(&self.context, &request).await?;
        let needs_reference = layout.needs_reference()
            || update.objective.kl.is_some()
            || critics.as_ref().is_some_and(CriticAdvantages::needs_reference);
        let mut samples =
            samples::join(inputs, &request.advantages, &layout, &update, needs_reference)?;
        if let Some(critics) = critics {
            critics.lay_on(&self.context, &mut samples).await?;
        }
        let policy_version = request.policy_version;
        let updated = self.device.run(move |role| {
            role.check_next(policy_version)?;
            let metrics = plumb_engine::update_policy(role.model()?, &samples, &update);
            plumb_torch::allocator::give_back();
            let metrics = metrics.map_err(status)?;
            role.set_policy_version(policy_version);
            Ok::<_, Status>(metrics)
        });
        let metrics = updated.await??.into_iter().collect();
        self.groups.set_policy_version(policy_version);
        Ok(UpdateResponse { metrics, policy_version })
    }

    async fn publish(
        &self,
        _: CallContext,
        request: PublishRequest,
    ) -> Result<PublishResponse, Status> {
        let policy_version = request.policy_version;
        let started = Instant::now();
        let sent = self.device.run(move |role| {
            let held = role.policy_version();
            if held != policy_version {
                return Err(Status::failed_precondition(format!(
                    "policy version {policy_version} was asked for, this worker holds {held}"
                )));
            }
            let (model, receivers) = role.model_and_group(&request.group)?;
            model.publish(receivers, policy_version).map_err(status)
        });
        let bucket = |bucket: plumb_engine::publish::Bucket| WeightBucket {
            name: bucket.name,
            bytes: bucket.bytes,
            digest: bucket.digest,
        };
        let buckets = sent.await??.into_iter().map(bucket).collect();
        Ok(PublishResponse { policy_version, buckets, seconds: started.elapsed().as_secs_f64() })
    }

    async fn save_checkpoint(
        &self,
        _: CallContext,
        request: SaveCheckpointRequest,
    ) -> Result<SaveCheckpointResponse, Status> {
        let folder = PathBuf::from(request.folder);
        let copied_bytes = self.on_model(move |model| model.start_checkpoint(&folder)).await?;
        Ok(SaveCheckpointResponse { copied_bytes })
    }

    async fn finish_checkpoint(
        &self,
        _: CallContext,
        _: FinishCheckpointRequest,
    ) -> Result<FinishCheckpointResponse, Status> {
        let files = self.on_model(ShardedModel::finish_checkpoint).await?.unwrap_or_default();
        let file = |FileDigest { name, bytes, digest }| CheckpointFile { name, bytes, digest };
        Ok(FinishCheckpointResponse { files: files.into_iter().map(file).collect() })
    }

    async fn load_checkpoint(
        &self,
        _: CallContext,
        request: LoadCheckpointRequest,
    ) -> Result<LoadCheckpointResponse, Status> {
        let policy_version = request.policy_version;
        let loaded = self.device.run(move |role| {
            let folders: Vec<_> = request.folders.into_iter().map(PathBuf::from).collect();
            match role.model()?.load_newest_checkpoint(&folders) {
                Ok(restored) => {
                    role.set_policy_version(policy_version);
                    Ok(LoadCheckpointResponse {
                        optimizer_step: restored.manifest.optimizer_step,
                        folder: restored.folder.display().to_string(),
                        refused: restored.refused.into_iter().map(refused).collect(),
                    })
                }
                Err(EngineError::NoCheckpoint { refused: all }) => Ok(LoadCheckpointResponse {
                    refused: all.into_iter().map(refused).collect(),
                    ..LoadCheckpointResponse::default()
                }),
                Err(error) => Err(status(error)),
            }
        });
        let response = loaded.await??;
        if !response.folder.is_empty() {
            self.groups.set_policy_version(policy_version);
        }
        Ok(response)
    }

    async fn adopt_average(
        &self,
        _: CallContext,
        _: AdoptAverageRequest,
    ) -> Result<AdoptAverageResponse, Status> {
        self.on_model(ShardedModel::adopt_average).await?;
        Ok(AdoptAverageResponse {})
    }

    async fn export(
        &self,
        _: CallContext,
        request: ExportRequest,
    ) -> Result<ExportResponse, Status> {
        let precision = request.dtype.parse().map_err(|error| invalid("dtype", error))?;
        let folder = PathBuf::from(request.folder);
        let export = move |model: &mut ShardedModel| match request.adapter_only {
            true => model.export_adapter(&folder, precision),
            false => model.export(&folder, precision),
        };
        let bytes = self.on_model(export).await?;
        Ok(ExportResponse { bytes })
    }
}

fn refused(refused: Refused) -> RefusedCheckpoint {
    RefusedCheckpoint { folder: refused.folder.display().to_string(), problem: refused.problem }
}
