//! Generalised advantage estimation, with a critic's values.

use crate::AlgoError;
use crate::error::{parameter, same_length};
use crate::real::Real;

/// Settings of GAE.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Gae {
    /// Discount per token, in `[0, 1]`. Default 1.
    pub gamma: f64,
    /// Trade of bias for variance, in `[0, 1]`. Default 0.95.
    pub lambda: f64,
    /// What a token outside the mask does to the recursion. Default [`Outside::Skip`].
    pub outside: Outside,
}

impl Default for Gae {
    fn default() -> Self {
        Self { gamma: 1.0, lambda: 0.95, outside: Outside::Skip }
    }
}

/// Tokens outside the mask (padding, or a tool's and a user's turns within a dialogue).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outside {
    /// They are passed over: next value and running advantage are carried through them (verl).
    Skip,
    /// Their values and rewards count as 0 (LightRFT). Right for padding only.
    Zero,
}

/// `delta_t = r_t + gamma V_{t+1} - V_t`, `A_t = delta_t + gamma lambda A_{t+1}`,
/// `G_t = A_t + V_t`, backwards over one sample; written to `advantages` and `returns`.
///
/// Source: Schulman et al. 2016, eq. 16; verl `compute_gae_advantage_return` (core_algos.py,
/// before its whitening), LightRFT `GAECalculator`. All slices are `[T]`. With [`Outside::Skip`] a
/// token outside the mask shows the running advantage of the tokens after it, as in verl.
///
/// # Errors
/// [`AlgoError::Length`]; [`AlgoError::Parameter`] for gamma or lambda outside `[0, 1]`.
pub fn gae<R: Real>(
    spec: &Gae,
    rewards: &[R],
    values: &[R],
    mask: &[bool],
    advantages: &mut [R],
    returns: &mut [R],
) -> Result<(), AlgoError> {
    const F: &str = "gae";
    let tokens = rewards.len();
    same_length(F, "values", tokens, values.len())?;
    same_length(F, "mask", tokens, mask.len())?;
    same_length(F, "advantages", tokens, advantages.len())?;
    same_length(F, "returns", tokens, returns.len())?;
    let Gae { gamma, lambda, outside } = *spec;
    parameter(F, "gamma", gamma, (0.0..=1.0).contains(&gamma), "in [0, 1]")?;
    parameter(F, "lambda", lambda, (0.0..=1.0).contains(&lambda), "in [0, 1]")?;
    let (mut next_value, mut running) = (0.0f64, 0.0f64);
    for t in (0..tokens).rev() {
        let (reward, value): (f64, f64) = match (mask[t], outside) {
            (true, _) | (false, Outside::Skip) => (rewards[t].into(), values[t].into()),
            (false, Outside::Zero) => (0.0, 0.0),
        };
        if mask[t] || outside == Outside::Zero {
            let delta = reward + gamma * next_value - value;
            running = delta + gamma * lambda * running;
            next_value = value;
        }
        advantages[t] = R::of(running);
        returns[t] = R::of(running + value);
    }
    Ok(())
}
