//! The step over fake ports: order of phases, replay, lost workers.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use plumb_domain::{ChatMessage, Label, PolicyVersion, PromptId, Role};
use plumb_proto::actor::{PolicyLossSpec, SampleAdvantage, TokenAdvantageSpec};
use plumb_proto::object::ObjectRef;
use plumb_proto::rollout::SampleInfo;

use super::*;
use crate::ports::retry::Retry;
use crate::ports::{Answer, Generated, Recovery};

/// A world that notes every call and fails the ones it is told to.
#[derive(Default)]
struct World {
    calls: Mutex<Vec<String>>,
    /// (call, error) in order; a call that has an entry fails once with it.
    failures: Mutex<Vec<(&'static str, PhaseError)>>,
}

impl World {
    fn call<T>(&self, name: &'static str, key: PhaseKey, value: T) -> Result<T, PhaseError> {
        self.calls.lock().unwrap().push(format!("{name} {}/{}", key.step, key.attempt));
        let mut failures = self.failures.lock().unwrap();
        match failures.iter().position(|(call, _)| *call == name) {
            Some(at) => Err(failures.remove(at).1),
            None => Ok(value),
        }
    }

    fn calls(&self) -> Vec<String> {
        self.calls.lock().unwrap().clone()
    }
}

struct Port(Arc<World>);

fn lost(role: Role) -> PhaseError {
    PhaseError::Lost {
        role,
        worker: format!("{role}-0"),
        phase: "generate".into(),
        cause: "signal 9 (SIGKILL)".into(),
    }
}

impl Prompts for Port {
    fn draw(&self, step: StepId) -> Vec<Prompt> {
        vec![Prompt {
            id: PromptId::new(format!("p{step}")).unwrap(),
            label: Label::new("safety").unwrap(),
            messages: vec![ChatMessage { role: "user".into(), content: "?".into() }],
            reference: None,
        }]
    }
}

impl Rollout for Port {
    fn generate<'a>(&'a self, key: PhaseKey, prompts: &'a [Prompt]) -> Answer<'a, Generation> {
        let group = Generated {
            prompt_id: prompts[0].id.to_string(),
            label: "safety".into(),
            owner: "rollout-0".into(),
            owner_epoch: plumb_domain::Epoch(0),
            object: ObjectRef::default(),
            samples: vec![SampleInfo { sample_id: "s".into(), ..Default::default() }],
        };
        let generation = Generation { groups: vec![group], policy_version: PolicyVersion(0) };
        Box::pin(async move { self.0.call("generate", key, generation) })
    }
}

impl Rewards for Port {
    fn score<'a>(&'a self, key: PhaseKey, _: &'a Generation) -> Answer<'a, Vec<SampleScores>> {
        let scores = vec![SampleScores { sample_id: "s".into(), scores: BTreeMap::new() }];
        Box::pin(async move { self.0.call("score", key, scores) })
    }
}

impl Reference for Port {
    fn log_probs<'a>(&'a self, key: PhaseKey, _: &'a Generation) -> Answer<'a, ReferenceLogps> {
        Box::pin(async move { self.0.call("reference", key, ReferenceLogps::default()) })
    }
}

impl Critics for Port {
    fn values<'a>(&'a self, key: PhaseKey, _: &'a Generation) -> Answer<'a, Values> {
        let values = Values { objects: [(Role::Critic, vec![ObjectRef::default()])].into() };
        Box::pin(async move { self.0.call("values", key, values) })
    }

    fn update<'a>(
        &'a self,
        key: PhaseKey,
        _: &'a Generation,
        _: &'a ReferenceLogps,
        values: &'a Values,
        _: &'a UpdatePlan,
    ) -> Answer<'a, BTreeMap<String, f64>> {
        assert!(values.objects.contains_key(&Role::Critic));
        let figures = [("critic/loss".to_owned(), 0.5)].into();
        Box::pin(async move { self.0.call("update_values", key, figures) })
    }
}

impl Texts for Port {
    fn read<'a>(&'a self, _: &'a Generation) -> Answer<'a, Vec<PlainSample>> {
        Box::pin(async { Ok(Vec::new()) })
    }
}

impl Policy for Port {
    fn update<'a>(
        &'a self,
        key: PhaseKey,
        _: &'a Generation,
        _: &'a ReferenceLogps,
        _: &'a Values,
        plan: &'a UpdatePlan,
    ) -> Answer<'a, UpdateReport> {
        assert_eq!(plan.advantages[0].sample_id, "s");
        Box::pin(async move { self.0.call("update", key, UpdateReport::default()) })
    }

    fn publish(&self, key: PhaseKey) -> Answer<'_, f64> {
        Box::pin(async move { self.0.call("publish", key, 0.0) })
    }

    fn commit(&self, key: PhaseKey) -> Answer<'_, CommitReport> {
        Box::pin(async move { self.0.call("commit", key, CommitReport::default()) })
    }
}

impl Recovery for Port {
    fn restore(&self, role: Role, step: StepId) -> Answer<'_, StepId> {
        self.0.calls.lock().unwrap().push(format!("restore {role}"));
        Box::pin(async move { Ok(step) })
    }

    fn lost_owner<'a>(
        &'a self,
        generation: &'a Generation,
    ) -> futures::future::BoxFuture<'a, Option<String>> {
        let owner = generation.groups[0].owner.clone();
        let gone = self.0.calls().iter().any(|c| c == "owner is gone");
        Box::pin(async move { gone.then_some(owner) })
    }
}

impl Journal for Port {
    fn begin(&self, _: PhaseKey) -> Result<(), PhaseError> {
        Ok(())
    }
    fn end(&self, key: PhaseKey, _: f64, outcome: Result<(), &PhaseError>) {
        if outcome.is_err() {
            self.0.calls.lock().unwrap().push(format!("failed {}", key.phase));
        }
    }
}

impl Algorithm for Port {
    fn plan(
        &self,
        _: StepId,
        _: &Generation,
        scores: &[SampleScores],
        _: &ReferenceLogps,
    ) -> Result<UpdatePlan, PhaseError> {
        let advantage =
            SampleAdvantage { sample_id: scores[0].sample_id.clone(), advantage: 1.0, keep: true };
        Ok(UpdatePlan { advantages: vec![advantage], learning_rate: 1e-3, ..UpdatePlan::default() })
    }
    fn loss(&self) -> PolicyLossSpec {
        PolicyLossSpec::default()
    }
    fn token_advantage(&self) -> TokenAdvantageSpec {
        TokenAdvantageSpec::default()
    }
}

async fn run(world: &Arc<World>, attempt: u32) -> Result<StepOutcome, PhaseError> {
    run_with(world, attempt, false).await
}

async fn run_with(
    world: &Arc<World>,
    attempt: u32,
    with_critics: bool,
) -> Result<StepOutcome, PhaseError> {
    let port = || Port(Arc::clone(world));
    let recovery: Arc<dyn Recovery> = Arc::new(port());
    let retry = || Retry::new(Arc::new(port()), Arc::clone(&recovery));
    let (plain, rollout, rewards, reference, policy) = (port(), retry(), retry(), retry(), retry());
    let critics = retry();
    let step = Step {
        prompts: &plain,
        rollout: &rollout,
        rewards: &rewards,
        critics: with_critics.then_some(&critics as &dyn Critics),
        reference: &reference,
        texts: &plain,
        policy: &policy,
        journal: &plain,
        algorithm: &plain,
    };
    step.run(StepId(2), attempt).await
}

fn world(failures: Vec<(&'static str, PhaseError)>) -> Arc<World> {
    Arc::new(World { calls: Mutex::default(), failures: Mutex::new(failures) })
}

#[tokio::test]
async fn phases_run_in_order_and_the_commit_is_last() {
    let world = world(vec![]);
    let outcome = run(&world, 0).await.unwrap();
    assert_eq!(
        world.calls(),
        ["generate 2/0", "score 2/0", "reference 2/0", "update 2/0", "publish 2/0", "commit 2/0"]
    );
    assert_eq!(outcome.seconds.len(), Phase::ALL.len() - 2, "no critics");
    assert_eq!(outcome.prompts[0].id.as_str(), "p2");
}

#[tokio::test]
async fn critics_tell_values_before_the_plan_and_learn_before_the_policy() {
    let world = world(vec![]);
    let outcome = run_with(&world, 0, true).await.unwrap();
    let calls = world.calls();
    let phases: Vec<&str> = calls.iter().filter_map(|call| call.split(' ').next()).collect();
    assert_eq!(phases, Phase::ALL.map(Phase::as_str));
    assert_eq!(outcome.critics["critic/loss"], 0.5);
}

#[tokio::test]
async fn a_lost_critic_ends_the_step_before_the_policy_learns() {
    let world = world(vec![("update_values", lost(Role::Critic))]);
    let error = run_with(&world, 0, true).await.err().unwrap();
    assert!(matches!(error, PhaseError::Lost { role: Role::Critic, .. }));
    assert_eq!(world.calls().last().unwrap(), "failed update_values");
    assert!(!world.calls().iter().any(|call| call.starts_with("restore")));
}

#[tokio::test]
async fn a_lost_rollout_worker_is_restored_and_the_work_goes_again() {
    let world = world(vec![("generate", lost(Role::Rollout))]);
    run(&world, 0).await.unwrap();
    assert_eq!(
        world.calls()[..4],
        ["generate 2/0", "restore rollout", "generate 2/1", "score 2/0"]
    );
}

#[tokio::test]
async fn a_lost_reward_worker_is_scored_again_without_a_replay() {
    let world = world(vec![("score", lost(Role::Reward)), ("score", lost(Role::Reward))]);
    run(&world, 0).await.unwrap();
    let generated = world.calls().iter().filter(|c| c.starts_with("generate")).count();
    assert_eq!(generated, 1);
    assert!(world.calls().contains(&"score 2/2".to_owned()));
}

#[tokio::test]
async fn a_rollout_worker_lost_while_it_receives_gets_the_weights_again() {
    let world = world(vec![("publish", lost(Role::Rollout))]);
    run(&world, 0).await.unwrap();
    let calls = world.calls();
    let from = calls.iter().position(|c| c == "publish 2/0").unwrap();
    assert_eq!(calls[from..], ["publish 2/0", "restore rollout", "publish 2/1", "commit 2/0"]);
}

#[tokio::test]
async fn a_lost_policy_rank_ends_the_step_before_it_publishes_or_commits() {
    let world = world(vec![("update", lost(Role::Policy))]);
    let error = run(&world, 0).await.err().unwrap();
    assert!(matches!(error, PhaseError::Lost { role: Role::Policy, .. }));
    assert_eq!(world.calls().last().unwrap(), "failed update");
    let text = error.to_string();
    assert!(text.contains("policy-0") && text.contains("SIGKILL"), "{text}");
    // The replay carries its own attempt, so that nothing of the first run answers it.
    run(&world, 1000).await.unwrap();
    assert!(world.calls().contains(&"update 2/1000".to_owned()));
}

#[tokio::test]
async fn samples_lost_with_their_owner_pass_through_to_the_step_loop() {
    let gone = PhaseError::SamplesLost { owner: "rollout-0".into(), cause: "fetch failed".into() };
    let world = world(vec![("score", gone)]);
    assert!(matches!(run(&world, 0).await, Err(PhaseError::SamplesLost { .. })));
    assert!(!world.calls().iter().any(|c| c.starts_with("restore")));
}

#[tokio::test]
async fn a_fetch_that_fails_because_the_owner_is_gone_is_told_as_lost_samples() {
    let failed = || vec![("score", PhaseError::Failed("fetch of 2/p2 failed".into()))];
    let error = run(&world(failed()), 0).await.err().unwrap();
    assert!(matches!(error, PhaseError::Failed(_)), "the owner lives: {error}");
    let world = world(failed());
    world.calls.lock().unwrap().push("owner is gone".into());
    let error = run(&world, 0).await.err().unwrap().to_string();
    assert_eq!(error, "samples of rollout-0 were lost with it: fetch of 2/p2 failed");
}
