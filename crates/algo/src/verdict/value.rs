//! The value verifier: good or bad.

use plumb_domain::text::strip;

use crate::AlgoError;
use crate::error::all_finite;

/// 1 for a reply that begins with `good`, 0 for one that begins with `bad`; letter case and blanks
/// before it do not count.
pub(super) fn verdict(reply: &str) -> Option<f64> {
    let reply = strip(reply).to_lowercase();
    if reply.starts_with("good") {
        return Some(1.0);
    }
    reply.starts_with("bad").then_some(0.0)
}

/// 1 where the reply begins with `good`, else 0.
///
/// Source: SafeWork-R1 `Qwen2VLRewardModelVauAI.forward`, engine branch.
#[must_use]
pub fn value_score(reply: &str) -> f64 {
    verdict(reply).unwrap_or(0.0)
}

/// `softmax(good, bad)[good]` of the two label tokens' logits at the last position. The reference's
/// hard score is 1 from 0.5 on, else 0.
///
/// Source: SafeWork-R1 `Qwen2VLRewardModelVauAI.forward`, the branch with logits.
///
/// # Errors
/// [`AlgoError::NonFinite`].
pub fn value_probability(good_logit: f64, bad_logit: f64) -> Result<f64, AlgoError> {
    all_finite("value_probability", "logits", &[good_logit, bad_logit])?;
    Ok(1.0 / (1.0 + (bad_logit - good_logit).exp()))
}
