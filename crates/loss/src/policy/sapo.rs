//! SAPO: a soft gate in place of the clip.

use super::{Masked, PolicyTokens, bounded_log_ratio};
use crate::{LossError, check};

/// Settings of SAPO.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Sapo {
    /// Steepness of the gate for positive advantages. Default 1.
    pub tau_pos: f64,
    /// Steepness for the others. Default 1.05: negative tokens are let go a little sooner.
    pub tau_neg: f64,
    /// `logp - old_logp` is clamped to ± this before `exp`. Default 20. Where the clamp is active
    /// the gradient is 0.
    pub log_ratio_bound: f64,
}

impl Default for Sapo {
    fn default() -> Self {
        Self { tau_pos: 1.0, tau_neg: 1.05, log_ratio_bound: 20.0 }
    }
}

/// `l = -A (4 / tau) sigmoid(tau (r - 1))`: the slope by the log-prob is `-A r` at `r = 1`, as
/// PPO's, and dies away on both sides instead of at an edge.
///
/// Source: SAPO (2025, eq. 5 and 6); verl `compute_policy_loss_sapo`, which aggregates with the
/// mean over each sequence, then over sequences. No token counts as clipped.
pub(super) fn sapo(spec: &Sapo, m: &Masked) -> Result<PolicyTokens, LossError> {
    const F: &str = "sapo";
    check::parameter(F, "tau_pos", spec.tau_pos, spec.tau_pos > 0.0, "above 0")?;
    check::parameter(F, "tau_neg", spec.tau_neg, spec.tau_neg > 0.0, "above 0")?;
    let log_ratio = bounded_log_ratio(F, m, Some(spec.log_ratio_bound))?;
    let negative = m.advantage.full_like(spec.tau_neg);
    let tau = m.advantage.full_like(spec.tau_pos).where_self(&m.advantage.gt(0.0), &negative);
    let gate = ((log_ratio.exp() - 1.0) * &tau).sigmoid() * (tau.reciprocal() * 4.0);
    Ok(PolicyTokens {
        loss: -&m.advantage * gate,
        log_ratio: log_ratio.detach(),
        clipped: m.mask.zeros_like(),
        clipped_lower: m.mask.zeros_like(),
    })
}
