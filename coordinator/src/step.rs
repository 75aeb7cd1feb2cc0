//! The training step, as in a paper:
//!
//! ```text
//! for each step
//!     prompts    ~ data                              (a function of seed and step)
//!     samples    ~ policy(. | prompts)               rollout
//!     scores     = components(samples)               reward
//!     values     = critics(samples)                  critics, if the algorithm has some
//!     reference  = log p_ref(samples)                reference
//!     advantages = algorithm(scores)                 here, scalars only; with critics GAE's,
//!                                                    where the tensors are
//!     critics    <- update(samples, scores, values, reference)
//!     policy     <- update(samples, advantages or values, reference)
//!     rollout    <- weights of policy                publish
//!     commit
//! ```
//!
//! It calls ports. Retries are a decorator of the ports, timers and the machine's permission are
//! the journal's. When a phase fails for good the step has had no effect that a replay from its
//! first line does not make again: samples die with their step, and the policy's weights are those
//! of the last commit.

use std::collections::BTreeMap;
use std::future::Future;
use std::time::Instant;

use plumb_domain::{Prompt, StepId};

use crate::algorithm::Algorithm;
use crate::ports::{
    CommitReport, Critics, Generation, Journal, Phase, PhaseError, PhaseKey, PlainSample, Policy,
    Prompts, Reference, ReferenceLogps, Rewards, Rollout, SampleScores, Texts, UpdatePlan,
    UpdateReport, Values,
};

/// The parts of a step.
pub struct Step<'a> {
    /// Where prompts come from.
    pub prompts: &'a dyn Prompts,
    /// What answers them.
    pub rollout: &'a dyn Rollout,
    /// What scores the answers.
    pub rewards: &'a dyn Rewards,
    /// What tells values; none where the algorithm asks for none.
    pub critics: Option<&'a dyn Critics>,
    /// What the policy is held to.
    pub reference: &'a dyn Reference,
    /// What keeps the answers' words.
    pub texts: &'a dyn Texts,
    /// What learns.
    pub policy: &'a dyn Policy,
    /// What hears of it.
    pub journal: &'a dyn Journal,
    /// Which scores, which advantages, which loss.
    pub algorithm: &'a dyn Algorithm,
}

/// All that a finished step leaves behind.
pub struct StepOutcome {
    /// The prompts that were drawn.
    pub prompts: Vec<Prompt>,
    /// The samples' references.
    pub generation: Generation,
    /// Component scores.
    pub scores: Vec<SampleScores>,
    /// Reference log-probs and KL.
    pub reference: ReferenceLogps,
    /// The samples' words, for the sample log.
    pub texts: Vec<PlainSample>,
    /// Advantages and rewards.
    pub plan: UpdatePlan,
    /// The critics' figures.
    pub critics: BTreeMap<String, f64>,
    /// The update's figures.
    pub update: UpdateReport,
    /// The commit.
    pub commit: CommitReport,
    /// Seconds by phase.
    pub seconds: BTreeMap<&'static str, f64>,
}

impl Step<'_> {
    /// Runs step `id`; `attempt` is fresh for every replay.
    ///
    /// # Errors
    /// The first phase that failed, after what its decorators could do.
    pub async fn run(&self, id: StepId, attempt: u32) -> Result<StepOutcome, PhaseError> {
        let clock = Clock { journal: self.journal, step: id, attempt };
        let mut seconds = BTreeMap::new();

        let prompts = self.prompts.draw(id);
        let generation = clock
            .time(Phase::Generate, &mut seconds, |key| self.rollout.generate(key, &prompts))
            .await?;
        let scores = clock
            .time(Phase::Score, &mut seconds, |key| self.rewards.score(key, &generation))
            .await?;
        let values = match self.critics {
            Some(critics) => {
                clock
                    .time(Phase::Values, &mut seconds, |key| critics.values(key, &generation))
                    .await?
            }
            None => Values::default(),
        };
        let reference = clock
            .time(Phase::Reference, &mut seconds, |key| self.reference.log_probs(key, &generation))
            .await?;
        // Before the update: samples that are gone can still be made again.
        let texts = self.texts.read(&generation).await?;
        let plan = self.algorithm.plan(id, &generation, &scores, &reference)?;
        let critics = match self.critics {
            Some(critics) => {
                clock
                    .time(Phase::UpdateValues, &mut seconds, |key| {
                        critics.update(key, &generation, &reference, &values, &plan)
                    })
                    .await?
            }
            None => BTreeMap::new(),
        };
        let update = clock
            .time(Phase::Update, &mut seconds, |key| {
                self.policy.update(key, &generation, &reference, &values, &plan)
            })
            .await?;
        clock.time(Phase::Publish, &mut seconds, |key| self.policy.publish(key)).await?;
        let commit = clock.time(Phase::Commit, &mut seconds, |key| self.policy.commit(key)).await?;

        Ok(StepOutcome {
            prompts,
            generation,
            scores,
            reference,
            texts,
            plan,
            critics,
            update,
            commit,
            seconds,
        })
    }
}

/// Tells the journal of each phase and takes its time.
struct Clock<'a> {
    journal: &'a dyn Journal,
    step: StepId,
    attempt: u32,
}

impl Clock<'_> {
    async fn time<T, F>(
        &self,
        phase: Phase,
        seconds: &mut BTreeMap<&'static str, f64>,
        call: impl FnOnce(PhaseKey) -> F,
    ) -> Result<T, PhaseError>
    where
        F: Future<Output = Result<T, PhaseError>>,
    {
        let key = PhaseKey { step: self.step, phase, attempt: self.attempt };
        self.journal.begin(key)?;
        let start = Instant::now();
        let result = call(key).await;
        let took = start.elapsed().as_secs_f64();
        seconds.insert(phase.as_str(), took);
        self.journal.end(key, took, result.as_ref().map(|_| ()));
        result
    }
}

#[cfg(test)]
mod tests;
