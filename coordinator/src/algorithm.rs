//! Algorithms: which scores, which advantages, which loss. One file each.

pub mod grpo;

use plumb_domain::StepId;
use plumb_proto::actor::{PolicyLossSpec, TokenAdvantageSpec};

use crate::ports::{Generation, PhaseError, SampleScores, UpdatePlan};

/// What a step needs to know of an algorithm.
pub trait Algorithm: Send + Sync {
    /// Turns component scores into advantages.
    ///
    /// # Errors
    /// [`PhaseError::Failed`] when no sample is left to learn from.
    fn plan(
        &self,
        step: StepId,
        generation: &Generation,
        scores: &[SampleScores],
    ) -> Result<UpdatePlan, PhaseError>;

    /// The loss.
    fn loss(&self) -> PolicyLossSpec;

    /// How a sample's advantage becomes its tokens'.
    fn token_advantage(&self) -> TokenAdvantageSpec;
}
