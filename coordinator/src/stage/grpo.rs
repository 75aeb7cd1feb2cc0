//! `grpo`, `ppo` and `ppo_lag`: places the roles, wires the ports, runs the steps.

use std::collections::BTreeMap;
use std::sync::Arc;

use plumb_config::GrpoStage;
use plumb_domain::{PolicyVersion, Role, StepId};
use plumb_telemetry::{JsonLines, metric};

use super::draw::Draw;
use super::journal::StepJournal;
use super::model_source::component_path;
use super::sample_log::{SampleLine, fetch};
use super::skipped::warn_of_skipped;
use super::training_data::encoded_ptx;
use super::{Figures, Outputs, StageContext};
use crate::algorithm::{self, Algorithm};
use crate::fleet::RoleGroup;
use crate::fleet::commits::Commits;
use crate::fleet::critic::{CriticFleet, critics_of};
use crate::fleet::policy::{Beside, PolicyFleet};
use crate::fleet::ptx::Ptx;
use crate::fleet::recovery::FleetRecovery;
use crate::fleet::reference::ReferenceFleet;
use crate::fleet::rewards::RewardFleet;
use crate::fleet::rollout::{GenerateSettings, RolloutFleet};
use crate::fleet::trainer::Trainer;
use crate::fleet::weights::Weights;
use crate::job::error::JobError;
use crate::job::summary::KlSummary;
use crate::ports::retry::Retry;
use crate::ports::{
    Answer, Critics, Generation, Phase, PhaseError, PhaseKey, PlainSample, Recovery, SampleScores,
    Texts,
};
use crate::step::{Step, StepOutcome};

/// Between the attempts of two replays, so that retries within one never meet the next one's.
const ATTEMPTS_PER_REPLAY: u32 = 1000;

/// The roles of the stage.
struct Roles {
    policy: Arc<PolicyFleet>,
    rollout: Arc<RolloutFleet>,
    rewards: Arc<RewardFleet>,
    reference: Arc<ReferenceFleet>,
    critics: Option<Arc<CriticFleet>>,
    algorithm: Arc<dyn Algorithm>,
    commits: Arc<Commits>,
}

pub(super) async fn run(
    stage: &GrpoStage,
    context: &StageContext,
    outputs: &mut Outputs,
) -> Result<Figures, JobError> {
    let recipe = &context.recipe;
    let prompts = Draw::new(
        &outputs.train,
        &recipe.data.label_weights,
        recipe.algorithm.prompts_per_step as usize,
        recipe.seed,
    );
    if prompts.is_empty() {
        return Err(JobError::Stage {
            stage: stage.name.clone(),
            problem: "no training prompt has a label with a weight above 0".to_owned(),
        });
    }
    let (roles, first) = place(stage, context, outputs).await?;
    let recovery: Arc<dyn Recovery> = Arc::new(FleetRecovery {
        policy: roles.policy.clone(),
        rollout: roles.rollout.clone(),
        rewards: roles.rewards.clone(),
        reference: roles.reference.clone(),
        events: context.events.clone(),
        log: context.log.clone(),
    });
    let journal = StepJournal::new(&context.log, first, roles.policy.version());
    let texts = Reader { context };
    let ports = Ports::new(&roles, &recovery);
    let step = Step {
        prompts: &prompts,
        rollout: &ports.rollout,
        rewards: &ports.rewards,
        critics: ports.critics.as_ref().map(|critics| critics as &dyn Critics),
        reference: &ports.reference,
        texts: &texts,
        policy: &ports.policy,
        journal: &journal,
        algorithm: &*roles.algorithm,
    };
    let figures =
        Loop { stage, context, step, roles: &roles, journal: &journal, recovery: &*recovery }
            .run(first)
            .await?;
    outputs.kl = figures.1;
    outputs.artefacts.insert("checkpoint".to_owned(), "checkpoint".to_owned());
    outputs.policy = Some(roles.policy);
    outputs.rewards = Some(roles.rewards);
    Ok(figures.0)
}

/// The ports with their decorators.
struct Ports {
    rollout: Retry<RolloutFleet>,
    rewards: Retry<RewardFleet>,
    reference: Retry<ReferenceFleet>,
    critics: Option<Retry<CriticFleet>>,
    policy: Retry<PolicyFleet>,
}

impl Ports {
    fn new(roles: &Roles, recovery: &Arc<dyn Recovery>) -> Self {
        Self {
            rollout: Retry::new(roles.rollout.clone(), recovery.clone()),
            rewards: Retry::new(roles.rewards.clone(), recovery.clone()),
            reference: Retry::new(roles.reference.clone(), recovery.clone()),
            critics: roles.critics.clone().map(|c| Retry::new(c, recovery.clone())),
            policy: Retry::new(roles.policy.clone(), recovery.clone()),
        }
    }
}

/// Places all roles and loads their models, all at once. Returns the first step to run.
async fn place(
    stage: &GrpoStage,
    context: &StageContext,
    outputs: &Outputs,
) -> Result<(Roles, StepId), JobError> {
    let (recipe, fleet) = (&context.recipe, &context.fleet);
    // A policy with adapters is its own reference, without them.
    let reference = async {
        match &recipe.algorithm.lora {
            Some(_) => Ok(None),
            None => fleet.group(Role::Reference).await.map(Some),
        }
    };
    let (policy, reference, rollout, reward) = futures::try_join!(
        fleet.group(Role::Policy),
        reference,
        fleet.group(Role::Rollout),
        fleet.group(Role::Reward),
    )?;
    let settings = GenerateSettings {
        sampling: recipe.sampling.clone(),
        samples_per_prompt: recipe.algorithm.samples_per_prompt,
        seed: recipe.seed,
        phase: Phase::Generate.as_str(),
    };
    let model = &outputs.model;
    let component = |name: &str| component_path(context, name);
    let reference = async {
        match reference {
            Some(group) => ReferenceFleet::load(group, recipe.clone(), model.clone()).await,
            None => Ok(ReferenceFleet::of_policy(policy.clone(), recipe.clone())),
        }
    };
    let (rollout, rewards, reference) = futures::try_join!(
        RolloutFleet::load(rollout, recipe.clone(), model.clone(), settings),
        RewardFleet::load(reward, recipe, component),
        reference,
    )?;
    let (rollout, rewards, reference) = (Arc::new(rollout), Arc::new(rewards), Arc::new(reference));
    let algorithm = algorithm::of_recipe(recipe);
    let beside = beside(context, outputs, &policy).await?;
    let critics = beside.critics.clone();
    let critic_groups = critics.as_ref().map(|critics| critics.groups()).unwrap_or_default();
    let trained = [vec![policy.clone()], critic_groups.clone()].concat();
    let commits = Arc::new(context.commits(&stage.name, trained));
    let owners = [vec![rollout.group().clone(), reference.group().clone()], critic_groups];
    let policy = Arc::new(PolicyFleet::new(
        policy.clone(),
        recipe.clone(),
        algorithm.clone(),
        (model.clone(), commits.clone()),
        Arc::new(Weights::new(policy, rollout.clone())),
        owners.concat(),
        beside,
    ));
    let first = policy.load(false).await?;
    if policy.version() > PolicyVersion(0) {
        let key = PhaseKey { step: first, phase: Phase::Publish, attempt: 0 };
        policy.publish_current(key).await?;
    }
    Ok((Roles { policy, rollout, rewards, reference, critics, algorithm, commits }, first))
}

/// What the algorithm trains beside the policy: places the critics, reads the PTX loss's dialogues.
async fn beside(
    context: &StageContext,
    outputs: &Outputs,
    policy: &Arc<RoleGroup>,
) -> Result<Beside, JobError> {
    let (recipe, model) = (&context.recipe, &outputs.model);
    let mut critics = Vec::new();
    for (role, config) in critics_of(&recipe.algorithm) {
        let group = context.fleet.group(role).await?;
        let start = config.model.as_deref().map(|name| component_path(context, name));
        critics.push((group, config.clone(), start.unwrap_or_else(|| model.clone())));
    }
    let ptx = match &recipe.algorithm.ptx {
        Some(config) => {
            let encoder = Trainer::encoder(policy.clone(), model.clone());
            let texts = encoded_ptx(context, &encoder, config).await?;
            Some(Ptx::new(policy.clone(), texts, config.clone(), recipe.seed))
        }
        None => None,
    };
    let critics = (!critics.is_empty()).then(|| CriticFleet::new(recipe.clone(), critics));
    Ok(Beside { critics: critics.map(Arc::new), ptx })
}

/// Reads samples from their owners.
struct Reader<'a> {
    context: &'a StageContext,
}

impl Texts for Reader<'_> {
    fn read<'a>(&'a self, generation: &'a Generation) -> Answer<'a, Vec<PlainSample>> {
        Box::pin(fetch(self.context, generation))
    }
}

/// Step after step, with replays after losses.
struct Loop<'a> {
    stage: &'a GrpoStage,
    context: &'a StageContext,
    step: Step<'a>,
    roles: &'a Roles,
    journal: &'a StepJournal<'a>,
    recovery: &'a dyn Recovery,
}

impl Loop<'_> {
    /// Runs the steps from `first` on.
    async fn run(&self, first: StepId) -> Result<(Figures, KlSummary), JobError> {
        let steps = self.context.recipe.algorithm.steps;
        let mut samples = JsonLines::open(self.context.folder.samples(&self.stage.name))?;
        let (mut step, mut replays) = (first, 0);
        self.rewind(step, &mut samples)?;
        loop {
            let done = match step.0 < steps {
                true => self.one(step, replays * ATTEMPTS_PER_REPLAY, &mut samples).await,
                // The last step's figures are written by now, and may be lost no more.
                false => self.roles.policy.finish_commit().await.map_err(Into::into).map(|_| ()),
            };
            match done {
                Ok(()) if step.0 >= steps => break,
                Ok(()) => step = StepId(step.0 + 1),
                Err(JobError::Phase(error)) => {
                    step = self.recover(error, step).await?;
                    self.rewind(step, &mut samples)?;
                    replays += 1;
                }
                Err(error) => return Err(error),
            }
        }
        Ok(self.summary(replays))
    }

    /// One step and its records.
    async fn one(
        &self,
        step: StepId,
        attempt: u32,
        samples: &mut JsonLines,
    ) -> Result<(), JobError> {
        let outcome = self.step.run(step, attempt).await?;
        if let Some(durable) = outcome.commit.durable {
            self.journal.checkpointed(durable)?;
        }
        let figures = self.record(&outcome, step, samples)?;
        self.roles.commits.note(step.0 + 1, &figures);
        Ok(())
    }

    /// Takes back what was written of `next` and later steps, which are run again.
    fn rewind(&self, next: StepId, samples: &mut JsonLines) -> Result<(), JobError> {
        self.context.log.rewind(&self.stage.name, next.0)?;
        samples.retain(|line| line["step"].as_u64().is_some_and(|step| step <= next.0))?;
        Ok(())
    }

    /// The figures of the last step, and the leash over all steps.
    fn summary(&self, replays: u32) -> (Figures, KlSummary) {
        let all = self.context.log.steps_of(&self.stage.name);
        let per_token = |figures: &Figures| figures.get(metric::KL_PER_TOKEN).copied();
        let mut kl = KlSummary {
            bound: self.context.recipe.algorithm.kl.bound,
            last: all.last().and_then(per_token).unwrap_or(0.0),
            max: all.iter().filter_map(per_token).fold(0.0, f64::max),
            within_bound: false,
        };
        kl.within_bound = kl.max <= kl.bound;
        let mut figures = all.into_iter().last().unwrap_or_default();
        figures.retain(|name, _| !name.starts_with("seconds/"));
        figures.insert("kl/max".to_owned(), kl.max);
        figures.insert("replays".to_owned(), f64::from(replays));
        (figures, kl)
    }

    /// Brings back what an error says was lost; any other error ends the job.
    async fn recover(&self, error: PhaseError, step: StepId) -> Result<StepId, JobError> {
        let role = match &error {
            PhaseError::Lost { role, .. } => *role,
            // The critics may have learnt of the samples already.
            PhaseError::SamplesLost { .. } if self.roles.critics.is_some() => Role::Critic,
            PhaseError::SamplesLost { .. } => Role::Rollout,
            _ => return Err(error.into()),
        };
        tracing::warn!(step = step.0, %error, "the step is replayed");
        self.context.events.notice("warn", format!("{error}; step {} is replayed", step.0 + 1));
        let due = self.journal.lost(role);
        let resume = self.recovery.restore(role, step).await?;
        if due < resume {
            return Err(PhaseError::Failed(format!(
                "the machine wants step {due} next, the policy holds the state before {resume}"
            ))
            .into());
        }
        self.journal.fell_back(resume)?;
        Ok(resume)
    }

    /// Writes a step's samples and figures and tells watchers.
    fn record(
        &self,
        outcome: &StepOutcome,
        step: StepId,
        file: &mut JsonLines,
    ) -> Result<Figures, JobError> {
        let figures = figures(outcome);
        let stage = &self.stage.name;
        let scores: BTreeMap<&str, &SampleScores> =
            outcome.scores.iter().map(|s| (s.sample_id.as_str(), s)).collect();
        let advantages: BTreeMap<&str, f64> =
            outcome.plan.advantages.iter().map(|a| (a.sample_id.as_str(), a.advantage)).collect();
        for sample in &outcome.texts {
            let id = sample.id.as_str();
            let mut line = SampleLine::new(sample).with_scores(scores.get(id).copied());
            line.step = Some(step.0 + 1);
            line.reward = outcome.plan.rewards.get(id).copied();
            // With critics every token has an advantage of its own.
            let has_one = outcome.plan.critics.is_empty();
            line.advantage = advantages.get(id).copied().filter(|_| has_one);
            file.append(&line)?;
        }
        self.context.log.step(stage, step.0 + 1, &figures)?;
        warn_of_skipped(&self.context.events, stage, step.0 + 1, &outcome.update.metrics);
        for role in [Role::Critic, Role::CostCritic] {
            let own = |(name, value): (&String, &f64)| {
                let name = name.strip_prefix(role.as_str())?.strip_prefix('/')?;
                Some((name.to_owned(), *value))
            };
            let own: Figures = outcome.critics.iter().filter_map(own).collect();
            warn_of_skipped(&self.context.events, role.as_str(), step.0 + 1, &own);
        }
        let steps = self.context.recipe.algorithm.steps;
        self.context.events.step_finished(stage, step.0 + 1, steps, &figures);
        Ok(figures)
    }
}

/// The figures of a step, by the names of [`metric`].
fn figures(outcome: &StepOutcome) -> BTreeMap<String, f64> {
    let mut figures = outcome.plan.metrics.clone();
    let mut put = |name: &str, value: f64| figures.insert(name.to_owned(), value);
    let generation = &outcome.generation;
    let (samples, tokens) = (generation.samples().count(), generation.response_tokens());
    let prompt_tokens: u64 = generation.samples().map(|s| u64::from(s.prompt_tokens)).sum();
    let cut = plumb_proto::object::FinishReason::Length;
    let truncated = generation.samples().filter(|s| s.finish() == cut).count();
    let seconds: f64 = outcome.seconds.values().sum();
    let generate = outcome.seconds.get(Phase::Generate.as_str()).copied().unwrap_or(0.0);
    put(metric::KL_PER_TOKEN, outcome.reference.kl_per_token());
    put(metric::RESPONSE_TOKENS, tokens as f64);
    put(metric::RESPONSE_LENGTH, tokens as f64 / samples.max(1) as f64);
    put(metric::TRUNCATED, truncated as f64 / samples.max(1) as f64);
    put(metric::GENERATED_PER_SECOND, tokens as f64 / generate.max(1e-9));
    put(metric::TOKENS_PER_SECOND, (tokens + prompt_tokens) as f64 / seconds.max(1e-9));
    put(metric::STEP_SECONDS, seconds);
    put(metric::LEARNING_RATE, outcome.plan.learning_rate);
    for (phase, seconds) in &outcome.seconds {
        put(&metric::phase_seconds(phase), *seconds);
    }
    figures.extend(outcome.critics.clone());
    let mut put = |name: &str, value: f64| figures.insert(name.to_owned(), value);
    for (name, value) in &outcome.update.metrics {
        put(&metric::policy(name), *value);
    }
    figures
}
