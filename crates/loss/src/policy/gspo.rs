//! GSPO: the ratio of a whole sequence, with the gradient of each token.

use tch::Tensor;

use super::surrogate::Surrogate;
use super::{Masked, PolicyTokens, check_clip};
use crate::aggregate::Rows;
use crate::{LossError, check};

/// Settings of GSPO.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Gspo {
    /// The sequence ratio is clipped below at `1 - clip_low`. Default 3e-4 (the paper's; a
    /// geometric mean over a sequence moves far less than a token's ratio).
    pub clip_low: f64,
    /// The sequence ratio is clipped above at `1 + clip_high`. Default 4e-4.
    pub clip_high: f64,
    /// The log of the sequence ratio is at most this before `exp`. Default `Some(10.0)` (verl;
    /// LightRFT 20); `None` is off. Where the cap is active the gradient is 0.
    pub log_ratio_cap: Option<f64>,
}

impl Default for Gspo {
    fn default() -> Self {
        Self { clip_low: 3e-4, clip_high: 4e-4, log_ratio_cap: Some(10.0) }
    }
}

/// `l_t = max(-A_t s_t, -A_t clip(s_t, 1 - low, 1 + high))` with
/// `s_t = exp(sg[mean_t(logp - old_logp)] + logp_t - sg[logp_t])`: the value of the sequence's
/// length-normalised ratio, the gradient of the token's log-prob.
///
/// Source: GSPO (Zheng et al. 2025, eq. 14); verl `compute_policy_loss_gspo`; LightRFT
/// `PolicyLoss` with `use_gspo`. Both aggregate with the mean over each sequence, then over
/// sequences ([`crate::aggregate::Aggregation::SeqMeanTokenMean`]), which is for the caller to
/// choose. `log_ratio` of the result is the token's own, unclamped.
pub(super) fn gspo(spec: &Gspo, m: &Masked, rows: &Rows) -> Result<PolicyTokens, LossError> {
    const F: &str = "gspo";
    check_clip(F, spec.clip_low, spec.clip_high)?;
    if let Some(cap) = spec.log_ratio_cap {
        check::parameter(F, "log_ratio_cap", cap, cap > 0.0, "above 0, or none")?;
    }
    let token = (&m.logp - &m.old_logp).detach();
    let sequence = rows.spread(&rows.means(&token, &m.mask, 0.0));
    let mut log_ratio: Tensor = &m.logp - m.logp.detach() + sequence;
    if let Some(cap) = spec.log_ratio_cap {
        log_ratio = log_ratio.clamp_max(cap);
    }
    let surrogate = Surrogate {
        log_ratio: &log_ratio,
        advantage: &m.advantage,
        mask: &m.mask,
        clip_low: spec.clip_low,
        clip_high: spec.clip_high,
    };
    let tokens = surrogate.clip(None);
    Ok(PolicyTokens {
        loss: tokens.loss.masked_fill(&m.mask.logical_not(), 0.0),
        log_ratio: token,
        clipped: tokens.clipped,
        clipped_lower: tokens.clipped_lower,
    })
}
