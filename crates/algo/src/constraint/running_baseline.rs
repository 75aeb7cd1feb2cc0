//! The mean of everything seen so far, as a baseline.

use crate::AlgoError;
use crate::error::all_finite;

/// Running mean over all samples of a run; part of the training state.
///
/// Source: HC-RLHF `ReinforceCILagTrainer.rl_step` (`reinforce_mean_obj`). There the batch is taken
/// in **before** its own loss is computed, so the baseline is slightly biased towards it.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct RunningBaseline {
    mean: f64,
    count: u64,
}

impl RunningBaseline {
    /// As it was saved.
    ///
    /// # Errors
    /// [`AlgoError::NonFinite`] for a mean that is no number.
    pub fn resumed(mean: f64, count: u64) -> Result<Self, AlgoError> {
        all_finite("RunningBaseline::resumed", "mean", &[mean])?;
        Ok(Self { mean, count })
    }

    /// Takes in the net returns of a batch (of all ranks), `[B]`; an empty one changes nothing.
    ///
    /// # Errors
    /// [`AlgoError::NonFinite`]; the baseline is then unchanged.
    pub fn update(&mut self, returns: &[f64]) -> Result<(), AlgoError> {
        all_finite("RunningBaseline::update", "returns", returns)?;
        let total = self.count + returns.len() as u64;
        if total > 0 {
            let sum: f64 = returns.iter().sum();
            self.mean = (self.mean * self.count as f64 + sum) / total as f64;
            self.count = total;
        }
        Ok(())
    }

    /// The mean; 0 before the first sample.
    #[must_use]
    pub fn mean(&self) -> f64 {
        self.mean
    }

    /// How many samples it is the mean of.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.count
    }
}
