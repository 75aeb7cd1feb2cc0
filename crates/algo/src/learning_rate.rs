//! Learning rate by step: a warm-up, then a course.

use crate::AlgoError;
use crate::error::{all_finite, parameter};

/// What follows the warm-up.
#[derive(Debug, Clone, PartialEq)]
pub enum Course {
    /// Stays at the peak.
    Constant,
    /// Falls in a line to `floor` times the peak.
    Linear {
        /// Share of the peak at the end, in [0, 1].
        floor: f64,
    },
    /// Falls along half a cosine to `floor` times the peak.
    Cosine {
        /// Share of the peak at the end, in [0, 1].
        floor: f64,
    },
    /// Changes at given steps.
    Steps(StepSchedule),
}

/// Learning rates of a run of known length.
///
/// Source: transformers `get_constant_schedule_with_warmup`, `get_linear_schedule_with_warmup`,
/// `get_cosine_schedule_with_warmup`, `get_cosine_with_min_lr_schedule_with_warmup`. The warm-up
/// differs: theirs is `step / warmup` of the peak, so that their first step does not move; here
/// it is `(step + 1) / (warmup + 1)`. After the warm-up the rates are theirs.
#[derive(Debug, Clone, PartialEq)]
pub struct LearningRate {
    peak: f64,
    warmup: u64,
    steps: u64,
    course: Course,
}

impl LearningRate {
    /// Rises to `peak` over `warmup` of `steps` steps, then follows `course`.
    ///
    /// # Errors
    /// [`AlgoError::Parameter`] for a peak that is not finite and above 0, or a floor outside
    /// [0, 1].
    pub fn new(peak: f64, warmup: u64, steps: u64, course: Course) -> Result<Self, AlgoError> {
        const F: &str = "LearningRate::new";
        parameter(F, "peak", peak, peak.is_finite() && peak > 0.0, "above 0")?;
        if let Course::Linear { floor } | Course::Cosine { floor } = course {
            parameter(F, "floor", floor, (0.0..=1.0).contains(&floor), "in [0, 1]")?;
        }
        Ok(Self { peak, warmup, steps, course })
    }

    /// The rate of a step, counted from 0.
    #[must_use]
    pub fn rate(&self, step: u64) -> f64 {
        if step < self.warmup {
            return self.peak * (step + 1) as f64 / (self.warmup + 1) as f64;
        }
        let span = self.steps.saturating_sub(self.warmup).max(1) as f64;
        let done = ((step - self.warmup) as f64 / span).min(1.0);
        let between = |floor: f64, share: f64| self.peak * (floor + (1.0 - floor) * share);
        match &self.course {
            Course::Constant => self.peak,
            Course::Linear { floor } => between(*floor, 1.0 - done),
            Course::Cosine { floor } => {
                between(*floor, 0.5 * (1.0 + (std::f64::consts::PI * done).cos()))
            }
            Course::Steps(schedule) => schedule.rate(step),
        }
    }
}

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

#[cfg(test)]
mod tests {
    use super::*;

    fn rates(course: Course) -> Vec<f64> {
        let rate = LearningRate::new(1.0, 2, 8, course).unwrap();
        (0..9).map(|step| rate.rate(step)).collect()
    }

    #[track_caller]
    fn assert_close(got: &[f64], expected: &[f64]) {
        let close = |(got, expected): (&f64, &f64)| (got - expected).abs() < 1e-12;
        assert!(got.iter().zip(expected).all(close), "{got:?} instead of {expected:?}");
    }

    /// Steps 2 to 8 of transformers' schedules with 2 of 8 steps of warm-up.
    #[test]
    fn after_the_warm_up_the_rates_are_those_of_transformers() {
        let linear = [1.0, 5.0 / 6.0, 4.0 / 6.0, 0.5, 2.0 / 6.0, 1.0 / 6.0, 0.0];
        assert_close(&rates(Course::Linear { floor: 0.0 })[2..], &linear);
        let cosine = [1.0, 0.933_012_701_892_219_4, 0.75, 0.5, 0.25, 0.066_987_298_107_780_65, 0.0];
        assert_close(&rates(Course::Cosine { floor: 0.0 })[2..], &cosine);
        let floored =
            [1.0, 0.939_711_431_702_997_4, 0.775, 0.55, 0.325, 0.160_288_568_297_002_58, 0.1];
        assert_close(&rates(Course::Cosine { floor: 0.1 })[2..], &floored);
        assert_close(&rates(Course::Constant), &[1.0 / 3.0, 2.0 / 3.0, 1., 1., 1., 1., 1., 1., 1.]);
    }

    #[test]
    fn steps_follow_the_warm_up_and_the_rate_stays_after_the_end() {
        let changes = StepSchedule::new(1.0, vec![(4, 0.1), (6, 0.01)]).unwrap();
        let expected = [1.0 / 3.0, 2.0 / 3.0, 1.0, 1.0, 0.1, 0.1, 0.01, 0.01, 0.01];
        assert_close(&rates(Course::Steps(changes)), &expected);
        let rate = LearningRate::new(2.0, 0, 4, Course::Linear { floor: 0.25 }).unwrap();
        assert_close(&[rate.rate(0), rate.rate(4), rate.rate(99)], &[2.0, 0.5, 0.5]);
        assert!(LearningRate::new(1.0, 0, 4, Course::Cosine { floor: 1.5 }).is_err());
        assert!(LearningRate::new(0.0, 0, 4, Course::Constant).is_err());
    }
}
