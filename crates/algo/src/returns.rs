//! What is still to come: discounted returns.

use crate::AlgoError;
use crate::error::{finite_within, parameter, same_length, whole_rows};
use crate::real::Real;
use crate::recurrence::{Recurrence, STAGE};
use crate::threads;

const F: &str = "returns::discounted";

/// `G_t = m_t r_t + gamma G_{t+1}`, backwards over one sample's tokens; written to `returns`.
///
/// Source: LightRFT, REINFORCE family (advantage_calculator.py). `rewards`, `mask` and `returns`
/// are `[T]`; rewards outside the mask count as 0, whatever they hold, but the return runs on
/// through them. An empty sample is fine.
/// Allocates nothing.
///
/// # Errors
/// [`AlgoError::Length`]; [`AlgoError::Parameter`] for gamma outside `[0, 1]`;
/// [`AlgoError::NonFinite`] for a masked-in reward that is no finite number.
pub fn discounted<R: Real>(
    rewards: &[R],
    mask: &[bool],
    gamma: f64,
    returns: &mut [R],
) -> Result<(), AlgoError> {
    discounted_rows(rewards.len().max(1), rewards, mask, gamma, returns)
}

/// [`discounted`] for each of B rows of `tokens` tokens. All slices are `[B * tokens]`, a row's
/// tokens side by side; an index in an error counts through all rows.
///
/// # Errors
/// As [`discounted`]; [`AlgoError::Parameter`] for `tokens` of 0 or that do not divide the entries.
pub fn discounted_rows<R: Real>(
    tokens: usize,
    rewards: &[R],
    mask: &[bool],
    gamma: f64,
    returns: &mut [R],
) -> Result<(), AlgoError> {
    let entries = rewards.len();
    same_length(F, "mask", entries, mask.len())?;
    same_length(F, "returns", entries, returns.len())?;
    parameter(F, "gamma", gamma, (0.0..=1.0).contains(&gamma), "in [0, 1]")?;
    whole_rows(F, tokens, entries)?;
    let threads = threads::worth(entries).min(entries / tokens);
    if threads <= 1 {
        return Rows { tokens, start: 0, rewards, mask, gamma, returns }.solve();
    }
    let piece = (entries / tokens).div_ceil(threads) * tokens;
    let inputs = rewards.chunks(piece).zip(mask.chunks(piece));
    let pieces = inputs.zip(returns.chunks_mut(piece)).enumerate();
    let pieces = pieces.map(|(at, ((rewards, mask), returns))| Rows {
        tokens,
        start: at * piece,
        rewards,
        mask,
        gamma,
        returns,
    });
    threads::at_once(pieces, Rows::solve).into_iter().collect()
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

/// Some rows of a batch, the first of which begins at its entry `start`.
struct Rows<'a, R> {
    tokens: usize,
    start: usize,
    rewards: &'a [R],
    mask: &'a [bool],
    gamma: f64,
    returns: &'a mut [R],
}

impl<R: Real> Rows<'_, R> {
    fn solve(self) -> Result<(), AlgoError> {
        let Self { tokens, gamma, .. } = self;
        let processor = pulp::Arch::new();
        let inputs = self.rewards.chunks(tokens).zip(self.mask.chunks(tokens));
        let rows = inputs.zip(self.returns.chunks_mut(tokens));
        for (row, ((rewards, mask), returns)) in rows.enumerate() {
            let first = processor.dispatch(Row { rewards, mask, gamma, returns });
            // Whatever is not finite reaches the first token: 0 times an infinity is NaN.
            if !first.is_finite() {
                let index = self.start + row * tokens;
                finite_within(F, "rewards", index, rewards, mask)?;
                let argument = "returns";
                return Err(AlgoError::NonFinite { function: F, argument, index, value: first });
            }
        }
        Ok(())
    }
}

/// One row, in the vector instructions that the processor has. Gives the first token's return.
struct Row<'a, R> {
    rewards: &'a [R],
    mask: &'a [bool],
    gamma: f64,
    returns: &'a mut [R],
}

impl<R: Real> pulp::WithSimd for Row<'_, R> {
    type Output = f64;

    #[inline(always)]
    fn with_simd<S: pulp::Simd>(self, simd: S) -> f64 {
        let mut recurrence = Recurrence::of::<S>(self.gamma);
        let mut to_come = 0.0;
        let inputs = self.rewards.rchunks(STAGE).zip(self.mask.rchunks(STAGE));
        for ((rewards, mask), out) in inputs.zip(self.returns.rchunks_mut(STAGE)) {
            if to_come == 0.0 && mask.iter().all(|keep| !keep) {
                // Padding after the response.
                out.fill(R::of(0.0));
                continue;
            }
            let tokens = rewards.len();
            for (d, (reward, keep)) in recurrence.d(tokens).iter_mut().zip(rewards.iter().zip(mask))
            {
                let reward: f64 = (*reward).into();
                *d = if *keep { reward } else { 0.0 };
            }
            let sums = recurrence.solve(simd, tokens, to_come);
            for (out, sum) in out.iter_mut().zip(sums) {
                *out = R::of(*sum);
            }
            to_come = sums[0];
        }
        to_come
    }
}
