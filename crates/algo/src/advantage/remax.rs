//! ReMax: the reward of the greedy answer as baseline.

use crate::AlgoError;
use crate::error::{all_finite, same_length};
use crate::real::Real;
use crate::returns::discounted;

/// `G_t = sum_{u >= t} m_u r_u`, `A_t = G_t - b m_t` over one sample; written to `advantages` and
/// `returns`. `baseline` is the reward of the greedy answer to the same prompt.
///
/// Source: Li et al. 2023 (arXiv 2310.10505); verl `compute_remax_outcome_advantage`
/// (core_algos.py). All slices are `[T]`; rewards outside the mask count as 0. A token outside the
/// mask shows the return of the tokens after it, as in verl. No gradient flows.
///
/// # Errors
/// [`AlgoError::Length`]; [`AlgoError::NonFinite`] for the baseline.
pub fn remax<R: Real>(
    rewards: &[R],
    baseline: f64,
    mask: &[bool],
    advantages: &mut [R],
    returns: &mut [R],
) -> Result<(), AlgoError> {
    same_length("remax", "advantages", rewards.len(), advantages.len())?;
    all_finite("remax", "baseline", &[baseline])?;
    discounted(rewards, mask, 1.0, returns)?;
    for ((a, g), keep) in advantages.iter_mut().zip(returns).zip(mask) {
        *a = R::of((*g).into() - if *keep { baseline } else { 0.0 });
    }
    Ok(())
}
