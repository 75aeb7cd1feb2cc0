//! Generation by the rollout group.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use plumb_config::{Recipe, SamplingConfig};
use plumb_domain::{Epoch, PolicyVersion, Prompt};
use plumb_proto::rollout::rollout_service_client::RolloutServiceClient;
use plumb_proto::rollout::{
    ChatMessage, GenerateProgress, GenerateRequest, LoadRequest, Prompt as WirePrompt,
};
use tokio_stream::StreamExt as _;

use super::RoleGroup;
use super::group::CallId;
use crate::cluster::Worker;
use crate::ports::{Answer, Generated, Generation, PhaseError, PhaseKey, Rollout};

/// What to generate with.
#[derive(Debug, Clone, PartialEq)]
pub struct GenerateSettings {
    /// How tokens are drawn.
    pub sampling: SamplingConfig,
    /// Answers to each prompt.
    pub samples_per_prompt: u32,
    /// Seed of every sample's stream.
    pub seed: u64,
    /// Name of the calls: `generate` in training, another one in other stages, so that no call is
    /// taken for a repeat of another stage's.
    pub phase: &'static str,
}

/// The rollout group with a model loaded.
pub struct RolloutFleet {
    group: Arc<RoleGroup>,
    recipe: Arc<Recipe>,
    settings: GenerateSettings,
    model: PathBuf,
    live: Mutex<Live>,
}

#[derive(Default)]
struct Live {
    version: PolicyVersion,
    /// Worker -> epoch that has loaded the model.
    loaded: BTreeMap<String, Epoch>,
}

impl RolloutFleet {
    /// Loads `model` into every rollout worker as version 0.
    ///
    /// # Errors
    /// A worker was lost or refused the model.
    pub async fn load(
        group: Arc<RoleGroup>,
        recipe: Arc<Recipe>,
        model: PathBuf,
        settings: GenerateSettings,
    ) -> Result<Self, PhaseError> {
        let fleet = Self { group, recipe, settings, model, live: Mutex::default() };
        fleet.load_missing().await?;
        Ok(fleet)
    }

    /// The workers.
    #[must_use]
    pub fn group(&self) -> &Arc<RoleGroup> {
        &self.group
    }

    /// Loads the model into workers whose current epoch does not have it.
    ///
    /// # Errors
    /// As [`RolloutFleet::load`].
    pub async fn load_missing(&self) -> Result<(), PhaseError> {
        let missing: Vec<Worker> = {
            let live = self.live.lock().unwrap_or_else(PoisonError::into_inner);
            let is_loaded = |w: &Worker| live.loaded.get(w.id().as_str()) == Some(&w.epoch());
            self.group.workers().into_iter().filter(|w| !is_loaded(w)).collect()
        };
        let attempt = self.group.fresh_attempt();
        self.group
            .call_all(&missing, "load", |worker, shard| {
                let id = CallId { step: 0, phase: "load", shard, attempt };
                let request = LoadRequest {
                    context: Some(self.group.context(&worker, &id)),
                    model_path: self.model.display().to_string(),
                    dtype: self.recipe.model.dtype.as_str().to_owned(),
                    max_sequences: self.recipe.rollout.max_sequences,
                    kv_cache_bytes: self.recipe.rollout.kv_cache_mib << 20,
                    policy_version: 0,
                    prefill_tokens: self.recipe.rollout.prefill_tokens,
                    deterministic: self.recipe.rollout.deterministic,
                };
                async move { client(&worker).load(request).await.map(tonic::Response::into_inner) }
            })
            .await?;
        let mut live = self.live.lock().unwrap_or_else(PoisonError::into_inner);
        for worker in missing {
            live.loaded.insert(worker.id().to_string(), worker.epoch());
        }
        Ok(())
    }

    /// Notes the version that every worker now has live.
    pub fn set_version(&self, version: PolicyVersion) {
        self.live.lock().unwrap_or_else(PoisonError::into_inner).version = version;
    }

    /// The live version.
    #[must_use]
    pub fn version(&self) -> PolicyVersion {
        self.live.lock().unwrap_or_else(PoisonError::into_inner).version
    }

    /// Splits prompts over the workers, runs them all and puts the groups back in order;
    /// `heard` is told of each group as it is finished.
    ///
    /// # Errors
    /// A worker was lost, or did not answer a prompt.
    pub async fn answer(
        &self,
        key: PhaseKey,
        prompts: &[Prompt],
        heard: &(dyn Fn(&GenerateProgress) + Send + Sync),
    ) -> Result<Generation, PhaseError> {
        let workers = self.group.workers();
        let version = self.version();
        let share = |rank: usize| -> Vec<WirePrompt> {
            let mine = prompts.iter().skip(rank).step_by(workers.len().max(1));
            mine.map(|p| self.wire_prompt(p)).collect()
        };
        let busy: Vec<Worker> = workers.iter().take(prompts.len()).cloned().collect();
        let parts = self
            .group
            .call_all(&busy, self.settings.phase, |worker, shard| {
                let request = self.request(&worker, key, shard, share(shard as usize), version);
                async move { collect(&worker, request, heard).await }
            })
            .await?;
        let mut groups: BTreeMap<String, Generated> = BTreeMap::new();
        for (worker, part) in busy.iter().zip(parts) {
            for progress in part {
                let object = progress.object.ok_or_else(|| {
                    let id = worker.id();
                    PhaseError::Failed(format!("{id}: prompt {} has no object", progress.prompt_id))
                })?;
                let generated = Generated {
                    prompt_id: progress.prompt_id.clone(),
                    label: String::new(),
                    owner: worker.id().to_string(),
                    owner_epoch: worker.epoch(),
                    object,
                    samples: progress.samples,
                };
                groups.insert(progress.prompt_id, generated);
            }
        }
        let groups = prompts
            .iter()
            .map(|prompt| {
                let mut group = groups.remove(prompt.id.as_str()).ok_or_else(|| {
                    PhaseError::Failed(format!("no worker answered prompt {}", prompt.id))
                })?;
                group.label = prompt.label.to_string();
                Ok(group)
            })
            .collect::<Result<Vec<_>, PhaseError>>()?;
        Ok(Generation { groups, policy_version: version })
    }

    fn request(
        &self,
        worker: &Worker,
        key: PhaseKey,
        shard: u32,
        prompts: Vec<WirePrompt>,
        version: PolicyVersion,
    ) -> GenerateRequest {
        let id =
            CallId { step: key.step.0, phase: self.settings.phase, shard, attempt: key.attempt };
        let s = &self.settings.sampling;
        GenerateRequest {
            context: Some(self.group.context(worker, &id)),
            prompts,
            samples_per_prompt: self.settings.samples_per_prompt,
            sampling: Some(s.params().into()),
            seed: self.settings.seed,
            policy_version: version.0,
            max_prompt_tokens: self.recipe.rollout.max_prompt_tokens,
        }
    }

    fn wire_prompt(&self, prompt: &Prompt) -> WirePrompt {
        let message = |role: &str, content: &str| ChatMessage {
            role: role.to_owned(),
            content: content.to_owned(),
        };
        let own_system = prompt.messages.iter().any(|m| m.role == "system");
        let system = self.recipe.data.system_prompt.as_ref().filter(|_| !own_system);
        WirePrompt {
            id: prompt.id.to_string(),
            label: prompt.label.to_string(),
            messages: system
                .map(|text| message("system", text))
                .into_iter()
                .chain(prompt.messages.iter().map(|m| message(&m.role, &m.content)))
                .collect(),
            reference: prompt.reference.clone(),
            text: None,
            token_ids: Vec::new(),
        }
    }
}

impl Rollout for RolloutFleet {
    fn generate<'a>(&'a self, key: PhaseKey, prompts: &'a [Prompt]) -> Answer<'a, Generation> {
        Box::pin(self.answer(key, prompts, &|_| ()))
    }
}

pub(super) fn client(worker: &Worker) -> RolloutServiceClient<tonic::transport::Channel> {
    RolloutServiceClient::new(worker.channel())
        .max_decoding_message_size(plumb_runtime::MAX_MESSAGE_BYTES)
}

async fn collect(
    worker: &Worker,
    request: GenerateRequest,
    heard: &(dyn Fn(&GenerateProgress) + Send + Sync),
) -> Result<Vec<GenerateProgress>, tonic::Status> {
    let mut stream = client(worker).generate(request).await?.into_inner();
    let mut groups = Vec::new();
    while let Some(progress) = stream.next().await {
        let progress = progress?;
        heard(&progress);
        groups.push(progress);
    }
    Ok(groups)
}
