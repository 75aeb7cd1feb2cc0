//! Per-token estimates of the KL divergence from the policy to a reference.
//!
//! Sources: Schulman, "Approximating KL Divergence" (k1, k2, k3); verl `kl_penalty_forward`
//! (core_algos.py) for the clamps; LightRFT `compute_approx_kl` (models/utils.py) without them.

use std::str::FromStr;

use tch::Tensor;

use crate::{LossError, check};

/// Which estimate, of `d = logp - ref_logp`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// `d`: unbiased, high variance, may be negative.
    K1,
    /// `|d|`.
    Abs,
    /// `d^2 / 2`: biased, low variance.
    K2,
    /// `exp(-d) - 1 + d`: unbiased, low variance, never negative.
    K3,
}

impl FromStr for Kind {
    type Err = LossError;

    /// The names of the papers and verl's: `k1` = `kl`, `k2` = `mse`, `k3` = `low_var_kl`, `abs`.
    fn from_str(name: &str) -> Result<Self, LossError> {
        match name {
            "k1" | "kl" => Ok(Self::K1),
            "abs" => Ok(Self::Abs),
            "k2" | "mse" => Ok(Self::K2),
            "k3" | "low_var_kl" => Ok(Self::K3),
            other => Err(LossError::UnknownName {
                what: "kl kind",
                got: other.to_owned(),
                expected: "k1 (kl), k2 (mse), k3 (low_var_kl), abs",
            }),
        }
    }
}

/// Bounds that keep k3 finite when policy and reference are far apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Clamps {
    /// None: the estimate as defined.
    #[default]
    Off,
    /// verl's: k3's exponent within ±20 and its value within ±10. Other kinds are not clamped.
    /// Where a clamp is active the gradient is 0.
    Verl,
}

/// The estimate for each token.
///
/// `logp` and `ref_logp` have one shape (any), the result has it too, in double if `logp` is
/// double, else float. Gradients flow to `logp` only. Tokens outside a mask are the
/// caller's to drop ([`crate::aggregate::aggregate`] does).
///
/// # Errors
/// [`LossError::Shape`] and [`LossError::Kind`] for arguments that do not fit.
pub fn kl_tokens(
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
    Ok(of_difference(kind, clamps, &difference))
}

/// The estimate from `d = logp - ref_logp`.
pub(crate) fn of_difference(kind: Kind, clamps: Clamps, difference: &Tensor) -> Tensor {
    match (kind, clamps) {
        (Kind::K1, _) => difference.shallow_clone(),
        (Kind::Abs, _) => difference.abs(),
        (Kind::K2, _) => difference.square() * 0.5,
        (Kind::K3, Clamps::Off) => (-difference).exp() - 1.0 + difference,
        (Kind::K3, Clamps::Verl) => {
            let reverse = (-difference).clamp(-20.0, 20.0);
            (reverse.exp() - &reverse - 1.0).clamp(-10.0, 10.0)
        }
    }
}
