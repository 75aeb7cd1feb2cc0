//! What is still to come: discounted returns.

use crate::AlgoError;
use crate::error::{parameter, same_length};
use crate::real::Real;

/// `G_t = m_t r_t + gamma G_{t+1}`, backwards over one sample's tokens; written to `returns`.
///
/// Source: LightRFT, REINFORCE family (advantage_calculator.py). `rewards`, `mask` and `returns`
/// are `[T]`; rewards outside the mask count as 0, whatever they hold, but the return runs on
/// through them. An empty sample is fine.
///
/// # Errors
/// [`AlgoError::Length`]; [`AlgoError::Parameter`] for gamma outside `[0, 1]`.
pub fn discounted<R: Real>(
    rewards: &[R],
    mask: &[bool],
    gamma: f64,
    returns: &mut [R],
) -> Result<(), AlgoError> {
    const F: &str = "returns::discounted";
    same_length(F, "mask", rewards.len(), mask.len())?;
    same_length(F, "returns", rewards.len(), returns.len())?;
    parameter(F, "gamma", gamma, (0.0..=1.0).contains(&gamma), "in [0, 1]")?;
    let mut to_come = 0.0;
    for ((reward, keep), out) in rewards.iter().zip(mask).zip(returns).rev() {
        let now: f64 = if *keep { (*reward).into() } else { 0.0 };
        to_come = now + gamma * to_come;
        *out = R::of(to_come);
    }
    Ok(())
}

/// `G_t = r_t + gamma m_{t+1} G_{t+1}`, backwards over one sample's tokens; written to `returns`.
/// The sum starts anew before each token outside the mask: nothing runs on through a gap. A token
/// outside the mask shows its own reward and what comes after it.
///
/// Source: verl `compute_reinforce_plus_plus_outcome_advantage` (core_algos.py), where the mask
/// ends a packed sample. For dialogues, whose masks have gaps, use [`discounted`]. All slices are
/// `[T]`.
///
/// # Errors
/// [`AlgoError::Length`]; [`AlgoError::Parameter`] for gamma outside `[0, 1]`.
pub fn restarting<R: Real>(
    rewards: &[R],
    mask: &[bool],
    gamma: f64,
    returns: &mut [R],
) -> Result<(), AlgoError> {
    const F: &str = "returns::restarting";
    same_length(F, "mask", rewards.len(), mask.len())?;
    same_length(F, "returns", rewards.len(), returns.len())?;
    parameter(F, "gamma", gamma, (0.0..=1.0).contains(&gamma), "in [0, 1]")?;
    let mut to_come = 0.0;
    for ((reward, keep), out) in rewards.iter().zip(mask).zip(returns).rev() {
        let here = (*reward).into() + gamma * to_come;
        *out = R::of(here);
        to_come = if *keep { here } else { 0.0 };
    }
    Ok(())
}
