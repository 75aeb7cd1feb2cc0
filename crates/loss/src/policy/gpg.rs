//! Plain policy gradient.

use super::{Masked, PolicyTokens};

/// `l = -A logp`: REINFORCE per token, without ratio or clip.
///
/// Source: GPG (Chu et al. 2025); verl `compute_policy_loss_gpg`. `log_ratio` of the result is
/// reported, not used.
pub(super) fn gpg(m: &Masked) -> PolicyTokens {
    PolicyTokens {
        loss: -&m.advantage * &m.logp,
        log_ratio: (&m.logp - &m.old_logp).detach(),
        clipped: m.mask.zeros_like(),
        clipped_lower: m.mask.zeros_like(),
    }
}
