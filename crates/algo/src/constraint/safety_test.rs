//! The test that a trained policy must pass.

use super::ConfidenceBound;
use crate::AlgoError;
use crate::error::{all_finite, parameter};
use crate::statistics::mean;

/// Passes when `mean + t(1 - delta, n - 1) std / sqrt(n) <= threshold` over held-out costs.
///
/// Source: HC-RLHF `ReinforceTrainer.eval`. A policy whose true mean cost is above the threshold
/// passes with probability at most `delta` (exactly so for normal costs).
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct SafetyTest {
    /// `delta`, in `[0, 1]`. Default 0.1.
    pub fail_probability: f64,
    /// What the bound must not exceed. Default 0.
    pub threshold: f64,
    /// Fewer costs than this decide nothing; at least 2. Default 2.
    pub min_samples: usize,
}

impl Default for SafetyTest {
    fn default() -> Self {
        Self { fail_probability: 0.1, threshold: 0.0, min_samples: 2 }
    }
}

/// What the test says.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Verdict {
    /// The bound is at most the threshold.
    Pass(SafetyBound),
    /// The bound is above it.
    Fail(SafetyBound),
    /// Too few costs to say either: neither a pass nor a fail.
    NotEnoughData {
        /// Costs there must be.
        needed: usize,
        /// Costs there are.
        got: usize,
    },
}

/// The figures behind a pass or fail.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct SafetyBound {
    /// `t(1 - delta, n - 1) / sqrt(n)`.
    pub coefficient: f64,
    /// The upper confidence bound of the mean cost.
    pub upper_bound: f64,
    /// Share of costs that are at most the threshold.
    pub success_rate: f64,
}

impl SafetyTest {
    /// Tests held-out costs, one a sample.
    ///
    /// # Errors
    /// [`AlgoError::NonFinite`] for a cost that is no number; [`AlgoError::Parameter`] for a
    /// `fail_probability` outside `[0, 1]`, a threshold that is no number or `min_samples` below 2.
    pub fn decide(&self, costs: &[f64]) -> Result<Verdict, AlgoError> {
        const F: &str = "SafetyTest::decide";
        let (delta, needed) = (self.fail_probability, self.min_samples);
        parameter(F, "fail_probability", delta, (0.0..=1.0).contains(&delta), "in [0, 1]")?;
        parameter(F, "threshold", self.threshold, true, "a finite number")?;
        parameter(F, "min_samples", needed as f64, needed >= 2, "at least 2")?;
        all_finite(F, "costs", costs)?;
        if costs.len() < needed {
            return Ok(Verdict::NotEnoughData { needed, got: costs.len() });
        }
        let bound = ConfidenceBound {
            fail_probability: delta,
            safety_weight: 0.0,
            ..ConfidenceBound::default()
        };
        let (upper_bound, coefficient) = bound.bound(costs)?;
        let safe: Vec<f64> =
            costs.iter().map(|c| if *c <= self.threshold { 1.0 } else { 0.0 }).collect();
        let figures =
            SafetyBound { coefficient: coefficient.value, upper_bound, success_rate: mean(&safe) };
        if upper_bound <= self.threshold {
            Ok(Verdict::Pass(figures))
        } else {
            Ok(Verdict::Fail(figures))
        }
    }
}
