//! LightRFT's `group_norm` (alias `grpo` there).

use super::{Singleton, per_group};
use crate::AlgoError;
use crate::group::Groups;
use crate::statistics::{mean, square_sum};

/// What is added to the group's standard deviation.
pub const GROUP_NORM_EPSILON: f64 = 1e-9;

/// `a_i = (R_i - mean) / (std + 1e-9)` within each group, `std` unbiased.
///
/// Source: LightRFT `GroupNormCalculator.preprocess_rewards` (advantage_calculator.py).
/// `rewards` is `[B]`. A group without variance gets 0.
///
/// # Errors
/// [`AlgoError::GroupOfOne`], [`AlgoError::Length`], [`AlgoError::NonFinite`].
pub fn group_norm(rewards: &[f64], groups: &Groups) -> Result<Vec<f64>, AlgoError> {
    per_group(
        "group_norm",
        rewards,
        groups,
        Singleton::Refuse,
        |r| r,
        |_, own, out| {
            let mean = mean(own);
            let std = (square_sum(own, mean) / (own.len() - 1) as f64).sqrt();
            for (a, r) in out.iter_mut().zip(own) {
                *a = (r - mean) / (std + GROUP_NORM_EPSILON);
            }
        },
    )
}
