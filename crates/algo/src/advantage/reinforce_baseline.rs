//! REINFORCE with the group's mean as baseline.

use super::{Singleton, per_group};
use crate::AlgoError;
use crate::group::Groups;
use crate::statistics::mean;

/// `a_i = R_i - mean` within each group.
///
/// Source: LightRFT `ReinforceBaselineCalculator.preprocess_rewards`; it then takes returns with
/// gamma 1. `rewards` is `[B]`.
///
/// # Errors
/// [`AlgoError::GroupOfOne`], [`AlgoError::Length`], [`AlgoError::NonFinite`].
pub fn reinforce_baseline(rewards: &[f64], groups: &Groups) -> Result<Vec<f64>, AlgoError> {
    per_group(
        "reinforce_baseline",
        rewards,
        groups,
        Singleton::Refuse,
        |r| r,
        |own, out| {
            let mean = mean(own);
            for (a, r) in out.iter_mut().zip(own) {
                *a = r - mean;
            }
        },
    )
}
