//! GRPO for pass@k: only a group's best sample is rewarded.

use super::{Singleton, per_group};
use crate::AlgoError;
use crate::error::parameter;
use crate::group::Groups;
use crate::statistics::{mean, square_sum};

/// Settings of pass@k.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct PassK {
    /// Divide by the group's standard deviation. Default true.
    pub norm_by_std: bool,
    /// Added to the standard deviation. Default 1e-6.
    pub epsilon: f64,
}

impl Default for PassK {
    fn default() -> Self {
        Self { norm_by_std: true, epsilon: 1e-6 }
    }
}

/// `a_best = (s_best - s_second) / (std + epsilon)` in each group, 0 for the other samples; `std`
/// unbiased. Without `norm_by_std`, `a_best = s_best - s_second`. Equal best scores give 0.
///
/// Source: Tang et al. 2025 (arXiv 2503.19595); verl `compute_grpo_passk_outcome_advantage`
/// (core_algos.py). `scores` is `[B]`. No gradient flows.
///
/// # Errors
/// [`AlgoError::GroupOfOne`] (verl raises there too), [`AlgoError::Parameter`] for an epsilon
/// below 0, [`AlgoError::Length`], [`AlgoError::NonFinite`].
pub fn pass_k(spec: &PassK, scores: &[f64], groups: &Groups) -> Result<Vec<f64>, AlgoError> {
    parameter("pass_k", "epsilon", spec.epsilon, spec.epsilon >= 0.0, "at least 0")?;
    per_group(
        "pass_k",
        scores,
        groups,
        Singleton::Refuse,
        |s| s,
        |_, own, out| {
            let (best, second) = best_two(own);
            let gap = own[best] - second;
            out[best] = if spec.norm_by_std && gap > 0.0 {
                let std = (square_sum(own, mean(own)) / (own.len() - 1) as f64).sqrt();
                gap / (std + spec.epsilon)
            } else {
                gap
            };
        },
    )
}

/// The index of the greatest score and the greatest of the others; two scores at least.
fn best_two(scores: &[f64]) -> (usize, f64) {
    let (mut best, mut second) = (0, f64::NEG_INFINITY);
    for (i, score) in scores.iter().enumerate().skip(1) {
        if *score > scores[best] {
            second = scores[best];
            best = i;
        } else {
            second = second.max(*score);
        }
    }
    (best, second)
}
