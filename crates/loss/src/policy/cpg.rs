//! Clipped policy gradient: the log-prob itself, bounded near the old one.

use tch::Tensor;

use super::{PolicyTokens, masked};
use crate::{LossError, check};

/// Settings of CPG.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Cpg {
    /// A token stops to push once its ratio leaves `1 ± clip`. Default 0.2, in
    /// `[0, 1]`; 1 is no lower bound.
    pub clip: f64,
}

impl Default for Cpg {
    fn default() -> Self {
        Self { clip: 0.2 }
    }
}

/// `l = -A * b(logp)`, where `b` is `min(logp, old_logp + ln(1 + clip))` for `A > 0` and
/// `max(logp, old_logp + ln(1 - clip))` otherwise.
///
/// Source: LightRFT `PolicyLoss` with `use_cpg_loss` (models/loss.py); CPGD (Liu et al. 2025).
///
/// Shapes, mask, gradients and errors as [`super::ppo_clip`]; no dual clip.
///
/// # Errors
/// As [`super::ppo_clip`].
pub fn cpg(
    spec: &Cpg,
    logp: &Tensor,
    old_logp: &Tensor,
    advantage: &Tensor,
    mask: &Tensor,
) -> Result<PolicyTokens, LossError> {
    let inside = (0.0..=1.0).contains(&spec.clip);
    check::parameter("cpg", "clip", spec.clip, inside, "in [0, 1]")?;
    let m = masked("cpg", logp, old_logp, advantage, mask)?;
    let high = &m.old_logp + spec.clip.ln_1p();
    let low = &m.old_logp + (-spec.clip).ln_1p();
    let positive = m.advantage.gt(0.0);
    let past = m.logp.gt_tensor(&high).where_self(&positive, &m.logp.lt_tensor(&low));
    let clipped = past.logical_and(&m.mask);
    let bound = high.where_self(&positive, &low);
    Ok(PolicyTokens {
        loss: -&m.advantage * bound.where_self(&clipped, &m.logp),
        log_ratio: (&m.logp - &m.old_logp).detach(),
        clipped,
        clipped_lower: m.mask.zeros_like(),
    })
}
