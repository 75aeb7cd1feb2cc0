//! The KL divergence from the policy to a reference, token by token, with gradients.
//!
//! Sources: Schulman, "Approximating KL Divergence" (k1, k2, k3); verl `kl_penalty_forward` and
//! `kl_penalty` (core_algos.py) for the clamps and the straight-through gradient; LightRFT
//! `compute_approx_kl` (models/utils.py) without clamps. The kinds and their formulas on numbers
//! are `plumb-domain`'s.

pub use plumb_domain::{KlClamps as Clamps, KlKind as Kind};

use tch::Tensor;

use crate::{LossError, check};

/// Which gradient an estimate carries.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Gradient {
    /// That of the estimate itself. The expected gradient of k1 and k3 is not that of the KL.
    #[default]
    Estimate,
    /// That of k2, `d * grad(logp)`, whatever the value: its expectation under the policy's own
    /// samples is the gradient of the KL. verl means this by a name with `+`.
    StraightThrough,
}

/// The estimate for each token.
///
/// `logp` and `ref_logp` have one shape (any), the result has it too, in double if `logp` is
/// double, else float. Gradients flow to `logp` only. Where one of [`Clamps::Verl`]'s bounds is
/// active the gradient is 0. Tokens outside a mask are the caller's to drop
/// ([`crate::aggregate::aggregate`] does).
///
/// # Errors
/// [`LossError::Shape`] and [`LossError::Kind`] for arguments that do not fit.
pub fn kl_tokens(
    kind: Kind,
    clamps: Clamps,
    logp: &Tensor,
    ref_logp: &Tensor,
) -> Result<Tensor, LossError> {
    kl_tokens_with(Gradient::Estimate, kind, clamps, logp, ref_logp)
}

/// [`kl_tokens`] with a choice of gradient.
///
/// # Errors
/// As [`kl_tokens`].
pub fn kl_tokens_with(
    gradient: Gradient,
    kind: Kind,
    clamps: Clamps,
    logp: &Tensor,
    ref_logp: &Tensor,
) -> Result<Tensor, LossError> {
    const F: &str = "kl_tokens";
    check::float(F, "logp", logp)?;
    check::float(F, "ref_logp", ref_logp)?;
    check::shape(F, "ref_logp", &logp.size(), ref_logp)?;
    let maths = check::maths_kind(logp);
    let difference = logp.to_kind(maths) - ref_logp.detach().to_kind(maths);
    let value = of_difference(kind, clamps, &difference);
    Ok(match gradient {
        Gradient::Estimate => value,
        Gradient::StraightThrough => {
            let slope = of_difference(Kind::K2, clamps, &difference);
            &slope - slope.detach() + value.detach()
        }
    })
}

/// The estimate from `d = logp - ref_logp`.
pub(crate) fn of_difference(kind: Kind, clamps: Clamps, difference: &Tensor) -> Tensor {
    match (kind, clamps) {
        (Kind::K1, _) => difference.shallow_clone(),
        (Kind::Abs, _) => difference.abs(),
        (Kind::K2, _) => difference.square() * 0.5,
        (Kind::K3, Clamps::Off) => (-difference).expm1() + difference,
        (Kind::K3, Clamps::Verl) => {
            let (exponent, value) = (Kind::VERL_EXPONENT_BOUND, Kind::VERL_VALUE_BOUND);
            let reverse = (-difference).clamp(-exponent, exponent);
            (reverse.expm1() - &reverse).clamp(-value, value)
        }
    }
}

/// KL(policy, reference) over the whole vocabulary: `sum_v p_v (log p_v - log q_v)`.
///
/// Exact, where the estimates look at the sampled token only; it needs both distributions, so it
/// is not a [`Kind`] (verl names it `full` and leaves it unimplemented).
///
/// `logits` and `ref_logits` are `[.., V]`, the result `[..]`, in double if `logits` is double,
/// else float. Gradients flow to `logits` only. A token that the policy never samples (logit
/// `-inf`) counts 0; one that only the reference never samples makes the divergence infinite.
///
/// # Errors
/// [`LossError::Rank`] for logits without a vocabulary dimension, [`LossError::Shape`] and
/// [`LossError::Kind`] for arguments that do not fit.
pub fn kl_full(logits: &Tensor, ref_logits: &Tensor) -> Result<Tensor, LossError> {
    const F: &str = "kl_full";
    check::float(F, "logits", logits)?;
    check::float(F, "ref_logits", ref_logits)?;
    check::vocabulary(F, logits)?;
    check::shape(F, "ref_logits", &logits.size(), ref_logits)?;
    let maths = check::maths_kind(logits);
    let log_p = logits.to_kind(maths).log_softmax(-1, maths);
    let log_q = ref_logits.detach().to_kind(maths).log_softmax(-1, maths);
    let never = log_p.isneginf();
    // Filled before the product: 0 * inf is NaN, in the gradient too.
    let difference = (&log_p - log_q).masked_fill(&never, 0.0);
    let p = log_p.exp();
    Ok((p * difference).sum_dim_intlist(-1, false, maths))
}
