//! Mean and spread of rewards over all steps so far.

use serde::{Deserialize, Serialize};

use crate::AlgoError;
use crate::error::all_finite;
use crate::statistics::{mean, square_sum};

/// Moments of everything seen, merged batch by batch. It is algorithm state: it is saved with a
/// checkpoint and restored.
///
/// Source: Chan et al. 1979 (pairwise merging); LightRFT `RunningMoments` (trainer/utils.py), which
/// starts from a count of 1e-24 where this one starts from none.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RunningMoments {
    count: u64,
    mean: f64,
    square_sum: f64,
}

/// Moments of one batch.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct BatchMoments {
    /// Its mean.
    pub mean: f64,
    /// Its unbiased standard deviation; 0 for a batch of one.
    pub std: f64,
}

impl RunningMoments {
    /// Deviation over mean below which equal values cannot be told from rounding.
    pub const LEAST_SPREAD: f64 = 1e-12;

    /// Takes in a batch: with `d = mean_b - mean`, `n = n_a + n_b`,
    /// `mean += d n_b / n`, `M2 = M2_a + M2_b + d^2 n_a n_b / n`.
    ///
    /// # Errors
    /// [`AlgoError::Empty`] for a batch of none, [`AlgoError::NonFinite`]; nothing changes then.
    pub fn update(&mut self, values: &[f64]) -> Result<BatchMoments, AlgoError> {
        const F: &str = "RunningMoments::update";
        if values.is_empty() {
            return Err(AlgoError::Empty { function: F, what: "values" });
        }
        all_finite(F, "values", values)?;
        let batch_mean = mean(values);
        let batch_squares = square_sum(values, batch_mean);
        let (before, new) = (self.count as f64, values.len() as f64);
        let total = before + new;
        let shift = batch_mean - self.mean;
        self.mean += shift * new / total;
        self.square_sum += batch_squares + shift * shift * before * new / total;
        self.count += values.len() as u64;
        let std = if values.len() > 1 { (batch_squares / (new - 1.0)).sqrt() } else { 0.0 };
        Ok(BatchMoments { mean: batch_mean, std })
    }

    /// How many values were seen.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.count
    }

    /// Their mean; 0 before the first.
    #[must_use]
    pub fn mean(&self) -> f64 {
        self.mean
    }

    /// Their population variance; 1 before the first.
    #[must_use]
    pub fn population_variance(&self) -> f64 {
        if self.count == 0 { 1.0 } else { self.square_sum / self.count as f64 }
    }

    /// Their unbiased standard deviation; 1 before the first value and infinite after one alone:
    /// one value says nothing of its spread.
    #[must_use]
    pub fn std(&self) -> f64 {
        match self.count {
            0 => 1.0,
            1 => f64::INFINITY,
            n => (self.square_sum / (n - 1) as f64).sqrt(),
        }
    }

    /// `r <- r / std`, or `r <- (r - mean) / std` with `subtract_mean`, by all that was seen.
    ///
    /// Source: LightRFT `--reward_running_norm`, `--reward_running_norm_minus_mean`, which update
    /// with a batch and then normalise it.
    ///
    /// # Errors
    /// [`AlgoError::TooFew`] before the second value; [`AlgoError::NoSpread`] if all values seen
    /// are equal but for rounding; [`AlgoError::NonFinite`].
    pub fn normalise(&self, rewards: &mut [f64], subtract_mean: bool) -> Result<(), AlgoError> {
        const F: &str = "RunningMoments::normalise";
        all_finite(F, "rewards", rewards)?;
        if self.count < 2 {
            return Err(AlgoError::TooFew { function: F, expected: 2, got: self.count as usize });
        }
        let std = self.std();
        if std <= Self::LEAST_SPREAD * self.mean.abs() {
            return Err(AlgoError::NoSpread { function: F, value: self.mean });
        }
        let away = if subtract_mean { self.mean } else { 0.0 };
        for reward in rewards {
            *reward = (*reward - away) / std;
        }
        Ok(())
    }
}
