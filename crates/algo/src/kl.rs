//! Per-token estimates of KL(policy, reference) from two log-probs, on numbers.
//!
//! Sources: Schulman, "Approximating KL Divergence"; LightRFT `compute_approx_kl`
//! (models/utils.py); verl `kl_penalty_forward` (core_algos.py). The same with gradients is in
//! `plumb-loss`.

use std::str::FromStr;

use crate::AlgoError;
use crate::error::same_length;
use crate::real::Real;

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
    type Err = AlgoError;

    /// The names of the papers and verl's: `k1` = `kl`, `k2` = `mse`, `k3` = `low_var_kl`, `abs`.
    fn from_str(name: &str) -> Result<Self, AlgoError> {
        match name {
            "k1" | "kl" => Ok(Self::K1),
            "abs" => Ok(Self::Abs),
            "k2" | "mse" => Ok(Self::K2),
            "k3" | "low_var_kl" => Ok(Self::K3),
            other => Err(AlgoError::UnknownName {
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
    /// None: the estimate as defined (LightRFT).
    #[default]
    Off,
    /// verl's: k3's exponent within ±20 and its value within ±10. Other kinds are not clamped.
    Verl,
}

impl Kind {
    /// The estimate for one token.
    #[must_use]
    pub fn estimate(self, clamps: Clamps, logp: f64, ref_logp: f64) -> f64 {
        let d = logp - ref_logp;
        match (self, clamps) {
            (Self::K1, _) => d,
            (Self::Abs, _) => d.abs(),
            (Self::K2, _) => d * d / 2.0,
            (Self::K3, Clamps::Off) => (-d).exp_m1() + d,
            (Self::K3, Clamps::Verl) => {
                let reverse = (-d).clamp(-20.0, 20.0);
                (reverse.exp_m1() - reverse).clamp(-10.0, 10.0)
            }
        }
    }

    /// The estimate for each token of a sample, 0 outside the mask; `logp`, `ref_logp` and `mask`
    /// are `[T]`.
    ///
    /// # Errors
    /// [`AlgoError::Length`]; [`AlgoError::NonFinite`] for a masked-in estimate that is no number.
    pub fn of_tokens<R: Real>(
        self,
        clamps: Clamps,
        logp: &[R],
        ref_logp: &[R],
        mask: &[bool],
    ) -> Result<Vec<f64>, AlgoError> {
        const F: &str = "kl::Kind::of_tokens";
        same_length(F, "ref_logp", logp.len(), ref_logp.len())?;
        same_length(F, "mask", logp.len(), mask.len())?;
        let mut tokens = Vec::with_capacity(logp.len());
        for (index, keep) in mask.iter().enumerate() {
            let kl = if *keep {
                self.estimate(clamps, logp[index].into(), ref_logp[index].into())
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
}
