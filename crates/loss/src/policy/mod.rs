//! Policy-gradient losses.
//!
//! [`ppo_clip`] and [`cpg`] give the loss of each token. [`policy_loss`] is the whole objective
//! of an update (policy term, KL in the loss, entropy bonus) as a contribution that adds up over
//! micro-batches and ranks.

mod cpg;
mod objective;
mod ppo_clip;
mod sums;

pub use cpg::{Cpg, cpg};
pub use objective::{
    Batch, KlTerm, Objective, PolicyTerm, PolicyTerms, policy_loss, weighted_policy_loss,
};
pub use ppo_clip::{PpoClip, ppo_clip};
pub use sums::TokenSums;

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
