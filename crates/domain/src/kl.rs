//! Names of the per-token KL estimates, and what each is.
//!
//! One definition for recipes, for the maths on numbers (`plumb-algo`) and for the maths with
//! gradients (`plumb-loss`).

use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Which estimate of KL(policy, reference), of `d = logp - ref_logp`.
///
/// Source: Schulman, "Approximating KL Divergence".
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum KlKind {
    /// `d`: unbiased, high variance, may be negative.
    K1,
    /// `|d|`.
    Abs,
    /// `d^2 / 2`: biased, low variance.
    K2,
    /// `exp(-d) - 1 + d`: unbiased, low variance, never negative.
    K3,
}

/// Bounds that keep k3 finite when policy and reference are far apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum KlClamps {
    /// None: the estimate as defined (LightRFT).
    #[default]
    Off,
    /// verl's: k3's exponent within ±20 and its value within ±10. Other kinds are not clamped.
    Verl,
}

/// A name that stands for no estimate.
///
/// verl's names with a `+` (straight-through gradients) are among these: verl itself refuses them,
/// because the function that computes the value does not know the name with its suffix. The
/// gradient is a setting of its own here (`plumb_loss::kl::Gradient`).
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "unknown kl kind {0:?}, expected one of k1 (kl), k2 (mse), k3 (low_var_kl), abs; \"full\" \
     needs both distributions and names with \"+\" are no kinds"
)]
pub struct UnknownKlKind(pub String);

impl KlKind {
    /// Bound on k3's exponent under [`KlClamps::Verl`].
    pub const VERL_EXPONENT_BOUND: f64 = 20.0;
    /// Bound on k3's value under [`KlClamps::Verl`].
    pub const VERL_VALUE_BOUND: f64 = 10.0;

    /// The short name: `k1`, `abs`, `k2`, `k3`.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::K1 => "k1",
            Self::Abs => "abs",
            Self::K2 => "k2",
            Self::K3 => "k3",
        }
    }

    /// The estimate for one token.
    #[must_use]
    pub fn estimate(self, clamps: KlClamps, logp: f64, ref_logp: f64) -> f64 {
        let d = logp - ref_logp;
        match (self, clamps) {
            (Self::K1, _) => d,
            (Self::Abs, _) => d.abs(),
            (Self::K2, _) => d * d / 2.0,
            (Self::K3, KlClamps::Off) => (-d).exp_m1() + d,
            (Self::K3, KlClamps::Verl) => {
                let reverse = (-d).clamp(-Self::VERL_EXPONENT_BOUND, Self::VERL_EXPONENT_BOUND);
                (reverse.exp_m1() - reverse).clamp(-Self::VERL_VALUE_BOUND, Self::VERL_VALUE_BOUND)
            }
        }
    }
}

impl FromStr for KlKind {
    type Err = UnknownKlKind;

    /// The names of the papers and verl's: `k1` = `kl`, `k2` = `mse`, `k3` = `low_var_kl`, `abs`.
    fn from_str(name: &str) -> Result<Self, UnknownKlKind> {
        match name {
            "k1" | "kl" => Ok(Self::K1),
            "abs" => Ok(Self::Abs),
            "k2" | "mse" => Ok(Self::K2),
            "k3" | "low_var_kl" => Ok(Self::K3),
            other => Err(UnknownKlKind(other.to_owned())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_and_written() {
        for kind in [KlKind::K1, KlKind::Abs, KlKind::K2, KlKind::K3] {
            assert_eq!(kind.as_str().parse(), Ok(kind));
        }
        assert_eq!("low_var_kl".parse(), Ok(KlKind::K3));
        for name in ["full", "k1+", "k3+", "mse+", "low_var_kl+", "", "K1", " k1"] {
            assert_eq!(name.parse::<KlKind>(), Err(UnknownKlKind(name.to_owned())));
        }
    }

    #[test]
    fn estimates_of_a_difference_of_ln_2() {
        // exp(-ln 2) - 1 + ln 2.
        let ln2 = 2f64.ln();
        let k3 = KlKind::K3.estimate(KlClamps::Off, 0.0, -ln2);
        assert!((k3 - (ln2 - 0.5)).abs() < 1e-15, "{k3}");
        assert_eq!(KlKind::K2.estimate(KlClamps::Off, 3.0, 1.0), 2.0);
        // The exponent is bounded at 20, then the value at 10.
        assert_eq!(KlKind::K3.estimate(KlClamps::Verl, -30.0, 0.0), 10.0);
        assert_eq!(KlKind::K3.estimate(KlClamps::Verl, 1e3, 0.0), 10.0);
    }
}
