//! REINFORCE with the group's mean as baseline.

use super::{Singleton, per_group};
use crate::AlgoError;
use crate::group::Groups;
use crate::statistics::mean;

/// Settings of REINFORCE with a baseline.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ReinforceBaseline {
    /// What a group of one gets. Default [`Singleton::Refuse`], as LightRFT's command line;
    /// its function by itself gives [`Singleton::Zero`].
    pub singleton: Singleton,
}

impl Default for ReinforceBaseline {
    fn default() -> Self {
        Self { singleton: Singleton::Refuse }
    }
}

/// `a_i = R_i - mean` within each group.
///
/// Source: LightRFT `ReinforceBaselineCalculator.preprocess_rewards`; it then takes returns with
/// gamma 1. `rewards` is `[B]`.
///
/// # Errors
/// [`AlgoError::GroupOfOne`] if so set, [`AlgoError::Length`], [`AlgoError::NonFinite`].
pub fn reinforce_baseline(
    spec: &ReinforceBaseline,
    rewards: &[f64],
    groups: &Groups,
) -> Result<Vec<f64>, AlgoError> {
    per_group(
        "reinforce_baseline",
        rewards,
        groups,
        spec.singleton,
        |r| r,
        |_, own, out| {
            let mean = mean(own);
            for (a, r) in out.iter_mut().zip(own) {
                *a = r - mean;
            }
        },
    )
}
