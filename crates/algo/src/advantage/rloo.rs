//! REINFORCE leave-one-out.

use super::{Singleton, per_group};
use crate::AlgoError;
use crate::group::Groups;

/// Settings of RLOO.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Rloo {
    /// What a group of one gets. Default [`Singleton::Keep`] (verl); verl's vectorised form has
    /// [`Singleton::Zero`], LightRFT refuses.
    pub singleton: Singleton,
}

impl Default for Rloo {
    fn default() -> Self {
        Self { singleton: Singleton::Keep }
    }
}

/// `a_i = R_i - (sum_j R_j - R_i) / (n - 1)`: each sample against the mean of the others.
///
/// Source: Ahmadian et al. 2024, eq. 6; LightRFT `RLOOCalculator`; verl
/// `compute_rloo_outcome_advantage`, there written `R n/(n-1) - mean n/(n-1)`.
///
/// # Errors
/// [`AlgoError::Length`], [`AlgoError::NonFinite`], [`AlgoError::GroupOfOne`] if so set.
pub fn rloo(spec: &Rloo, rewards: &[f64], groups: &Groups) -> Result<Vec<f64>, AlgoError> {
    per_group(
        "rloo",
        rewards,
        groups,
        spec.singleton,
        |r| r,
        |_, own, out| {
            let sum: f64 = own.iter().sum();
            let others = (own.len() - 1) as f64;
            for (a, r) in out.iter_mut().zip(own) {
                *a = r - (sum - r) / others;
            }
        },
    )
}
