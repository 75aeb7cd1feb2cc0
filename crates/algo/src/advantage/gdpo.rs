//! GDPO: each reward component is normalised in its group by itself, then all are added.

use super::{Grpo, Singleton, broadcast, grpo, per_group};
use crate::AlgoError;
use crate::error::{all_finite, parameter, same_length};
use crate::group::Groups;
use crate::masked::{Whiten, zero_outside};
use crate::statistics::{mean, square_sum};

/// One component of the reward.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Component<'a> {
    /// Its weight in the sum.
    pub weight: f64,
    /// Its scores, `[B]`.
    pub scores: &'a [f64],
}

/// Settings of GDPO (TRL form).
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Gdpo {
    /// Added to the standard deviation of each group and to that of the batch. Default 1e-4.
    pub epsilon: f64,
    /// What a score that is no number stands for. Default [`Missing::Refuse`].
    pub missing: Missing,
}

impl Default for Gdpo {
    fn default() -> Self {
        Self { epsilon: 1e-4, missing: Missing::Refuse }
    }
}

/// What a component's score that is NaN or infinite stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Missing {
    /// An error.
    Refuse,
    /// NaN is 0 and an infinity the largest number; what overflows adds nothing (TRL's
    /// `nan_to_num` and `nansum`). A component that failed is then a score of 0.
    CompatZero,
}

/// What GDPO computes for each sample.
#[derive(Debug, Clone, PartialEq)]
pub struct GdpoAdvantages {
    /// `sum_c w_c z_c`, `[B]`.
    pub sums: Vec<f64>,
    /// The sums, normalised over the batch, `[B]`.
    pub advantages: Vec<f64>,
}

/// `z_c = (s_c - mean_g) / (std_g + epsilon)` within each group and component, `u = sum_c w_c z_c`,
/// `a = (u - mean) / (std + epsilon)` over the batch; standard deviations unbiased.
///
/// Source: GDPO (Liu et al. 2026, arXiv 2601.05242), its TRL trainer (`apply_gdpo`). A group of one
/// adds 0 (TRL: NaN, left out of the sum); a group or batch without variance gets 0. No gradient
/// flows.
///
/// # Errors
/// [`AlgoError::Empty`] without components or samples; [`AlgoError::TooFew`] for a batch of one;
/// [`AlgoError::Length`], [`AlgoError::NonFinite`], [`AlgoError::Parameter`] for an epsilon below 0.
pub fn gdpo(
    spec: &Gdpo,
    components: &[Component<'_>],
    groups: &Groups,
) -> Result<GdpoAdvantages, AlgoError> {
    const F: &str = "gdpo";
    parameter(F, "epsilon", spec.epsilon, spec.epsilon >= 0.0, "at least 0")?;
    let sums = weighted_sums(F, components, groups, |scores| grouped_z(spec, scores, groups))?;
    if sums.len() < 2 {
        return Err(AlgoError::TooFew { function: F, expected: 2, got: sums.len() });
    }
    all_finite(F, "sums", &sums)?;
    let mean = mean(&sums);
    let std = (square_sum(&sums, mean) / (sums.len() - 1) as f64).sqrt();
    let advantages = sums.iter().map(|u| quotient(u - mean, std + spec.epsilon)).collect();
    Ok(GdpoAdvantages { sums, advantages })
}

/// The form of GDPO's verl trainer: each component's [`grpo`] advantage, added by weight (there 1),
/// put on the sample's tokens, whitened over all tokens of the batch and 0 outside the mask.
///
/// Source: GDPO's verl `compute_advantage`, branch gdpo (ray_trainer.py). `mask` and the result are
/// `[B * T]` with `T = row_tokens`. Its whitening divides by the exact token count. No gradient
/// flows.
///
/// # Errors
/// As [`grpo`]; [`AlgoError::Empty`] without components; [`AlgoError::TooFew`] or
/// [`AlgoError::Empty`] for less than two masked-in tokens.
pub fn gdpo_tokens(
    spec: &Grpo,
    components: &[Component<'_>],
    groups: &Groups,
    mask: &[bool],
    row_tokens: usize,
) -> Result<Vec<f64>, AlgoError> {
    const F: &str = "gdpo_tokens";
    let sums = weighted_sums(F, components, groups, |scores| grpo(spec, scores, groups))?;
    parameter(F, "row_tokens", row_tokens as f64, row_tokens > 0, "at least 1")?;
    same_length(F, "mask", sums.len() * row_tokens, mask.len())?;
    let mut advantages: Vec<f64> =
        sums.iter().zip(mask.chunks(row_tokens)).flat_map(|(u, m)| broadcast(*u, m)).collect();
    Whiten { count_epsilon: 0.0, ..Whiten::default() }.apply(&mut advantages, mask)?;
    zero_outside(&mut advantages, mask)?;
    Ok(advantages)
}

fn weighted_sums(
    function: &'static str,
    components: &[Component<'_>],
    groups: &Groups,
    normalised: impl Fn(&[f64]) -> Result<Vec<f64>, AlgoError>,
) -> Result<Vec<f64>, AlgoError> {
    if components.is_empty() {
        return Err(AlgoError::Empty { function, what: "components" });
    }
    let mut sums = vec![0.0; groups.samples()];
    for component in components {
        all_finite(function, "weight", &[component.weight])?;
        for (sum, z) in sums.iter_mut().zip(normalised(component.scores)?) {
            *sum += component.weight * z;
        }
    }
    Ok(sums)
}

fn grouped_z(spec: &Gdpo, scores: &[f64], groups: &Groups) -> Result<Vec<f64>, AlgoError> {
    let known: Vec<f64> = match spec.missing {
        Missing::Refuse => scores.to_vec(),
        Missing::CompatZero => scores.iter().map(|s| number_of(*s)).collect(),
    };
    per_group(
        "gdpo",
        &known,
        groups,
        Singleton::Zero,
        |s| s,
        |_, own, out| {
            let mean = mean(own);
            let std = (square_sum(own, mean) / (own.len() - 1) as f64).sqrt();
            for (z, s) in out.iter_mut().zip(own) {
                let own_z = quotient(s - mean, std + spec.epsilon);
                *z = if own_z.is_nan() { 0.0 } else { own_z };
            }
        },
    )
}

fn number_of(score: f64) -> f64 {
    if score.is_nan() { 0.0 } else { score.clamp(f64::MIN, f64::MAX) }
}

/// 0 over anything is 0: without spread and epsilon there is no difference either.
fn quotient(difference: f64, divisor: f64) -> f64 {
    if difference == 0.0 { 0.0 } else { difference / divisor }
}
