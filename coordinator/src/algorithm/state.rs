//! State that moves from step to step, and stays put when a step is run again.

use std::sync::{Mutex, PoisonError};

use plumb_domain::StepId;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::ports::PhaseError;

/// The state before and after the step that was planned last. A step whose samples were lost is
/// planned again, from the state that it was planned from before.
pub(super) struct Stepwise<S> {
    start: S,
    steps: Mutex<Steps<S>>,
}

struct Steps<S> {
    planned: Option<StepId>,
    before: S,
    after: S,
}

impl<S: Clone + Serialize + DeserializeOwned> Stepwise<S> {
    /// The state that a run starts with.
    pub(super) fn new(start: S) -> Self {
        let steps = Steps { planned: None, before: start.clone(), after: start.clone() };
        Self { start, steps: Mutex::new(steps) }
    }

    /// The state that `step` is planned from.
    pub(super) fn before(&self, step: StepId) -> S {
        let steps = self.steps();
        if steps.planned == Some(step) { steps.before.clone() } else { steps.after.clone() }
    }

    /// The state that `step` leaves.
    pub(super) fn after(&self, step: StepId, after: S) {
        let mut steps = self.steps();
        if steps.planned != Some(step) {
            steps.before = steps.after.clone();
            steps.planned = Some(step);
        }
        steps.after = after;
    }

    /// The state that the step in hand was planned from.
    pub(super) fn planned(&self) -> S {
        self.steps().before.clone()
    }

    /// The state to commit.
    pub(super) fn now(&self) -> S {
        self.steps().after.clone()
    }

    /// Goes back to a committed state; none is the one that a run starts with.
    pub(super) fn restore(&self, state: Option<&Value>) -> Result<(), PhaseError> {
        let state = match state {
            None => self.start.clone(),
            Some(state) => S::deserialize(state).map_err(|error| {
                let problem = format!("the checkpoint's algorithm state {state} does not fit");
                PhaseError::Failed(format!("{problem}: {error}"))
            })?,
        };
        let (before, after) = (state.clone(), state);
        *self.steps() = Steps { planned: None, before, after };
        Ok(())
    }

    fn steps(&self) -> std::sync::MutexGuard<'_, Steps<S>> {
        self.steps.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_step_planned_twice_moves_the_state_once() {
        let state = Stepwise::new(1.0f64);
        for _ in 0..2 {
            let before = state.before(StepId(0));
            assert_eq!(before, 1.0);
            state.after(StepId(0), before + 0.1);
        }
        assert_eq!((state.before(StepId(1)), state.planned(), state.now()), (1.1, 1.0, 1.1));
        state.after(StepId(1), 5.0);
        assert_eq!((state.planned(), state.now()), (1.1, 5.0));
        // A fall-back to the commit after step 0, and to the start.
        state.restore(Some(&serde_json::json!(1.1))).unwrap();
        assert_eq!(state.before(StepId(1)), 1.1);
        state.restore(None).unwrap();
        assert_eq!(state.before(StepId(0)), 1.0);
        let error = state.restore(Some(&serde_json::json!("x"))).unwrap_err().to_string();
        assert!(error.contains("\"x\" does not fit"), "{error}");
    }
}
