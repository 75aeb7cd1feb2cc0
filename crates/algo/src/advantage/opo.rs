//! On-policy RL with the optimal reward baseline.

use super::{Singleton, per_group};
use crate::AlgoError;
use crate::error::same_length;
use crate::group::Groups;

/// Settings of OPO.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Opo {
    /// What a group of one gets. Default [`Singleton::Keep`] (verl).
    pub singleton: Singleton,
}

impl Default for Opo {
    fn default() -> Self {
        Self { singleton: Singleton::Keep }
    }
}

/// `a_i = s_i - sum_j l_j s_j / sum_j l_j` within each group, `l` the samples' lengths: the baseline
/// of least variance if gradient norms grow with the length.
///
/// Source: Hao et al. 2025 (arXiv 2505.23585); verl `compute_opo_outcome_advantage`
/// (core_algos.py). `scores` and `lengths_tokens` (masked-in tokens) are `[B]`. A group without
/// any token gets 0, where verl has 0/0. No gradient flows.
///
/// # Errors
/// [`AlgoError::Length`], [`AlgoError::NonFinite`], [`AlgoError::GroupOfOne`] if so set.
pub fn opo(
    spec: &Opo,
    scores: &[f64],
    lengths_tokens: &[usize],
    groups: &Groups,
) -> Result<Vec<f64>, AlgoError> {
    same_length("opo", "lengths_tokens", groups.samples(), lengths_tokens.len())?;
    per_group(
        "opo",
        scores,
        groups,
        spec.singleton,
        |s| s,
        |members, own, out| {
            let (mut weighted, mut tokens) = (0.0, 0.0);
            for (i, score) in members.iter().zip(own) {
                let length = lengths_tokens[*i] as f64;
                weighted += length * score;
                tokens += length;
            }
            if tokens > 0.0 {
                for (a, s) in out.iter_mut().zip(own) {
                    *a = s - weighted / tokens;
                }
            }
        },
    )
}
