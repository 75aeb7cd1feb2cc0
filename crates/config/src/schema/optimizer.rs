//! Keys of the optimiser.

use serde::{Deserialize, Serialize};

/// AdamW and its schedule.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OptimizerConfig {
    /// Peak learning rate.
    pub learning_rate: f64,
    /// Decay rates of the two moments.
    #[serde(default = "betas")]
    pub betas: [f64; 2],
    /// Added to the root of the second moment.
    #[serde(default = "eps")]
    pub eps: f64,
    /// Decoupled weight decay.
    #[serde(default)]
    pub weight_decay: f64,
    /// Gradients are scaled down to this global norm.
    #[serde(default = "unit")]
    pub max_grad_norm: f64,
    /// Optimiser steps in a row that may be skipped because their gradient is not finite. A skipped
    /// step changes nothing; it is counted as `skipped_steps`, and the run warns of it. One more in
    /// a row fails the run; 0: the first one does. A loss that is not finite always does.
    #[serde(default)]
    pub max_skipped_steps: u32,
    /// Steps over which the rate rises from 0.
    #[serde(default)]
    pub warmup_steps: u64,
    /// What follows the warm-up: `constant`, `linear` or `cosine` (to 0).
    #[serde(default)]
    pub schedule: Schedule,
    /// Moving average of the trained parameters; absent: none is kept.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ema: Option<EmaConfig>,
}

/// A moving average of the trained parameters, `ema <- decay ema + (1 - decay) p`, kept in fp32
/// beside them and saved in checkpoints. It starts as a copy of them. What a training stage
/// measures last and writes is then the average; an `export` stage writes it with
/// `average = true`. HC-RLHF takes decay 0.99 at every step, LightRFT 0.992 with its gradient
/// accumulation steps as the interval.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EmaConfig {
    /// Weight of the old average, in [0, 1].
    pub decay: f64,
    /// Optimiser steps from one update of the average to the next.
    #[serde(default = "one")]
    pub interval: u64,
}

/// Course of the learning rate.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Schedule {
    /// Stays at the peak.
    #[default]
    Constant,
    /// Falls in a line to 0.
    Linear,
    /// Falls along half a cosine to 0.
    Cosine,
}

impl OptimizerConfig {
    /// This learning rate, and defaults.
    pub(super) fn of(learning_rate: f64) -> Self {
        Self {
            learning_rate,
            betas: betas(),
            eps: eps(),
            weight_decay: 0.0,
            max_grad_norm: unit(),
            max_skipped_steps: 0,
            warmup_steps: 0,
            schedule: Schedule::default(),
            ema: None,
        }
    }

    /// Learning rate of step `step` (from 0) of `steps`, as HF's schedules have it, with the
    /// warm-up counted so that the first step already moves.
    #[must_use]
    pub fn learning_rate_at(&self, step: u64, steps: u64) -> f64 {
        let peak = self.learning_rate;
        if step < self.warmup_steps {
            return peak * (step + 1) as f64 / (self.warmup_steps + 1) as f64;
        }
        let span = steps.saturating_sub(self.warmup_steps).max(1) as f64;
        let done = ((step - self.warmup_steps) as f64 / span).min(1.0);
        match self.schedule {
            Schedule::Constant => peak,
            Schedule::Linear => peak * (1.0 - done),
            Schedule::Cosine => peak * 0.5 * (1.0 + (std::f64::consts::PI * done).cos()),
        }
    }
}

fn one() -> u64 {
    1
}
fn unit() -> f64 {
    1.0
}
fn betas() -> [f64; 2] {
    [0.9, 0.95]
}
fn eps() -> f64 {
    1e-8
}

#[cfg(test)]
mod tests {
    use super::*;

    fn optimizer(schedule: Schedule) -> OptimizerConfig {
        OptimizerConfig { warmup_steps: 1, schedule, ..OptimizerConfig::of(1.0) }
    }

    #[test]
    fn the_rate_rises_then_follows_its_schedule() {
        let linear = optimizer(Schedule::Linear);
        let rates: Vec<f64> = (0..5).map(|step| linear.learning_rate_at(step, 5)).collect();
        assert_eq!(rates, [0.5, 1.0, 0.75, 0.5, 0.25]);
        let cosine = optimizer(Schedule::Cosine);
        assert!((cosine.learning_rate_at(3, 5) - 0.5).abs() < 1e-12);
        assert_eq!(optimizer(Schedule::Constant).learning_rate_at(99, 5), 1.0);
    }
}
