//! Repeats a phase whose own worker was lost: the role is restored and the unfinished work goes
//! again. What cannot be repeated within its phase (lost samples, a lost policy rank) passes
//! through to the step loop.

use std::collections::BTreeMap;
use std::future::Future;
use std::sync::Arc;

use plumb_domain::{Prompt, Role};

use super::{
    Answer, CommitReport, Critics, Generation, PhaseError, PhaseKey, Policy, Recovery, Reference,
    ReferenceLogps, Rewards, Rollout, SampleScores, UpdatePlan, UpdateReport, Values,
};

/// A port that outlives its workers.
pub struct Retry<P> {
    inner: Arc<P>,
    recovery: Arc<dyn Recovery>,
}

impl<P> Retry<P> {
    /// Wraps a port.
    pub fn new(inner: Arc<P>, recovery: Arc<dyn Recovery>) -> Self {
        Self { inner, recovery }
    }

    /// Runs `call` until it ends other than by the loss of a worker of `role`. The restart budget
    /// of the role, kept by `recovery`, ends the repetition.
    async fn repeat<'a, T, F>(
        &'a self,
        role: Role,
        mut key: PhaseKey,
        call: impl Fn(PhaseKey) -> F,
    ) -> Result<T, PhaseError>
    where
        F: Future<Output = Result<T, PhaseError>> + 'a,
    {
        loop {
            match call(key).await {
                Err(PhaseError::Lost { role: lost, worker, phase, cause }) if lost == role => {
                    tracing::warn!(step = key.step.0, %worker, %phase, %cause, "worker lost");
                    self.recovery.restore(role, key.step).await?;
                    key.attempt += 1;
                }
                other => return other,
            }
        }
    }
}

/// A call that failed because the samples it was to read are gone says so.
async fn explained<T>(
    result: Result<T, PhaseError>,
    recovery: &dyn Recovery,
    generation: &Generation,
) -> Result<T, PhaseError> {
    match result {
        Err(PhaseError::Failed(cause)) => match recovery.lost_owner(generation).await {
            Some(owner) => Err(PhaseError::SamplesLost { owner, cause }),
            None => Err(PhaseError::Failed(cause)),
        },
        other => other,
    }
}

impl<P: Rollout> Rollout for Retry<P> {
    fn generate<'a>(&'a self, key: PhaseKey, prompts: &'a [Prompt]) -> Answer<'a, Generation> {
        Box::pin(self.repeat(Role::Rollout, key, |key| self.inner.generate(key, prompts)))
    }
}

impl<P: Rewards> Rewards for Retry<P> {
    fn score<'a>(
        &'a self,
        key: PhaseKey,
        generation: &'a Generation,
    ) -> Answer<'a, Vec<SampleScores>> {
        Box::pin(async move {
            let call = |key| self.inner.score(key, generation);
            let scores = self.repeat(Role::Reward, key, call).await;
            explained(scores, &*self.recovery, generation).await
        })
    }
}

impl<P: Reference> Reference for Retry<P> {
    fn log_probs<'a>(
        &'a self,
        key: PhaseKey,
        generation: &'a Generation,
    ) -> Answer<'a, ReferenceLogps> {
        Box::pin(async move {
            let call = |key| self.inner.log_probs(key, generation);
            let logps = self.repeat(Role::Reference, key, call).await;
            explained(logps, &*self.recovery, generation).await
        })
    }
}

/// A lost critic takes the whole step back, as a lost policy rank does: nothing is repeated here.
impl<P: Critics> Critics for Retry<P> {
    fn values<'a>(&'a self, key: PhaseKey, generation: &'a Generation) -> Answer<'a, Values> {
        Box::pin(async move {
            let values = self.inner.values(key, generation).await;
            explained(values, &*self.recovery, generation).await
        })
    }

    fn update<'a>(
        &'a self,
        key: PhaseKey,
        generation: &'a Generation,
        reference: &'a ReferenceLogps,
        values: &'a Values,
        plan: &'a UpdatePlan,
    ) -> Answer<'a, BTreeMap<String, f64>> {
        Box::pin(async move {
            let updated = self.inner.update(key, generation, reference, values, plan).await;
            explained(updated, &*self.recovery, generation).await
        })
    }
}

impl<P: Policy> Policy for Retry<P> {
    fn update<'a>(
        &'a self,
        key: PhaseKey,
        generation: &'a Generation,
        reference: &'a ReferenceLogps,
        values: &'a Values,
        plan: &'a UpdatePlan,
    ) -> Answer<'a, UpdateReport> {
        Box::pin(async move {
            let updated = self.inner.update(key, generation, reference, values, plan).await;
            explained(updated, &*self.recovery, generation).await
        })
    }

    /// A rollout worker lost while it receives: restoring it publishes to it, and the version is
    /// published again to all.
    fn publish(&self, key: PhaseKey) -> Answer<'_, f64> {
        Box::pin(self.repeat(Role::Rollout, key, |key| self.inner.publish(key)))
    }

    fn commit(&self, key: PhaseKey) -> Answer<'_, CommitReport> {
        self.inner.commit(key)
    }
}
