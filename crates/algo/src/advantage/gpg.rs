//! Group policy gradient.

use super::{Singleton, per_group};
use crate::AlgoError;
use crate::error::parameter;
use crate::group::Groups;
use crate::statistics::mean;

/// Settings of GPG.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Gpg {
    /// Divisor of the advantages (verl's `f_norm`), other than 0. Default 1.
    pub norm: f64,
    /// What a group of one gets. Default [`Singleton::Keep`]: `alpha s / norm` (verl).
    pub singleton: Singleton,
}

impl Default for Gpg {
    fn default() -> Self {
        Self { norm: 1.0, singleton: Singleton::Keep }
    }
}

/// `a_i = alpha (s_i - mean) / norm` within each group, `alpha = B / max(1, scores that are not 0)`.
///
/// Alpha makes up for samples that teach nothing; the paper counts them by groups, verl by scores
/// equal to 0. Source: GPG (Chu et al. 2025), verl `compute_gpg_outcome_advantage` (core_algos.py),
/// whose alpha is taken in float32 as `B * (1 / n)`, here too. `scores` is `[B]`. No gradient flows.
///
/// # Errors
/// [`AlgoError::Parameter`] for a norm of 0, [`AlgoError::Length`], [`AlgoError::NonFinite`],
/// [`AlgoError::GroupOfOne`] if so set.
pub fn gpg(spec: &Gpg, scores: &[f64], groups: &Groups) -> Result<Vec<f64>, AlgoError> {
    parameter("gpg", "norm", spec.norm, spec.norm != 0.0, "other than 0")?;
    let telling = scores.iter().filter(|s| **s != 0.0).count().max(1);
    let alpha = f64::from(scores.len() as f32 * (1.0 / telling as f32));
    let scaled = |difference: f64| alpha * difference / spec.norm;
    per_group("gpg", scores, groups, spec.singleton, scaled, |_, own, out| {
        let mean = mean(own);
        for (a, s) in out.iter_mut().zip(own) {
            *a = scaled(s - mean);
        }
    })
}
