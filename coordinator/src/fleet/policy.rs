//! The model under training: update, publication, commit.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use plumb_config::{OldLogps, Recipe};
use plumb_domain::{PolicyVersion, StepId};
use plumb_proto::actor::{ExportRequest, LoadRequest, UpdateRequest};
use plumb_proto::object::ReleaseRequest;
use plumb_proto::object::object_service_client::ObjectServiceClient;

use super::RoleGroup;
use super::commits::Commits;
use super::critic::{CriticFleet, signals};
use super::figures::figures;
use super::group::CallId;
use super::optimizer::{adopt_average, optimizer_spec};
use super::ptx::Ptx;
use super::reference::{LogProbsQuestion, client, engine_spec, log_probs, lora_spec, shard_group};
use super::weights::Weights;
use crate::algorithm::Algorithm;
use crate::cluster::Worker;
use crate::ports::{
    Answer, CommitReport, Generation, PhaseError, PhaseKey, Policy, ReferenceLogps, UpdatePlan,
    UpdateReport, Values,
};

/// The policy group with the model loaded.
pub struct PolicyFleet {
    group: Arc<RoleGroup>,
    recipe: Arc<Recipe>,
    algorithm: Arc<dyn Algorithm>,
    model: PathBuf,
    commits: Arc<Commits>,
    weights: Arc<Weights>,
    /// Groups whose objects die with a committed step.
    owners: Vec<Arc<RoleGroup>>,
    beside: Beside,
    state: Mutex<State>,
}

/// What some algorithms train beside the policy.
#[derive(Default)]
pub struct Beside {
    /// The critics, which go back to a commit together with the policy.
    pub critics: Option<Arc<CriticFleet>>,
    /// The loss on dialogues.
    pub ptx: Option<Ptx>,
}

struct State {
    /// Held by the policy ranks now.
    version: PolicyVersion,
    /// Never given to any weights yet.
    fresh: PolicyVersion,
    /// Live in the rollout workers.
    published: PolicyVersion,
}

impl PolicyFleet {
    /// Takes the parts; [`PolicyFleet::load`] must follow.
    #[must_use]
    pub fn new(
        group: Arc<RoleGroup>,
        recipe: Arc<Recipe>,
        algorithm: Arc<dyn Algorithm>,
        (model, commits): (PathBuf, Arc<Commits>),
        weights: Arc<Weights>,
        owners: Vec<Arc<RoleGroup>>,
        beside: Beside,
    ) -> Self {
        let state = Mutex::new(State {
            version: PolicyVersion(0),
            fresh: PolicyVersion(1),
            published: PolicyVersion(0),
        });
        Self { group, recipe, algorithm, model, commits, weights, owners, beside, state }
    }

    /// The workers.
    #[must_use]
    pub fn group(&self) -> &Arc<RoleGroup> {
        &self.group
    }

    /// The version that the ranks hold.
    #[must_use]
    pub fn version(&self) -> PolicyVersion {
        self.state().version
    }

    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Loads the last commit, or the model that the run starts from, into every rank, and takes
    /// the algorithm back to it. The first time the weights have the commit's version (0 for the
    /// model that the run starts from). After that they get a version that no weights had before
    /// (EP fencing), so that a rollout worker never takes old weights for new ones. Returns the
    /// step to go on with.
    ///
    /// # Errors
    /// A rank was lost or refused.
    pub async fn load(&self, replay: bool) -> Result<StepId, PhaseError> {
        let version = {
            let mut state = self.state();
            if replay {
                state.version = state.fresh;
                state.fresh = state.fresh.next();
            }
            state.version
        };
        let workers = self.group.workers();
        let name = shard_group(&self.group, &workers).await?;
        let optimizer = optimizer_spec(&self.recipe.algorithm.optimizer);
        let attempt = self.group.fresh_attempt();
        self.group
            .call_all(&workers, "load", |worker, shard| {
                let id = CallId { step: 0, phase: "load", shard, attempt };
                let request = LoadRequest {
                    context: Some(self.group.context(&worker, &id)),
                    model_path: self.model.display().to_string(),
                    engine: Some(engine_spec(&self.recipe, 0)),
                    optimizer: Some(optimizer.clone()),
                    score_head: None,
                    group: name.clone(),
                    policy_version: version.0,
                    lora: lora_spec(&self.recipe, self.recipe.algorithm.lora.as_ref()),
                };
                async move { Ok(client(&worker).load(request).await?.into_inner()) }
            })
            .await?;
        // A commit is restored on top of what the critics start from.
        if let Some(critics) = &self.beside.critics {
            critics.load().await?;
        }
        let Some(commit) = self.commits.restore(replay.then_some(version)).await? else {
            self.algorithm.restore(&serde_json::Value::Null)?;
            return Ok(StepId(0));
        };
        self.algorithm.restore(&commit.algorithm_state)?;
        if !replay {
            let mut state = self.state();
            state.version = PolicyVersion(commit.policy_version);
            state.fresh = state.version.next();
        }
        Ok(StepId(commit.next_step))
    }

    /// Publishes what the ranks hold, whatever the rollout workers have.
    ///
    /// # Errors
    /// As [`Weights::publish`].
    pub async fn publish_current(&self, key: PhaseKey) -> Result<(), PhaseError> {
        let version = self.version();
        self.weights.publish(key, version).await?;
        self.state().published = version;
        Ok(())
    }

    /// Leaves the weights collective, whose members changed.
    pub async fn dissolve_weights(&self) {
        self.weights.dissolve().await;
    }

    /// Writes the weights as a Hugging Face folder. Returns its bytes.
    ///
    /// # Errors
    /// A rank was lost, or the disk refused.
    pub async fn export(&self, folder: &Path, dtype: &str) -> Result<u64, PhaseError> {
        export(&self.group, folder, dtype, false).await
    }

    /// Puts the moving average in the place of the weights, for what is exported from now on.
    ///
    /// # Errors
    /// A rank was lost, or keeps no average.
    pub async fn adopt_average(&self) -> Result<(), PhaseError> {
        adopt_average(&self.group).await
    }

    /// Writes the policy's adapters alone as a PEFT folder.
    ///
    /// # Errors
    /// A rank was lost, or the disk refused.
    pub async fn export_adapter(&self, folder: &Path, dtype: &str) -> Result<u64, PhaseError> {
        export(&self.group, folder, dtype, true).await
    }

    async fn run_update(
        &self,
        key: PhaseKey,
        generation: &Generation,
        reference: &ReferenceLogps,
        values: &Values,
        plan: &UpdatePlan,
    ) -> Result<UpdateReport, PhaseError> {
        if plan.freeze_policy {
            return Ok(UpdateReport { metrics: BTreeMap::new(), policy_version: self.version() });
        }
        let critics = signals(&plan.critics, values)?;
        let a = &self.recipe.algorithm;
        let samples = generation.objects();
        let temperature = self.recipe.sampling.temperature;
        let old_logps = if a.old_logps == OldLogps::Recompute {
            let question =
                LogProbsQuestion { phase: "old_logps", temperature, without_adapters: false };
            let answers = log_probs(&self.group, key, &samples, question).await?;
            answers.into_iter().filter_map(|answer| answer.logps).collect()
        } else {
            Vec::new()
        };
        let version = {
            let mut state = self.state();
            let version = state.version.next();
            state.fresh = state.fresh.max(version.next());
            version
        };
        let workers = self.group.workers();
        let answers = self
            .group
            .call_all(&workers, key.phase.as_str(), |worker, shard| {
                let id = CallId {
                    step: key.step.0,
                    phase: key.phase.as_str(),
                    shard,
                    attempt: key.attempt,
                };
                let request = UpdateRequest {
                    context: Some(self.group.context(&worker, &id)),
                    samples: samples.clone(),
                    reference_logps: reference.objects.clone(),
                    old_logps: old_logps.clone(),
                    advantages: plan.advantages.clone(),
                    loss: Some(self.algorithm.loss()),
                    token_advantage: Some(self.algorithm.token_advantage()),
                    mini_batches: a.mini_batches,
                    epochs: a.epochs,
                    learning_rate: plan.learning_rate,
                    temperature,
                    old_logps_source: a.old_logps.as_str().to_owned(),
                    policy_version: version.0,
                    critics: critics.clone(),
                    cost_weight: plan.cost_weight,
                    whiten: plan.whiten,
                };
                async move { Ok(client(&worker).update(request).await?.into_inner()) }
            })
            .await?;
        let metrics = answers.into_iter().map(|answer| answer.metrics).collect();
        let mut metrics = figures(&format!("the update of step {}", key.step), metrics)?;
        if let Some(ptx) = &self.beside.ptx {
            metrics.extend(ptx.train(key, plan.learning_rate).await?);
        }
        self.state().version = version;
        Ok(UpdateReport { metrics, policy_version: version })
    }

    async fn run_commit(&self, key: PhaseKey) -> Result<CommitReport, PhaseError> {
        let done = key.step.0 + 1;
        let durable = self.finish_commit().await?;
        let due = done.is_multiple_of(self.recipe.checkpoint.every_steps);
        if due || done == self.recipe.algorithm.steps {
            let mut commit = self.commits.commit(done);
            commit.policy_version = self.version().0;
            commit.algorithm_state = self.algorithm.state();
            self.commits.begin(commit).await?;
        }
        self.release_objects(key.step).await;
        Ok(CommitReport { durable })
    }

    /// Completes the commit that was begun, if there is one; returns its last step.
    ///
    /// # Errors
    /// A rank was lost, or the disk refused.
    pub async fn finish_commit(&self) -> Result<Option<StepId>, PhaseError> {
        let commit = self.commits.finish().await?;
        Ok(commit.map(|commit| StepId(commit.next_step.saturating_sub(1))))
    }

    /// Lets the owners drop the objects of steps that are done. A worker that cannot be reached
    /// has none left, so failures do not matter here.
    async fn release_objects(&self, step: StepId) {
        let workers: Vec<Worker> = self.owners.iter().flat_map(|group| group.workers()).collect();
        let release = workers.into_iter().map(|worker| async move {
            let request = ReleaseRequest { up_to_step: step.0 };
            ObjectServiceClient::new(worker.channel()).release(request).await
        });
        for answer in futures::future::join_all(release).await {
            if let Err(status) = answer {
                tracing::debug!(step = step.0, cause = status.message(), "objects not released");
            }
        }
    }
}

impl Policy for PolicyFleet {
    fn update<'a>(
        &'a self,
        key: PhaseKey,
        generation: &'a Generation,
        reference: &'a ReferenceLogps,
        values: &'a Values,
        plan: &'a UpdatePlan,
    ) -> Answer<'a, UpdateReport> {
        Box::pin(self.run_update(key, generation, reference, values, plan))
    }

    fn publish(&self, key: PhaseKey) -> Answer<'_, f64> {
        Box::pin(async move {
            let start = std::time::Instant::now();
            // A step that leaves the policy as it is has nothing to publish.
            let (version, published) = (self.version(), self.state().published);
            if version != published {
                self.publish_current(key).await?;
            }
            Ok(start.elapsed().as_secs_f64())
        })
    }

    fn commit(&self, key: PhaseKey) -> Answer<'_, CommitReport> {
        Box::pin(self.run_commit(key))
    }
}

/// Lets an actor group write its model as a Hugging Face folder. Returns the bytes.
pub(super) async fn export(
    group: &RoleGroup,
    folder: &Path,
    dtype: &str,
    adapter_only: bool,
) -> Result<u64, PhaseError> {
    let workers = group.workers();
    let attempt = group.fresh_attempt();
    let written = group
        .call_all(&workers, "export", |worker, shard| {
            let id = CallId { step: 0, phase: "export", shard, attempt };
            let request = ExportRequest {
                context: Some(group.context(&worker, &id)),
                folder: folder.display().to_string(),
                dtype: dtype.to_owned(),
                adapter_only,
            };
            async move { Ok(client(&worker).export(request).await?.into_inner()) }
        })
        .await?;
    Ok(written.into_iter().map(|w| w.bytes).max().unwrap_or(0))
}
