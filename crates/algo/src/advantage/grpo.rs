//! GRPO's outcome advantage as verl computes it.

use super::{Singleton, per_group};
use crate::AlgoError;
use crate::error::parameter;
use crate::group::Groups;
use crate::statistics::{mean, square_sum};

/// Settings of GRPO.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Grpo {
    /// Divide by the group's standard deviation. Default true; false is Dr. GRPO.
    pub norm_by_std: bool,
    /// Added to the standard deviation. Default 1e-6.
    pub epsilon: f64,
    /// What a group of one gets. Default [`Singleton::Keep`]: mean 0 and standard deviation 1 are
    /// taken, so its advantage is its score (over `1 + epsilon` when normalised).
    pub singleton: Singleton,
}

impl Default for Grpo {
    fn default() -> Self {
        Self { norm_by_std: true, epsilon: 1e-6, singleton: Singleton::Keep }
    }
}

/// `a_i = (s_i - mean) / (std + epsilon)` within each group, `std` unbiased; without
/// `norm_by_std`, `a_i = s_i - mean`.
///
/// Source: DeepSeekMath, section 4.1.2; Dr. GRPO (no std); verl
/// `compute_grpo_outcome_advantage` (core_algos.py) and its vectorised form, which differs in
/// rounding only. `scores` is `[B]`, the sums of token rewards. A group without variance gets 0.
///
/// # Errors
/// [`AlgoError::Parameter`] for an epsilon below 0, [`AlgoError::Length`],
/// [`AlgoError::NonFinite`], [`AlgoError::GroupOfOne`] if so set.
pub fn grpo(spec: &Grpo, scores: &[f64], groups: &Groups) -> Result<Vec<f64>, AlgoError> {
    parameter("grpo", "epsilon", spec.epsilon, spec.epsilon >= 0.0, "at least 0")?;
    let scaled = |difference: f64, divisor: f64| match spec.norm_by_std {
        false => difference,
        // With epsilon 0 a group without variance would be 0/0.
        true if difference == 0.0 => 0.0,
        true => difference / divisor,
    };
    // verl holds a lone sample's standard deviation in float32, and so the sum with epsilon.
    let alone = f64::from(1.0f32 + spec.epsilon as f32);
    per_group(
        "grpo",
        scores,
        groups,
        spec.singleton,
        |s| scaled(s, alone),
        |_, own, out| {
            let mean = mean(own);
            let std = (square_sum(own, mean) / (own.len() - 1) as f64).sqrt();
            for (a, s) in out.iter_mut().zip(own) {
                *a = scaled(s - mean, std + spec.epsilon);
            }
        },
    )
}
