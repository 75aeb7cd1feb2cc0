//! A sample's reward and its KL penalty, token by token.

use crate::AlgoError;
use crate::error::{all_finite, parameter, same_length};

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
    const F: &str = "token_rewards";
    same_length(F, "mask", kl.len(), mask.len())?;
    all_finite(F, "reward", &[reward])?;
    all_finite(F, "kl", kl)?;
    let reward = match spec.reward_clip {
        None => reward,
        Some((least, greatest)) => {
            let holds = least <= greatest;
            parameter(F, "reward_clip", greatest, holds, "at least the range's start")?;
            reward.max(least).min(greatest)
        }
    };
    let coef = spec.kl_coef.max(0.0);
    let mut tokens: Vec<f64> = kl.iter().map(|kl| -coef * kl).collect();
    let last = mask.iter().rposition(|keep| *keep).or(mask.len().checked_sub(1));
    if let Some(last) = last {
        tokens[last] += reward;
    }
    Ok(tokens)
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
    const F: &str = "penalized_scores";
    same_length(F, "kl", scores.len(), kl.len())?;
    same_length(F, "mask", scores.len(), mask.len())?;
    all_finite(F, "scores", scores)?;
    let penalty = |(kl, keep): (&f64, &bool)| if *keep { kl_coef * kl } else { 0.0 };
    let tokens: Vec<f64> =
        scores.iter().zip(kl.iter().zip(mask)).map(|(s, k)| s - penalty(k)).collect();
    all_finite(F, "kl", &tokens)?;
    Ok(tokens)
}
