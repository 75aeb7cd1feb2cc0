//! The cost that makes a policy lower the confidence bound, not the mean alone.

use super::ConfidenceBound;
use crate::AlgoError;
use crate::error::all_finite;
use crate::statistics::Spread;

/// `c + k (c^2 - 2 c mean) / (2 std)`.
///
/// Its policy gradient is that of `mean + k std`: the derivative of the standard deviation is
/// that of `(E[c^2] - mean^2) / (2 std)`. Source: HC-RLHF `ReinforceCILagTrainer.rl_step`; mean
/// and unbiased `std` are those of the cost window over all ranks, `k` that of
/// [`ConfidenceBound::coefficient`] for one batch.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct AugmentedCost {
    /// Where `k` comes from.
    pub bound: ConfidenceBound,
    /// What costs without spread give.
    pub no_spread: NoSpread,
}

/// A window whose costs are all equal: `std = 0`, and the correction would be divided by it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum NoSpread {
    /// The cost itself: where nothing varies there is no spread to lower.
    #[default]
    Uncorrected,
    /// Divide by 0 as HC-RLHF does: `±inf` by the sign of `k (c^2 - 2 c mean)`; the cost itself
    /// where that is 0 (there NaN).
    CompatDivide,
}

impl AugmentedCost {
    /// The augmented costs of a batch, `[B]`, and `k`. `batch_samples` is the `n` that `k` counts
    /// with (HC-RLHF: batch per device times samples per prompt), `window` the costs that mean and
    /// spread are taken over, `costs` `[B]` those to augment.
    ///
    /// # Errors
    /// As [`ConfidenceBound::coefficient`] and [`ConfidenceBound::bound`];
    /// [`AlgoError::NonFinite`] for a cost that is no number.
    pub fn of(
        &self,
        batch_samples: usize,
        window: &[f64],
        costs: &[f64],
    ) -> Result<(Vec<f64>, f64), AlgoError> {
        all_finite("AugmentedCost::of", "costs", costs)?;
        let k = self.bound.coefficient(batch_samples)?.value;
        let spread = Spread::of(window)?;
        let augmented = costs.iter().map(|c| {
            let correction = k * (c * c - 2.0 * c * spread.mean) / (2.0 * spread.std);
            match self.no_spread {
                NoSpread::Uncorrected if spread.std == 0.0 => *c,
                _ if correction.is_nan() => *c,
                _ => c + correction,
            }
        });
        Ok((augmented.collect(), k))
    }
}
