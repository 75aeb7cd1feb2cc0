//! Generalised advantage estimation, with a critic's values.

use crate::AlgoError;
use crate::error::{finite_within, parameter, same_length, whole_rows};
use crate::real::Real;
use crate::recurrence::{Recurrence, STAGE, multiply_add};
use crate::threads;

const F: &str = "gae";

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
    let entries = rewards.len();
    same_length(F, "values", entries, values.len())?;
    same_length(F, "mask", entries, mask.len())?;
    same_length(F, "advantages", entries, advantages.len())?;
    same_length(F, "returns", entries, returns.len())?;
    let Gae { gamma, lambda, .. } = *spec;
    parameter(F, "gamma", gamma, (0.0..=1.0).contains(&gamma), "in [0, 1]")?;
    parameter(F, "lambda", lambda, (0.0..=1.0).contains(&lambda), "in [0, 1]")?;
    whole_rows(F, tokens, entries)?;
    let threads = threads::worth(entries).min(entries / tokens);
    if threads <= 1 {
        let all = Rows { spec, tokens, start: 0, rewards, values, mask, advantages, returns };
        return all.solve();
    }
    let piece = (entries / tokens).div_ceil(threads) * tokens;
    let inputs = rewards.chunks(piece).zip(values.chunks(piece)).zip(mask.chunks(piece));
    let outputs = advantages.chunks_mut(piece).zip(returns.chunks_mut(piece));
    let pieces = inputs.zip(outputs).enumerate().map(|(at, inputs_and_outputs)| {
        let (((rewards, values), mask), (advantages, returns)) = inputs_and_outputs;
        Rows { spec, tokens, start: at * piece, rewards, values, mask, advantages, returns }
    });
    threads::at_once(pieces, Rows::solve).into_iter().collect()
}

/// Some rows of a batch, the first of which begins at its entry `start`.
struct Rows<'a, R> {
    spec: &'a Gae,
    tokens: usize,
    start: usize,
    rewards: &'a [R],
    values: &'a [R],
    mask: &'a [bool],
    advantages: &'a mut [R],
    returns: &'a mut [R],
}

impl<R: Real> Rows<'_, R> {
    fn solve(self) -> Result<(), AlgoError> {
        let Self { spec, tokens, .. } = self;
        let processor = pulp::Arch::new();
        let inputs = self.rewards.chunks(tokens).zip(self.values.chunks(tokens));
        let inputs = inputs.zip(self.mask.chunks(tokens));
        let outputs = self.advantages.chunks_mut(tokens).zip(self.returns.chunks_mut(tokens));
        for (row, (((rewards, values), mask), (advantages, returns))) in
            inputs.zip(outputs).enumerate()
        {
            let own = Row { spec, rewards, values, mask, advantages, returns };
            let first = processor.dispatch(own);
            // Whatever is not finite reaches the first token: 0 times an infinity is NaN.
            if !first.is_finite() {
                let index = self.start + row * tokens;
                finite_within(F, "rewards", index, rewards, mask)?;
                finite_within(F, "values", index, values, mask)?;
                let argument = "advantages";
                return Err(AlgoError::NonFinite { function: F, argument, index, value: first });
            }
        }
        Ok(())
    }
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

impl<R: Real> pulp::WithSimd for Row<'_, R> {
    type Output = f64;

    #[inline(always)]
    fn with_simd<S: pulp::Simd>(self, simd: S) -> f64 {
        let mut sums = Backwards::of::<S>(self.spec);
        crate::recurrence::touch(self.rewards);
        crate::recurrence::touch(self.values);
        let inputs = self.rewards.rchunks(STAGE).zip(self.values.rchunks(STAGE));
        let outputs = self.advantages.rchunks_mut(STAGE).zip(self.returns.rchunks_mut(STAGE));
        for (((rewards, values), mask), (advantages, returns)) in
            inputs.zip(self.mask.rchunks(STAGE)).zip(outputs)
        {
            match sums.share(mask) {
                Share::None => sums.carry(values, advantages, returns),
                Share::Some => sums.gathered(simd, rewards, values, mask, advantages, returns),
                Share::All => sums.dense(simd, rewards, values, mask, advantages, returns),
            }
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
    fn of<S: pulp::Simd>(spec: &Gae) -> Self {
        let Gae { gamma, lambda, outside } = *spec;
        let recurrence = Recurrence::of::<S>(gamma * lambda);
        let value = [0.0; STAGE + 1];
        Self { gamma, outside, recurrence, value, next_value: 0.0, running: 0.0 }
    }

    /// How some tokens take part.
    #[inline(always)]
    fn share(&self, mask: &[bool]) -> Share {
        match self.outside {
            Outside::Skip => Share::of(mask),
            Outside::Zero => Share::All,
        }
    }

    /// A stage that takes no part shows the advantage of the token after it.
    #[inline(always)]
    fn carry<R: Real>(&self, values: &[R], advantages: &mut [R], returns: &mut [R]) {
        for ((a, g), v) in advantages.iter_mut().zip(returns).zip(values) {
            *a = R::of(self.running);
            *g = R::of(self.running + (*v).into());
        }
    }

    /// A stage of which all tokens take part, those outside the mask as 0.
    #[inline(always)]
    fn dense<S: pulp::Simd, R: Real>(
        &mut self,
        simd: S,
        rewards: &[R],
        values: &[R],
        mask: &[bool],
        advantages: &mut [R],
        returns: &mut [R],
    ) {
        let n = rewards.len();
        let kept = |value: R, keep: bool| {
            let value: f64 = value.into();
            if keep { value } else { 0.0 }
        };
        let (values, mask) = (&values[..n], &mask[..n]);
        let d = &mut self.recurrence.d(n)[..n];
        for ((d, r), (v, keep)) in d.iter_mut().zip(rewards).zip(values.iter().zip(mask)) {
            *d = kept(*r, *keep) - kept(*v, *keep);
        }
        for (d, (v, keep)) in d.iter_mut().zip(values[1..].iter().zip(&mask[1..])) {
            *d = multiply_add::<S>(self.gamma, kept(*v, *keep), *d);
        }
        d[n - 1] += self.gamma * self.next_value;
        let sums = self.recurrence.solve(simd, n, self.running);
        let out = advantages.iter_mut().zip(returns).zip(values.iter().zip(mask));
        for (((a, g), (v, keep)), sum) in out.zip(sums) {
            *a = R::of(*sum);
            *g = R::of(*sum + kept(*v, *keep));
        }
        self.running = sums[0];
        self.next_value = kept(values[0], mask[0]);
    }

    /// A stage of which some tokens take part: they are gathered, solved, and spread again.
    #[inline(always)]
    fn gathered<S: pulp::Simd, R: Real>(
        &mut self,
        simd: S,
        rewards: &[R],
        values: &[R],
        mask: &[bool],
        advantages: &mut [R],
        returns: &mut [R],
    ) {
        let n = self.gather(rewards, values, mask);
        self.value[n] = self.next_value;
        let value = &self.value[..=n];
        for (t, d) in self.recurrence.d(n).iter_mut().enumerate() {
            *d += multiply_add::<S>(self.gamma, value[t + 1], -value[t]);
        }
        self.running = self.recurrence.solve(simd, n, self.running)[0];
        self.next_value = value[0];
        self.spread(values, mask, advantages, returns);
    }

    /// Takes over rewards and values of the tokens that the mask keeps; returns how many.
    #[inline(always)]
    fn gather<R: Real>(&mut self, rewards: &[R], values: &[R], mask: &[bool]) -> usize {
        let mut n = 0;
        let blocks = rewards.chunks(BLOCK).zip(values.chunks(BLOCK)).zip(mask.chunks(BLOCK));
        for ((rewards, values), mask) in blocks {
            let end = n + mask.len();
            let (d, value) = (&mut self.recurrence.d(end)[n..], &mut self.value[n..end]);
            let tokens = rewards.iter().zip(values);
            match Share::of(mask) {
                Share::None => {}
                Share::All => {
                    for ((d, value), (r, v)) in d.iter_mut().zip(value).zip(tokens) {
                        (*d, *value) = ((*r).into(), (*v).into());
                    }
                    n = end;
                }
                Share::Some => {
                    let mut at = 0;
                    for ((r, v), keep) in tokens.zip(mask) {
                        (d[at], value[at]) = ((*r).into(), (*v).into());
                        at += usize::from(*keep);
                    }
                    n += at;
                }
            }
        }
        n
    }

    /// Gives each token its advantage, those that took no part that of the next that did.
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
            let sums = &self.recurrence.x()[n..];
            let out = advantages.iter_mut().zip(returns).zip(values);
            match Share::of(mask) {
                Share::None => {
                    for ((a, g), v) in out {
                        *a = R::of(sums[0]);
                        *g = R::of(sums[0] + (*v).into());
                    }
                }
                Share::All => {
                    for (((a, g), v), sum) in out.zip(sums) {
                        *a = R::of(*sum);
                        *g = R::of(sum + (*v).into());
                    }
                    n += mask.len();
                }
                Share::Some => {
                    let mut at = 0;
                    for (((a, g), v), keep) in out.zip(mask) {
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

/// Which of some tokens a mask keeps.
enum Share {
    None,
    Some,
    All,
}

impl Share {
    #[inline(always)]
    fn of(mask: &[bool]) -> Self {
        let kept: u32 = mask.iter().map(|keep| u32::from(*keep)).sum();
        match kept as usize {
            0 => Self::None,
            kept if kept < mask.len() => Self::Some,
            _ => Self::All,
        }
    }
}
