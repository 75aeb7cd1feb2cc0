//! Learning rate by step.

use crate::AlgoError;
use crate::error::{all_finite, parameter};

/// A learning rate that changes at given steps and is constant between them.
///
/// Source: Rank-GRPO `StepLRSchedulerCallback` (1e-6, or 1e-7 for the larger models, from step 8000
/// on).
#[derive(Debug, Clone, PartialEq)]
pub struct StepSchedule {
    base: f64,
    changes: Vec<(u64, f64)>,
}

impl StepSchedule {
    /// `base` until the first change; each change is a step and the rate from that step on. Where
    /// several have been reached, the last in the list counts.
    ///
    /// # Errors
    /// [`AlgoError::Parameter`], [`AlgoError::NonFinite`] for a rate that is not finite.
    pub fn new(base: f64, changes: Vec<(u64, f64)>) -> Result<Self, AlgoError> {
        const F: &str = "StepSchedule::new";
        parameter(F, "base", base, true, "finite")?;
        let rates: Vec<f64> = changes.iter().map(|(_, rate)| *rate).collect();
        all_finite(F, "changes", &rates)?;
        Ok(Self { base, changes })
    }

    /// The rate of a step.
    #[must_use]
    pub fn rate(&self, step: u64) -> f64 {
        self.next_rate(self.base, step)
    }

    /// The rate of a step for an optimiser whose rate is `current`: where no change has been
    /// reached, it stays. Over steps in order this is [`StepSchedule::rate`].
    #[must_use]
    pub fn next_rate(&self, current: f64, step: u64) -> f64 {
        let reached = self.changes.iter().rev().find(|(from, _)| step >= *from);
        reached.map_or(current, |(_, rate)| *rate)
    }

    /// The rate before any change.
    #[must_use]
    pub fn base(&self) -> f64 {
        self.base
    }
}
