//! Generalised advantage estimation, with a critic's values.

use crate::AlgoError;
use crate::error::{finite_within, parameter, same_length, whole_rows};
use crate::real::Real;
use crate::recurrence::{Recurrence, STAGE};

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
/// Allocates nothing.
///
/// # Errors
/// [`AlgoError::Length`]; [`AlgoError::Parameter`] for gamma or lambda outside `[0, 1]`;
/// [`AlgoError::NonFinite`] for a masked-in reward or value that is no finite number.
pub fn gae<R: Real>(
    spec: &Gae,
    rewards: &[R],
    values: &[R],
    mask: &[bool],
    advantages: &mut [R],
    returns: &mut [R],
) -> Result<(), AlgoError> {
    gae_rows(spec, rewards.len().max(1), rewards, values, mask, advantages, returns)
}

/// [`gae`] for each of B rows of `tokens` tokens. All slices are `[B * tokens]`, a row's tokens
/// side by side; an index in an error counts through all rows.
///
/// # Errors
/// As [`gae`]; [`AlgoError::Parameter`] for `tokens` of 0 or that do not divide the entries.
pub fn gae_rows<R: Real>(
    spec: &Gae,
    tokens: usize,
    rewards: &[R],
    values: &[R],
    mask: &[bool],
    advantages: &mut [R],
    returns: &mut [R],
) -> Result<(), AlgoError> {
    const F: &str = "gae";
    let entries = rewards.len();
    same_length(F, "values", entries, values.len())?;
    same_length(F, "mask", entries, mask.len())?;
    same_length(F, "advantages", entries, advantages.len())?;
    same_length(F, "returns", entries, returns.len())?;
    let Gae { gamma, lambda, .. } = *spec;
    parameter(F, "gamma", gamma, (0.0..=1.0).contains(&gamma), "in [0, 1]")?;
    parameter(F, "lambda", lambda, (0.0..=1.0).contains(&lambda), "in [0, 1]")?;
    whole_rows(F, tokens, entries)?;
    let processor = pulp::Arch::new();
    let inputs = rewards.chunks(tokens).zip(values.chunks(tokens)).zip(mask.chunks(tokens));
    let outputs = advantages.chunks_mut(tokens).zip(returns.chunks_mut(tokens));
    for (row, (((rewards, values), mask), (advantages, returns))) in inputs.zip(outputs).enumerate()
    {
        let row_of = Row { spec, rewards, values, mask, advantages, returns };
        let first = processor.dispatch(row_of);
        // Whatever is not finite reaches the first token: 0 times an infinity is NaN.
        if !first.is_finite() {
            let start = row * tokens;
            finite_within(F, "rewards", start, rewards, mask)?;
            finite_within(F, "values", start, values, mask)?;
            return Err(AlgoError::NonFinite {
                function: F,
                argument: "advantages",
                index: start,
                value: first,
            });
        }
    }
    Ok(())
}

/// One row, in the vector instructions that the processor has. Gives the first token's advantage.
struct Row<'a, R> {
    spec: &'a Gae,
    rewards: &'a [R],
    values: &'a [R],
    mask: &'a [bool],
    advantages: &'a mut [R],
    returns: &'a mut [R],
}

impl<R: Real> pulp::NullaryFnOnce for Row<'_, R> {
    type Output = f64;

    #[inline(always)]
    fn call(self) -> f64 {
        let mut sums = Backwards::of(self.spec);
        let inputs = self.rewards.rchunks(STAGE).zip(self.values.rchunks(STAGE));
        let outputs = self.advantages.rchunks_mut(STAGE).zip(self.returns.rchunks_mut(STAGE));
        for (((rewards, values), mask), (advantages, returns)) in
            inputs.zip(self.mask.rchunks(STAGE)).zip(outputs)
        {
            let tokens = sums.gather(rewards, values, mask);
            sums.solve(tokens);
            sums.spread(values, mask, advantages, returns);
        }
        sums.running
    }
}

/// Tokens that are gathered and spread together.
const BLOCK: usize = 64;

/// The sums over one row, whose tokens are taken a stage at a time, the last first. The tokens of a
/// stage that take part in the recursion are gathered, solved, and spread again: with
/// [`Outside::Skip`] those of the mask, with [`Outside::Zero`] all.
struct Backwards {
    gamma: f64,
    outside: Outside,
    recurrence: Recurrence,
    /// Of the gathered tokens, and of the one that follows them.
    value: [f64; STAGE + 1],
    next_value: f64,
    running: f64,
}

impl Backwards {
    #[inline(always)]
    fn of(spec: &Gae) -> Self {
        let Gae { gamma, lambda, outside } = *spec;
        let recurrence = Recurrence::of(gamma * lambda);
        let value = [0.0; STAGE + 1];
        Self { gamma, outside, recurrence, value, next_value: 0.0, running: 0.0 }
    }

    /// How a block's tokens take part.
    #[inline(always)]
    fn share(&self, mask: &[bool]) -> Share {
        let kept = mask.iter().fold(0u8, |kept, keep| kept + u8::from(*keep));
        match self.outside {
            Outside::Skip if kept == 0 => Share::None,
            Outside::Skip if usize::from(kept) < mask.len() => Share::Some,
            // With every token kept, or with those outside as 0, the two are one.
            Outside::Skip | Outside::Zero => Share::All,
        }
    }

    /// Takes over rewards and values; returns how many tokens take part.
    #[inline(always)]
    fn gather<R: Real>(&mut self, rewards: &[R], values: &[R], mask: &[bool]) -> usize {
        let mut n = 0;
        let blocks = rewards.chunks(BLOCK).zip(values.chunks(BLOCK)).zip(mask.chunks(BLOCK));
        for ((rewards, values), mask) in blocks {
            let share = self.share(mask);
            let end = n + mask.len();
            let (d, value) = (&mut self.recurrence.d(end)[n..], &mut self.value[n..end]);
            let tokens = rewards.iter().zip(values).zip(mask);
            match share {
                Share::None => {}
                Share::All => {
                    for ((d, value), ((r, v), keep)) in d.iter_mut().zip(value).zip(tokens) {
                        let (r, v): (f64, f64) = ((*r).into(), (*v).into());
                        (*d, *value) = if *keep { (r, v) } else { (0.0, 0.0) };
                    }
                    n = end;
                }
                Share::Some => {
                    let mut at = 0;
                    for ((reward, v), keep) in tokens {
                        (d[at], value[at]) = ((*reward).into(), (*v).into());
                        at += usize::from(*keep);
                    }
                    n += at;
                }
            }
        }
        n
    }

    /// The recursion over `n` gathered tokens.
    #[inline(always)]
    fn solve(&mut self, n: usize) {
        self.value[n] = self.next_value;
        let value = &self.value[..=n];
        for (t, d) in self.recurrence.d(n).iter_mut().enumerate() {
            *d += self.gamma * value[t + 1] - value[t];
        }
        self.running = self.recurrence.solve(n, self.running)[0];
        self.next_value = value[0];
    }

    /// Gives each token its advantage, those that did not take part that of the next that did.
    #[inline(always)]
    fn spread<R: Real>(
        &self,
        values: &[R],
        mask: &[bool],
        advantages: &mut [R],
        returns: &mut [R],
    ) {
        let mut n = 0;
        let inputs = values.chunks(BLOCK).zip(mask.chunks(BLOCK));
        let outputs = advantages.chunks_mut(BLOCK).zip(returns.chunks_mut(BLOCK));
        for ((values, mask), (advantages, returns)) in inputs.zip(outputs) {
            let (sums, value) = (&self.recurrence.x()[n..], &self.value[n..]);
            let out = advantages.iter_mut().zip(returns);
            match self.share(mask) {
                Share::None => {
                    for ((a, g), v) in out.zip(values) {
                        *a = R::of(sums[0]);
                        *g = R::of(sums[0] + (*v).into());
                    }
                }
                Share::All => {
                    for ((a, g), (sum, value)) in out.zip(sums.iter().zip(value)) {
                        *a = R::of(*sum);
                        *g = R::of(sum + value);
                    }
                    n += mask.len();
                }
                Share::Some => {
                    let mut at = 0;
                    for ((a, g), (v, keep)) in out.zip(values.iter().zip(mask)) {
                        *a = R::of(sums[at]);
                        *g = R::of(sums[at] + (*v).into());
                        at += usize::from(*keep);
                    }
                    n += at;
                }
            }
        }
    }
}

/// Which tokens of a block take part in the recursion.
enum Share {
    None,
    Some,
    All,
}
