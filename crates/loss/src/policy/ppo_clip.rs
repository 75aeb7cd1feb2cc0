//! PPO's clipped surrogate, with asymmetric bounds and dual clip.

use tch::Tensor;

use super::surrogate::{Clipped, Surrogate};
use super::{PolicyTokens, bounded_log_ratio, check_clip, masked};
use crate::{LossError, check};

/// Settings of the clipped surrogate. The default is verl's "vanilla" loss.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct PpoClip {
    /// The ratio is clipped below at `1 - clip_low`. Default 0.2; 1 or more is no lower bound.
    pub clip_low: f64,
    /// The ratio is clipped above at `1 + clip_high`. Default 0.2 (DAPO's clip-higher: 0.28).
    pub clip_high: f64,
    /// For a negative advantage the loss is at most `-A * dual_clip`, so one token with a huge
    /// ratio cannot dominate. Default `Some(3.0)`; must be above 1. `None` is off.
    pub dual_clip: Option<f64>,
    /// `logp - old_logp` is clamped to ± this before `exp`. Default `Some(20.0)`; `None` is off.
    /// Where the clamp is active the gradient is 0.
    pub log_ratio_bound: Option<f64>,
}

impl Default for PpoClip {
    fn default() -> Self {
        Self { clip_low: 0.2, clip_high: 0.2, dual_clip: Some(3.0), log_ratio_bound: Some(20.0) }
    }
}

impl PpoClip {
    /// LightRFT's form: symmetric clip, neither dual clip nor clamp.
    #[must_use]
    pub fn lightrft(clip: f64) -> Self {
        Self { clip_low: clip, clip_high: clip, dual_clip: None, log_ratio_bound: None }
    }

    fn check(&self) -> Result<(), LossError> {
        const F: &str = "ppo_clip";
        check_clip(F, self.clip_low, self.clip_high)?;
        if let Some(c) = self.dual_clip {
            check::parameter(F, "dual_clip", c, c > 1.0, "above 1, or none")?;
        }
        Ok(())
    }
}

/// `l = max(-A r, -A clip(r, 1 - low, 1 + high))` with `r = exp(logp - old_logp)`; where `A < 0`,
/// `l = min(l, -A c)` with `c` the dual clip.
///
/// Source: PPO (Schulman et al. 2017, eq. 7); dual clip: Ye et al. 2020, eq. 5; asymmetric bounds:
/// DAPO, eq. 8; verl `compute_policy_loss_vanilla` (core_algos.py), LightRFT `PolicyLoss`.
///
/// All tensors have one shape, `[B, T]` or `[N]`. Gradients flow to `logp` only. Outside the mask
/// everything is 0 or false.
///
/// # Errors
/// [`LossError::Parameter`] for settings out of range, [`LossError::Shape`] and
/// [`LossError::Kind`] for tensors that do not fit.
pub fn ppo_clip(
    spec: &PpoClip,
    logp: &Tensor,
    old_logp: &Tensor,
    advantage: &Tensor,
    mask: &Tensor,
) -> Result<PolicyTokens, LossError> {
    spec.check()?;
    let m = masked("ppo_clip", logp, old_logp, advantage, mask)?;
    let log_ratio = bounded_log_ratio("ppo_clip", &m, spec.log_ratio_bound)?;
    let surrogate = Surrogate {
        log_ratio: &log_ratio,
        advantage: &m.advantage,
        mask: &m.mask,
        clip_low: spec.clip_low,
        clip_high: spec.clip_high,
    };
    let Clipped { loss, clipped, clipped_lower } = surrogate.clip(spec.dual_clip);
    Ok(PolicyTokens { loss, log_ratio: log_ratio.detach(), clipped, clipped_lower })
}
