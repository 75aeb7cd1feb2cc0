//! Entropy of the next-token distribution.

use tch::Tensor;

use crate::{LossError, check};

/// `H = logsumexp(z) - sum_v softmax(z)_v z_v`, in nats.
///
/// Source: verl `entropy_from_logits` (torch_functional.py).
///
/// `logits` is `[.., V]`, the result `[..]`, in double if the logits are double, else float.
/// Gradients flow to `logits`. Entropy enters the loss with a minus sign and its coefficient
/// ([`crate::policy::Objective::entropy_coef`]), aggregated like the policy term.
///
/// # Errors
/// [`LossError::Rank`] for logits without a vocabulary dimension, [`LossError::Kind`] for logits
/// that are not floats.
pub fn entropy(logits: &Tensor) -> Result<Tensor, LossError> {
    const F: &str = "entropy";
    check::float(F, "logits", logits)?;
    if logits.dim() == 0 {
        let got = logits.size();
        return Err(LossError::Rank { function: F, argument: "logits", expected: "[.., V]", got });
    }
    let kind = check::maths_kind(logits);
    let logits = logits.to_kind(kind);
    let mean = (logits.softmax(-1, kind) * &logits).sum_dim_intlist(-1, false, kind);
    Ok(logits.logsumexp([-1], false) - mean)
}
