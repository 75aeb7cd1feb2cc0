//! What a training step asks of the world: one trait for each role, and the records that pass
//! between them. [`crate::step`] calls these; [`crate::fleet`] carries them out on a cluster;
//! tests put fakes in their place. Retries are a decorator ([`retry`]).

mod record;
pub mod retry;

use std::collections::BTreeMap;

use futures::future::BoxFuture;
use plumb_domain::{Prompt, Role, StepId};

pub use record::{
    CommitReport, CriticPlan, Generated, Generation, Phase, PhaseError, PhaseKey, PlainSample,
    ReferenceLogps, SampleScores, UpdatePlan, UpdateReport, Values,
};

/// A port's answer.
pub type Answer<'a, T> = BoxFuture<'a, Result<T, PhaseError>>;

/// Prompts of a step; a pure function of the step, so that a replay sees the same ones.
pub trait Prompts: Send + Sync {
    /// The prompts of `step`.
    fn draw(&self, step: StepId) -> Vec<Prompt>;
}

/// Generation.
pub trait Rollout: Send + Sync {
    /// Answers prompts with the live policy version.
    fn generate<'a>(&'a self, key: PhaseKey, prompts: &'a [Prompt]) -> Answer<'a, Generation>;
}

/// Scoring.
pub trait Rewards: Send + Sync {
    /// Every component of every sample's label.
    fn score<'a>(
        &'a self,
        key: PhaseKey,
        generation: &'a Generation,
    ) -> Answer<'a, Vec<SampleScores>>;
}

/// The frozen model of the KL leash.
pub trait Reference: Send + Sync {
    /// Log-probs of the samples under the reference, and their KL from the sampler.
    fn log_probs<'a>(
        &'a self,
        key: PhaseKey,
        generation: &'a Generation,
    ) -> Answer<'a, ReferenceLogps>;
}

/// The models that tell values, for algorithms that have them.
pub trait Critics: Send + Sync {
    /// The value before every token of the samples, by every critic.
    fn values<'a>(&'a self, key: PhaseKey, generation: &'a Generation) -> Answer<'a, Values>;

    /// All optimiser steps of every critic on one step's samples. Their figures.
    fn update<'a>(
        &'a self,
        key: PhaseKey,
        generation: &'a Generation,
        reference: &'a ReferenceLogps,
        values: &'a Values,
        plan: &'a UpdatePlan,
    ) -> Answer<'a, BTreeMap<String, f64>>;
}

/// The samples' own words, for the sample log.
pub trait Texts: Send + Sync {
    /// Fetches every sample from its owner, in the order of the groups.
    fn read<'a>(&'a self, generation: &'a Generation) -> Answer<'a, Vec<PlainSample>>;
}

/// The model under training.
pub trait Policy: Send + Sync {
    /// All optimiser steps of one step; makes a new version, unless the plan leaves the policy as it
    /// is.
    fn update<'a>(
        &'a self,
        key: PhaseKey,
        generation: &'a Generation,
        reference: &'a ReferenceLogps,
        values: &'a Values,
        plan: &'a UpdatePlan,
    ) -> Answer<'a, UpdateReport>;

    /// Makes the current version live in every rollout worker. Seconds that it took.
    fn publish(&self, key: PhaseKey) -> Answer<'_, f64>;

    /// Begins to write the current version to disk if this step is one to commit; completes
    /// what an earlier step began. The samples of the step are released.
    fn commit(&self, key: PhaseKey) -> Answer<'_, CommitReport>;
}

/// Brings a lost role back.
pub trait Recovery: Send + Sync {
    /// Restarts what was lost and loads what it needs; for the rollout that includes the current
    /// weights. Returns the step that the job goes on with: the given one, or for a policy rank
    /// the first one after the last commit.
    ///
    /// # Errors
    /// The role's restart budget is used up, or the restart failed.
    fn restore(&self, role: Role, step: StepId) -> Answer<'_, StepId>;

    /// Names an owner of samples that is gone. A worker that fails to fetch may notice before the
    /// coordinator does, so this waits about a lease.
    fn lost_owner<'a>(&'a self, generation: &'a Generation) -> BoxFuture<'a, Option<String>>;
}

/// Hears of phase boundaries. It alone says whether a phase may begin.
pub trait Journal: Send + Sync {
    /// A phase is about to begin.
    ///
    /// # Errors
    /// The phase is not legal now.
    fn begin(&self, key: PhaseKey) -> Result<(), PhaseError>;
    /// A phase has ended, well or not.
    fn end(&self, key: PhaseKey, seconds: f64, outcome: Result<(), &PhaseError>);
}
