//! Algorithms: which scores, which advantages, which loss. One file each.

pub mod grpo;
pub mod ppo;
pub mod ppo_lag;
mod state;

use std::sync::Arc;

use plumb_config::{Advantage, Recipe};
use plumb_domain::StepId;
use plumb_proto::actor::{PolicyLossSpec, TokenAdvantageSpec};

use crate::ports::{Generation, PhaseError, ReferenceLogps, SampleScores, UpdatePlan};

/// The algorithm that a recipe asks for.
#[must_use]
pub fn of_recipe(recipe: &Recipe) -> Arc<dyn Algorithm> {
    if let Some(ppo_lag) = ppo_lag::PpoLag::new(recipe) {
        return Arc::new(ppo_lag);
    }
    match recipe.algorithm.advantage {
        Advantage::Gae => Arc::new(ppo::Ppo::new(recipe)),
        _ => Arc::new(grpo::Grpo::new(recipe)),
    }
}

/// What a step needs to know of an algorithm.
pub trait Algorithm: Send + Sync {
    /// Turns component scores into advantages. A step may be planned again, if its samples were
    /// lost: state moves from the step before it, not from its own.
    ///
    /// # Errors
    /// [`PhaseError::Failed`] when no sample is left to learn from.
    fn plan(
        &self,
        step: StepId,
        generation: &Generation,
        scores: &[SampleScores],
        reference: &ReferenceLogps,
    ) -> Result<UpdatePlan, PhaseError>;

    /// The loss.
    fn loss(&self) -> PolicyLossSpec;

    /// How a sample's advantage becomes its tokens'.
    fn token_advantage(&self) -> TokenAdvantageSpec;

    /// All that changes from step to step, as it is after the last planned step: multipliers,
    /// controllers, running means. It is committed with the weights. Null: nothing does.
    fn state(&self) -> serde_json::Value {
        serde_json::Value::Null
    }

    /// Goes back to what [`Algorithm::state`] gave when the weights that are now loaded were
    /// committed; null is the state that the job starts with.
    ///
    /// # Errors
    /// [`PhaseError::Failed`] for a state that is not this algorithm's.
    fn restore(&self, state: &serde_json::Value) -> Result<(), PhaseError> {
        match state {
            serde_json::Value::Null => Ok(()),
            other => Err(PhaseError::Failed(format!(
                "the checkpoint holds the state {other}, and this algorithm keeps none"
            ))),
        }
    }
}
