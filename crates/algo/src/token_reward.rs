//! A sample's reward and its KL penalty, token by token.

use crate::AlgoError;
use crate::error::{
    all_finite, all_finite_from, finite_within, parameter, same_length, whole_rows,
};
use crate::real::Real;

/// Tokens that are looked at together.
const BLOCK: usize = 256;

/// Settings of [`token_rewards`].
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct TokenReward {
    /// Coefficient of the penalty. At most 0 is no penalty (LightRFT). Default 0.
    pub kl_coef: f64,
    /// The reward is clamped to this range (least, greatest) first. Default none.
    pub reward_clip: Option<(f64, f64)>,
}

/// `r_t = -kl_coef kl_t`, plus the sample's reward at its last masked-in token.
///
/// Source: LightRFT `compute_reward` (models/utils.py). `kl` and `mask` are `[T]`; the penalty is
/// put on every token, so `kl` should be 0 outside the mask ([`crate::kl::of_tokens`] sees
/// to that). A mask that keeps nothing puts the reward on the last token, as there; a sample
/// without tokens has no token rewards.
///
/// # Errors
/// [`AlgoError::Length`], [`AlgoError::NonFinite`] (reward or KL), [`AlgoError::Parameter`] for a
/// clip range that ends below its start.
pub fn token_rewards(
    spec: &TokenReward,
    reward: f64,
    kl: &[f64],
    mask: &[bool],
) -> Result<Vec<f64>, AlgoError> {
    same_length(F, "mask", kl.len(), mask.len())?;
    all_finite(F, "reward", &[reward])?;
    spec.check()?;
    let mut tokens = vec![0.0; kl.len()];
    spec.lay(reward, kl, mask, 0, &mut tokens)?;
    Ok(tokens)
}

/// [`token_rewards`] for each of B rows of `tokens` tokens, written to `out`. `rewards` is `[B]`;
/// the other slices are `[B * tokens]`, a row's tokens side by side. Allocates nothing.
///
/// # Errors
/// As [`token_rewards`]; [`AlgoError::Parameter`] for `tokens` of 0 or that do not divide the
/// entries.
pub fn token_rewards_rows<R: Real>(
    spec: &TokenReward,
    tokens: usize,
    rewards: &[f64],
    kl: &[R],
    mask: &[bool],
    out: &mut [R],
) -> Result<(), AlgoError> {
    let entries = kl.len();
    same_length(F, "mask", entries, mask.len())?;
    same_length(F, "out", entries, out.len())?;
    whole_rows(F, tokens, entries)?;
    same_length(F, "rewards", entries / tokens, rewards.len())?;
    all_finite(F, "rewards", rewards)?;
    spec.check()?;
    let inputs = rewards.iter().zip(kl.chunks(tokens)).zip(mask.chunks(tokens));
    for (row, (((reward, kl), mask), out)) in inputs.zip(out.chunks_mut(tokens)).enumerate() {
        spec.lay(*reward, kl, mask, row * tokens, out)?;
    }
    Ok(())
}

const F: &str = "token_rewards";

impl TokenReward {
    fn check(&self) -> Result<(), AlgoError> {
        let Some((least, greatest)) = self.reward_clip else { return Ok(()) };
        let holds = least <= greatest;
        parameter(F, "reward_clip", greatest, holds, "at least the range's start")
    }

    /// One row, whose first token is the `start`-th of the batch.
    fn lay<R: Real>(
        &self,
        reward: f64,
        kl: &[R],
        mask: &[bool],
        start: usize,
        out: &mut [R],
    ) -> Result<(), AlgoError> {
        let reward = match self.reward_clip {
            None => reward,
            Some((least, greatest)) => reward.max(least).min(greatest),
        };
        let coef = self.kl_coef.max(0.0);
        let mut finite = true;
        for (out, kl) in out.iter_mut().zip(kl) {
            let kl: f64 = (*kl).into();
            finite &= kl.is_finite();
            *out = R::of(-coef * kl);
        }
        if !finite {
            all_finite_from(F, "kl", start, kl)?;
        }
        if let Some(last) = last_kept(mask).or(mask.len().checked_sub(1)) {
            out[last] = R::of(-coef * kl[last].into() + reward);
        }
        Ok(())
    }
}

/// Index of the last token that the mask keeps.
fn last_kept(mask: &[bool]) -> Option<usize> {
    // Padding is passed over by the block.
    let (first, blocks) = mask.as_rchunks::<BLOCK>();
    let any = |block: &[bool; BLOCK]| block.iter().fold(false, |any, keep| any | *keep);
    let last = |own: &[bool]| own.iter().rposition(|keep| *keep);
    match blocks.iter().rposition(any) {
        Some(at) => last(&blocks[at]).map(|own| first.len() + at * BLOCK + own),
        None => last(first),
    }
}

/// `r_t = s_t - kl_coef kl_t m_t`: a penalty on scores that already stand on tokens.
///
/// Source: verl `apply_kl_penalty` (ray_trainer.py). All slices are `[T]`.
///
/// # Errors
/// [`AlgoError::Length`], [`AlgoError::NonFinite`].
pub fn penalized_scores(
    scores: &[f64],
    kl: &[f64],
    mask: &[bool],
    kl_coef: f64,
) -> Result<Vec<f64>, AlgoError> {
    let mut tokens = scores.to_vec();
    penalize(&mut tokens, kl, mask, kl_coef)?;
    Ok(tokens)
}

/// [`penalized_scores`] in place, on a whole batch of any layout. Allocates nothing. After an error
/// the scores are a mixture of old and new.
///
/// # Errors
/// As [`penalized_scores`].
pub fn penalize<R: Real>(
    scores: &mut [R],
    kl: &[R],
    mask: &[bool],
    kl_coef: f64,
) -> Result<(), AlgoError> {
    const F: &str = "penalized_scores";
    same_length(F, "kl", scores.len(), kl.len())?;
    same_length(F, "mask", scores.len(), mask.len())?;
    let tokens = kl.chunks(BLOCK).zip(mask.chunks(BLOCK));
    for (block, (scores, (kl, mask))) in scores.chunks_mut(BLOCK).zip(tokens).enumerate() {
        let mut finite = true;
        for (score, (kl, keep)) in scores.iter_mut().zip(kl.iter().zip(mask)) {
            let penalty = if *keep { kl_coef * (*kl).into() } else { 0.0 };
            let penalized = (*score).into() - penalty;
            finite &= penalized.is_finite();
            *score = R::of(penalized);
        }
        if !finite {
            let start = block * BLOCK;
            finite_within(F, "kl", start, kl, mask)?;
            all_finite_from(F, "scores", start, scores)?;
        }
    }
    Ok(())
}
