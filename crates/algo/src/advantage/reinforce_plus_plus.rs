//! REINFORCE++, whose advantages are whitened over all tokens of the batch.

use super::{Singleton, per_group};
use crate::AlgoError;
use crate::error::{parameter, same_length};
use crate::group::Groups;
use crate::masked::{whiten, zero_outside};
use crate::real::Real;
use crate::returns::restarting;
use crate::statistics::mean;

/// `G_t = r_t + gamma m_{t+1} G_{t+1}`, `A = m whiten(G)`; written to `advantages` and `returns`.
///
/// Source: Hu 2025 (arXiv 2501.03262), whose KL penalty is part of `r_t`; verl
/// `compute_reinforce_plus_plus_outcome_advantage` (core_algos.py). All slices are `[B * T]`, the
/// `T = row_tokens` tokens of a sample side by side. Returns start anew at a token outside the mask
/// ([`restarting`]); whitening ([`whiten`]) counts masked-in tokens of the whole batch, and
/// advantages outside the mask are 0. No gradient flows.
///
/// # Errors
/// [`AlgoError::Length`]; [`AlgoError::Parameter`] for gamma outside `[0, 1]`;
/// [`AlgoError::TooFew`] for less than two masked-in tokens; [`AlgoError::NonFinite`].
pub fn reinforce_plus_plus<R: Real>(
    gamma: f64,
    rewards: &[R],
    mask: &[bool],
    row_tokens: usize,
    advantages: &mut [R],
    returns: &mut [R],
) -> Result<(), AlgoError> {
    const F: &str = "reinforce_plus_plus";
    let entries = rewards.len();
    same_length(F, "mask", entries, mask.len())?;
    same_length(F, "advantages", entries, advantages.len())?;
    same_length(F, "returns", entries, returns.len())?;
    let row = row_tokens.max(1);
    same_length(F, "rewards", entries - entries % row, entries)?;
    for ((rewards, mask), out) in
        rewards.chunks(row).zip(mask.chunks(row)).zip(returns.chunks_mut(row))
    {
        restarting(rewards, mask, gamma, out)?;
    }
    advantages.copy_from_slice(returns);
    whiten(advantages, mask, true)?;
    zero_outside(advantages, mask)
}

/// Settings of REINFORCE++ with a baseline.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ReinforcePlusPlusBaseline {
    /// What is taken from a group of one: [`Singleton::Keep`] (nothing; verl, the default),
    /// [`Singleton::Zero`] or [`Singleton::Refuse`].
    pub singleton: Singleton,
}

impl Default for ReinforcePlusPlusBaseline {
    fn default() -> Self {
        Self { singleton: Singleton::Keep }
    }
}

/// `A = m whiten(m (s_i - mean))`: scores minus their group's mean, on every token of the sample,
/// whitened over all tokens of the batch.
///
/// Source: Hu 2025 (arXiv 2501.03262); verl
/// `compute_reinforce_plus_plus_baseline_outcome_advantage` (core_algos.py). `scores` is `[B]`;
/// `mask` and the result are `[B * T]`. Returns are the advantages. No gradient flows.
///
/// # Errors
/// As [`reinforce_plus_plus`]; [`AlgoError::GroupOfOne`] if so set.
pub fn reinforce_plus_plus_baseline(
    spec: &ReinforcePlusPlusBaseline,
    scores: &[f64],
    groups: &Groups,
    mask: &[bool],
    row_tokens: usize,
) -> Result<Vec<f64>, AlgoError> {
    const F: &str = "reinforce_plus_plus_baseline";
    let centred = centred(spec, scores, groups)?;
    same_length(F, "mask", scores.len() * row_tokens, mask.len())?;
    parameter(F, "row_tokens", row_tokens as f64, row_tokens > 0, "at least 1")?;
    let mut advantages: Vec<f64> = centred
        .iter()
        .zip(mask.chunks(row_tokens))
        .flat_map(|(a, m)| super::broadcast(*a, m))
        .collect();
    whiten(&mut advantages, mask, true)?;
    zero_outside(&mut advantages, mask)?;
    Ok(advantages)
}

/// `s_i - mean` within each group.
pub(super) fn centred(
    spec: &ReinforcePlusPlusBaseline,
    scores: &[f64],
    groups: &Groups,
) -> Result<Vec<f64>, AlgoError> {
    const F: &str = "reinforce_plus_plus_baseline";
    per_group(
        F,
        scores,
        groups,
        spec.singleton,
        |s| s,
        |_, own, out| {
            let mean = mean(own);
            for (a, s) in out.iter_mut().zip(own) {
                *a = s - mean;
            }
        },
    )
}
