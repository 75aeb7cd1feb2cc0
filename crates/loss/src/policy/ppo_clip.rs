//! PPO's clipped surrogate, with asymmetric bounds and dual clip.

use tch::Tensor;

use super::{PolicyTokens, masked};
use crate::{LossError, check};

/// Settings of the clipped surrogate. The default is verl's "vanilla" loss.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct PpoClip {
    /// The ratio is clipped below at `1 - clip_low`. Default 0.2, in `[0, 1)`.
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
        let low = self.clip_low;
        check::parameter(F, "clip_low", low, (0.0..1.0).contains(&low), "in [0, 1)")?;
        check::parameter(F, "clip_high", self.clip_high, self.clip_high >= 0.0, "at least 0")?;
        if let Some(c) = self.dual_clip {
            check::parameter(F, "dual_clip", c, c > 1.0, "above 1, or none")?;
        }
        if let Some(bound) = self.log_ratio_bound {
            check::parameter(F, "log_ratio_bound", bound, bound > 0.0, "above 0, or none")?;
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
    let mut log_ratio = &m.logp - &m.old_logp;
    if let Some(bound) = spec.log_ratio_bound {
        log_ratio = log_ratio.clamp(-bound, bound);
    }
    let ratio = log_ratio.exp();
    let plain = -&m.advantage * &ratio;
    let bounded = -&m.advantage * ratio.clamp(1.0 - spec.clip_low, 1.0 + spec.clip_high);
    let upper = plain.maximum(&bounded);
    let clipped = bounded.gt_tensor(&plain).logical_and(&m.mask);
    let (loss, clipped_lower) = match spec.dual_clip {
        None => (upper, m.mask.zeros_like()),
        Some(c) => {
            let negative = m.advantage.lt(0.0);
            let ceiling = -&m.advantage * c;
            let over = upper.gt_tensor(&ceiling).logical_and(&negative).logical_and(&m.mask);
            (upper.minimum(&ceiling).where_self(&negative, &upper), over)
        }
    };
    Ok(PolicyTokens { loss, log_ratio: log_ratio.detach(), clipped, clipped_lower })
}
