//! Log-probs of the frozen reference.

use std::path::PathBuf;
use std::sync::Arc;

use plumb_config::{LoraConfig, Recipe};
use plumb_proto::actor::actor_service_client::ActorServiceClient;
use plumb_proto::actor::{EngineSpec, LoadRequest, LogProbsRequest, LogProbsResponse, LoraSpec};
use plumb_proto::object::ObjectRef;
use tokio::sync::Mutex;

use super::RoleGroup;
use super::group::CallId;
use crate::cluster::Worker;
use crate::ports::{Answer, Generation, PhaseError, PhaseKey, Reference, ReferenceLogps};

/// KL to the reference is always measured with this estimator: unbiased and never negative.
const MEASURED_KL: &str = "k3";

/// The group that answers for the reference.
pub struct ReferenceFleet {
    group: Arc<RoleGroup>,
    recipe: Arc<Recipe>,
    model: ReferenceModel,
}

/// What the reference is.
enum ReferenceModel {
    /// The untrained model, loaded into a group of its own.
    Own { folder: PathBuf, loaded: Mutex<Vec<Worker>> },
    /// The policy with its adapters switched off.
    PolicyWithoutAdapters,
}

impl ReferenceFleet {
    /// Loads `model`, frozen.
    ///
    /// # Errors
    /// A worker was lost or refused the model.
    pub async fn load(
        group: Arc<RoleGroup>,
        recipe: Arc<Recipe>,
        model: PathBuf,
    ) -> Result<Self, PhaseError> {
        let model = ReferenceModel::Own { folder: model, loaded: Mutex::default() };
        let fleet = Self { group, recipe, model };
        fleet.load_missing().await?;
        Ok(fleet)
    }

    /// The reference of a policy that trains adapters: the policy's own group, which answers with
    /// them switched off. No second model is held.
    #[must_use]
    pub fn of_policy(policy: Arc<RoleGroup>, recipe: Arc<Recipe>) -> Self {
        Self { group: policy, recipe, model: ReferenceModel::PolicyWithoutAdapters }
    }

    /// The workers.
    #[must_use]
    pub fn group(&self) -> &Arc<RoleGroup> {
        &self.group
    }

    /// Loads the whole group again if its epoch has changed; a policy loads itself.
    ///
    /// # Errors
    /// As [`ReferenceFleet::load`].
    pub async fn load_missing(&self) -> Result<(), PhaseError> {
        let ReferenceModel::Own { folder, loaded } = &self.model else { return Ok(()) };
        let mut loaded = loaded.lock().await;
        let workers = self.group.workers();
        let same = |a: &Worker, b: &Worker| a.id() == b.id() && a.epoch() == b.epoch();
        let all_same =
            loaded.len() == workers.len() && loaded.iter().zip(&workers).all(|(a, b)| same(a, b));
        if all_same {
            return Ok(());
        }
        let name = shard_group(&self.group, &workers).await?;
        let attempt = self.group.fresh_attempt();
        self.group
            .call_all(&workers, "load", |worker, shard| {
                let id = CallId { step: 0, phase: "load", shard, attempt };
                let request = LoadRequest {
                    context: Some(self.group.context(&worker, &id)),
                    model_path: folder.display().to_string(),
                    engine: Some(engine_spec(&self.recipe, 0)),
                    optimizer: None,
                    score_head: None,
                    group: name.clone(),
                    policy_version: 0,
                    lora: None,
                };
                async move { client(&worker).load(request).await.map(tonic::Response::into_inner) }
            })
            .await?;
        *loaded = workers;
        Ok(())
    }

    async fn ask(
        &self,
        key: PhaseKey,
        generation: &Generation,
    ) -> Result<ReferenceLogps, PhaseError> {
        let question = LogProbsQuestion {
            phase: key.phase.as_str(),
            temperature: self.recipe.sampling.temperature,
            without_adapters: matches!(self.model, ReferenceModel::PolicyWithoutAdapters),
        };
        let answers = log_probs(&self.group, key, &generation.objects(), question).await?;
        let mut all = ReferenceLogps::default();
        for answer in answers {
            all.objects.extend(answer.logps);
            all.tokens += answer.kl.iter().map(|k| u64::from(k.tokens)).sum::<u64>();
            all.kl_sum.extend(answer.kl.into_iter().map(|k| (k.sample_id, k.kl_sum)));
        }
        let samples = generation.samples().count();
        if all.kl_sum.len() != samples {
            return Err(PhaseError::Failed(format!(
                "the reference answered for {} of {samples} samples",
                all.kl_sum.len()
            )));
        }
        Ok(all)
    }
}

impl Reference for ReferenceFleet {
    fn log_probs<'a>(
        &'a self,
        key: PhaseKey,
        generation: &'a Generation,
    ) -> Answer<'a, ReferenceLogps> {
        Box::pin(self.ask(key, generation))
    }
}

/// What is asked of samples.
#[derive(Debug, Clone, Copy)]
pub(super) struct LogProbsQuestion<'a> {
    /// Name of the call, unique within its step.
    pub(super) phase: &'a str,
    /// Softmax temperature.
    pub(super) temperature: f64,
    /// Whether adapters are switched off.
    pub(super) without_adapters: bool,
}

/// Asks every rank of an actor group for its share of the samples' log-probs.
pub(super) async fn log_probs(
    group: &RoleGroup,
    key: PhaseKey,
    samples: &[ObjectRef],
    question: LogProbsQuestion<'_>,
) -> Result<Vec<LogProbsResponse>, PhaseError> {
    let workers = group.workers();
    let LogProbsQuestion { phase, temperature, without_adapters } = question;
    group
        .call_all(&workers, phase, |worker, shard| {
            let id = CallId { step: key.step.0, phase, shard, attempt: key.attempt };
            let request = LogProbsRequest {
                context: Some(group.context(&worker, &id)),
                samples: samples.to_vec(),
                kl_kind: MEASURED_KL.to_owned(),
                temperature,
                without_adapters,
            };
            async move { client(&worker).log_probs(request).await.map(tonic::Response::into_inner) }
        })
        .await
}

/// Forms the collective that a model is sharded over; a lone rank needs none.
pub(super) async fn shard_group(
    group: &RoleGroup,
    workers: &[Worker],
) -> Result<String, PhaseError> {
    if workers.len() < 2 {
        return Ok(String::new());
    }
    let name = group.collective_name(group.role().as_str());
    group.collective(&name, workers).await?;
    Ok(name)
}

/// The engine settings of a recipe.
pub(super) fn engine_spec(recipe: &Recipe, frozen_layers: u32) -> EngineSpec {
    EngineSpec {
        compute_dtype: recipe.model.dtype.as_str().to_owned(),
        reduce_dtype: recipe.engine.reduce_dtype.as_str().to_owned(),
        recompute: recipe.engine.recompute,
        reshard_after_forward: recipe.engine.reshard_after_forward,
        micro_batch_tokens: recipe.engine.micro_batch_tokens,
        frozen_layers,
        offload_optimizer: recipe.engine.offload.optimizer,
        offload_parameters: recipe.engine.offload.parameters,
        one_sample_a_pass: recipe.rollout.deterministic,
    }
}

/// Adapters as a recipe asks for them.
pub(super) fn lora_spec(recipe: &Recipe, lora: Option<&LoraConfig>) -> Option<LoraSpec> {
    // Workers have working directories of their own. A folder that is not there is named by them.
    let absolute = |path: &String| match std::fs::canonicalize(path) {
        Ok(absolute) => absolute.display().to_string(),
        Err(_) => path.clone(),
    };
    lora.map(|lora| LoraSpec {
        rank: lora.rank,
        alpha: lora.alpha,
        dropout: lora.dropout,
        targets: lora.targets.iter().map(|target| target.as_str().to_owned()).collect(),
        seed: recipe.seed,
        adapter_path: lora.adapter.as_ref().map_or(String::new(), absolute),
    })
}

pub(super) fn client(worker: &Worker) -> ActorServiceClient<tonic::transport::Channel> {
    ActorServiceClient::new(worker.channel())
        .max_decoding_message_size(plumb_runtime::MAX_MESSAGE_BYTES)
        .max_encoding_message_size(plumb_runtime::MAX_MESSAGE_BYTES)
}
