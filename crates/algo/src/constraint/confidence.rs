//! A one-sided upper confidence bound of a mean, by Student's t.

use super::student_t_quantile;
use crate::AlgoError;
use crate::error::parameter;
use crate::statistics::Spread;

/// `bound = mean + k std`, with
/// `k = c1 t(1 - delta, n - 1) / sqrt(n) + c2 t(1 - delta, N - 1) / sqrt(N)`.
///
/// The first part is the bound of the mean of the `n` costs at hand; the second inflates it by
/// what the later test on `N` costs will ask for, so that a policy trained to the bound passes
/// the test with probability `1 - delta`.
///
/// Source: HC-RLHF `ReinforceCILagTrainer.rl_step`. `std` is the unbiased one.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ConfidenceBound {
    /// `delta`, the accepted probability that the bound is below the true mean, in `[0, 1]`.
    /// Default 0.1.
    pub fail_probability: f64,
    /// `N`, number of costs of the later safety test. Default 1000.
    pub safety_samples: usize,
    /// `c1`. Default 1 (HC-RLHF's experiments: 4).
    pub training_weight: f64,
    /// `c2`; 0 leaves the later test out. Default 1 (HC-RLHF's experiments: 2).
    pub safety_weight: f64,
}

impl Default for ConfidenceBound {
    fn default() -> Self {
        Self {
            fail_probability: 0.1,
            safety_samples: 1000,
            training_weight: 1.0,
            safety_weight: 1.0,
        }
    }
}

/// How many standard deviations the bound is above the mean, and what it is made of.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Coefficient {
    /// `t(1 - delta, n - 1)`.
    pub t_training: f64,
    /// `t(1 - delta, N - 1)`.
    pub t_safety: f64,
    /// `k`.
    pub value: f64,
}

impl ConfidenceBound {
    /// The coefficient for `samples` costs.
    ///
    /// # Errors
    /// [`AlgoError::TooFew`] for fewer than 2 samples, at hand or in the test (no degrees of
    /// freedom: the reference has NaN); [`AlgoError::Parameter`] for a `fail_probability` outside
    /// `[0, 1]` or a weight that is no number.
    pub fn coefficient(&self, samples: usize) -> Result<Coefficient, AlgoError> {
        const F: &str = "ConfidenceBound::coefficient";
        parameter(F, "training_weight", self.training_weight, true, "a finite number")?;
        parameter(F, "safety_weight", self.safety_weight, true, "a finite number")?;
        let t_training = self.quantile(samples)?;
        let t_safety = self.quantile(self.safety_samples)?;
        // A weight of 0 leaves its part out, also where t is infinite.
        let part = |weight: f64, t: f64, n: usize| {
            if weight == 0.0 { 0.0 } else { weight * t / (n as f64).sqrt() }
        };
        let value = part(self.training_weight, t_training, samples)
            + part(self.safety_weight, t_safety, self.safety_samples);
        Ok(Coefficient { t_training, t_safety, value })
    }

    /// The bound of the mean of `costs`, and its coefficient. Costs without spread are bounded by
    /// their mean.
    ///
    /// # Errors
    /// As [`ConfidenceBound::coefficient`]; [`AlgoError::NonFinite`] for a cost that is no number.
    pub fn bound(&self, costs: &[f64]) -> Result<(f64, Coefficient), AlgoError> {
        let coefficient = self.coefficient(costs.len())?;
        let spread = Spread::of(costs)?;
        Ok((spread.above_mean(coefficient.value), coefficient))
    }

    /// `t(1 - delta, n - 1)`.
    fn quantile(&self, samples: usize) -> Result<f64, AlgoError> {
        const F: &str = "ConfidenceBound::coefficient";
        let delta = self.fail_probability;
        parameter(F, "fail_probability", delta, (0.0..=1.0).contains(&delta), "in [0, 1]")?;
        if samples < 2 {
            return Err(AlgoError::TooFew { function: F, expected: 2, got: samples });
        }
        student_t_quantile(1.0 - delta, (samples - 1) as f64)
    }
}
