//! CISPO: the clipped ratio as a weight without gradient.

use super::{Masked, PolicyTokens, bounded_log_ratio, check_clip};
use crate::LossError;

/// Settings of CISPO.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Cispo {
    /// The weight is at least `1 - clip_low`. Default 0.2; 1 or more is no lower bound (the
    /// paper's choice).
    pub clip_low: f64,
    /// The weight is at most `1 + clip_high`. Default 0.2.
    pub clip_high: f64,
    /// `logp - old_logp` is clamped to ± this before `exp`. Default `Some(20.0)`.
    pub log_ratio_bound: Option<f64>,
}

impl Default for Cispo {
    fn default() -> Self {
        Self { clip_low: 0.2, clip_high: 0.2, log_ratio_bound: Some(20.0) }
    }
}

/// `l = -sg[clip(r, 1 - low, 1 + high)] A logp`: a token beyond the bounds keeps its gradient, at
/// the bound's weight.
///
/// Source: MiniMax-M1 (2025, eq. 4 and 5); verl `compute_policy_loss_cispo`.
pub(super) fn cispo(spec: &Cispo, m: &Masked) -> Result<PolicyTokens, LossError> {
    const F: &str = "cispo";
    check_clip(F, spec.clip_low, spec.clip_high)?;
    let log_ratio = bounded_log_ratio(F, m, spec.log_ratio_bound)?.detach();
    let ratio = log_ratio.exp();
    let weight = ratio.clamp(1.0 - spec.clip_low, 1.0 + spec.clip_high);
    Ok(PolicyTokens {
        loss: -&weight * &m.advantage * &m.logp,
        clipped: ratio.ne_tensor(&weight).logical_and(&m.mask),
        clipped_lower: m.mask.zeros_like(),
        log_ratio,
    })
}
