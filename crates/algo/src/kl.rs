//! Per-token estimates of KL(policy, reference) from two log-probs, on numbers.
//!
//! Sources: Schulman, "Approximating KL Divergence"; LightRFT `compute_approx_kl`
//! (models/utils.py); verl `kl_penalty_forward` (core_algos.py). The kinds and their formulas are
//! `plumb-domain`'s; the same with gradients is in `plumb-loss`.

pub use plumb_domain::{KlClamps as Clamps, KlKind as Kind};

use crate::AlgoError;
use crate::error::same_length;
use crate::real::Real;

/// The estimate for each token of a sample, 0 outside the mask; `logp`, `ref_logp` and `mask` are
/// `[T]`.
///
/// # Errors
/// [`AlgoError::Length`]; [`AlgoError::NonFinite`] for a masked-in estimate that is no number.
pub fn of_tokens<R: Real>(
    kind: Kind,
    clamps: Clamps,
    logp: &[R],
    ref_logp: &[R],
    mask: &[bool],
) -> Result<Vec<f64>, AlgoError> {
    const F: &str = "kl::of_tokens";
    same_length(F, "ref_logp", logp.len(), ref_logp.len())?;
    same_length(F, "mask", logp.len(), mask.len())?;
    let mut tokens = Vec::with_capacity(logp.len());
    for (index, keep) in mask.iter().enumerate() {
        let kl = if *keep {
            kind.estimate(clamps, logp[index].into(), ref_logp[index].into())
        } else {
            0.0
        };
        if !kl.is_finite() {
            let argument = "logp - ref_logp";
            return Err(AlgoError::NonFinite { function: F, argument, index, value: kl });
        }
        tokens.push(kl);
    }
    Ok(tokens)
}
