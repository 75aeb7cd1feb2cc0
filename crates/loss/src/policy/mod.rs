//! Policy-gradient losses.
//!
//! [`token_losses`] gives the loss of each token under any [`PolicyTerm`] ([`ppo_clip`] and [`cpg`]
//! are there to be called alone). [`policy_loss`] is the whole objective of an update (policy
//! term, KL in the loss, entropy bonus) as a contribution that adds up over micro-batches and
//! ranks. [`reinforce`] works on whole sequences, [`ptx`] on text.

mod cispo;
mod cpg;
mod geo_mean;
mod gpg;
mod gspo;
mod level_clip;
mod objective;
mod ppo_clip;
mod ptx;
mod reinforce;
mod sapo;
mod standardize;
mod sums;
mod surrogate;
mod term;

pub use cispo::Cispo;
pub use cpg::{Cpg, cpg};
pub use geo_mean::GeoMean;
pub use gspo::Gspo;
pub use level_clip::{LevelClip, RatioLevel};
pub use objective::{Batch, KlTerm, Objective, PolicyTerms, policy_loss, weighted_policy_loss};
pub use ppo_clip::{PpoClip, ppo_clip};
pub use ptx::ptx;
pub use reinforce::{Baseline, reinforce};
pub use sapo::Sapo;
pub use standardize::standardized_advantages;
pub use sums::TokenSums;
pub use term::{PolicyTerm, token_losses};

use tch::Tensor;

use crate::{LossError, check};

/// Per-token results of a policy term, all of the shape of `logp`.
#[derive(Debug)]
pub struct PolicyTokens {
    /// The loss, with gradients to `logp`; 0 outside the mask.
    pub loss: Tensor,
    /// `logp - old_logp` as the loss used it (clamped where the spec says so), no gradient; 0
    /// outside the mask.
    pub log_ratio: Tensor,
    /// Boolean: the clipped form is the larger one here. False outside the mask.
    pub clipped: Tensor,
    /// Boolean: the dual clip bounds the loss here. False outside the mask.
    pub clipped_lower: Tensor,
}

/// The three inputs of a policy term with everything outside the mask set to 0, and the mask.
struct Masked {
    logp: Tensor,
    old_logp: Tensor,
    advantage: Tensor,
    mask: Tensor,
}

/// Checks shapes and kinds, casts up, and zeroes what the mask leaves out (before any maths, so
/// that NaN there reaches neither values nor gradients).
fn masked(
    function: &'static str,
    logp: &Tensor,
    old_logp: &Tensor,
    advantage: &Tensor,
    mask: &Tensor,
) -> Result<Masked, LossError> {
    let shape = logp.size();
    for (argument, tensor) in [("logp", logp), ("old_logp", old_logp), ("advantage", advantage)] {
        check::float(function, argument, tensor)?;
        check::shape(function, argument, &shape, tensor)?;
    }
    let mask = check::mask(function, &shape, mask)?;
    let outside = mask.logical_not();
    let kind = check::maths_kind(logp);
    let inside = |t: &Tensor| t.to_kind(kind).masked_fill(&outside, 0.0);
    Ok(Masked {
        logp: inside(logp),
        old_logp: inside(&old_logp.detach()),
        advantage: inside(&advantage.detach()),
        mask,
    })
}

/// Bounds of a ratio: `1 - low` and `1 + high`.
fn check_clip(function: &'static str, low: f64, high: f64) -> Result<(), LossError> {
    check::parameter(function, "clip_low", low, low >= 0.0, "at least 0")?;
    check::parameter(function, "clip_high", high, high >= 0.0, "at least 0")
}

/// `logp - old_logp` within `± bound`, 0 outside the mask; the gradient is 0 where the bound is
/// active.
fn bounded_log_ratio(
    function: &'static str,
    m: &Masked,
    bound: Option<f64>,
) -> Result<Tensor, LossError> {
    let log_ratio = &m.logp - &m.old_logp;
    let Some(bound) = bound else { return Ok(log_ratio) };
    check::parameter(function, "log_ratio_bound", bound, bound > 0.0, "above 0, or none")?;
    Ok(log_ratio.clamp(-bound, bound))
}
