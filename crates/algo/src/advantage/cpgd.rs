//! Advantages of CPGD (clipped policy gradient with policy drift).

use std::str::FromStr;

use crate::AlgoError;
use crate::error::{all_finite, parameter};
use crate::statistics::{mean, square_sum};

/// Settings of CPGD's advantages.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Cpgd {
    /// How centred rewards are weighted. Default [`CpgdWeight::Std`].
    pub weight: CpgdWeight,
    /// Added to the standard deviation. Default 1e-6.
    pub epsilon: f64,
}

impl Default for Cpgd {
    fn default() -> Self {
        Self { weight: CpgdWeight::Std, epsilon: 1e-6 }
    }
}

/// How CPGD weights centred rewards.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CpgdWeight {
    /// `1 / (std + epsilon)`, population standard deviation of the batch.
    Std,
    /// `min(B, 3)`. The paper divides by the number of spreads above 0; LightRFT takes the one
    /// spread of the whole batch for it, so the divisor is always 1.
    CompatClipFilter,
    /// 1: centred only.
    Centre,
}

impl FromStr for CpgdWeight {
    type Err = AlgoError;

    /// LightRFT's `weight_factor`: `STD_weight`, `clip_filter_like_weight`; **any** other name is
    /// centring, as there. Never fails.
    fn from_str(name: &str) -> Result<Self, AlgoError> {
        Ok(match name {
            "STD_weight" => Self::Std,
            "clip_filter_like_weight" => Self::CompatClipFilter,
            _ => Self::Centre,
        })
    }
}

/// `a_i = w (R_i - mean)` over the whole batch, `w` as [`CpgdWeight`] says.
///
/// Source: Liu et al. 2025 (arXiv 2505.12504); LightRFT `get_cpgd_advantages_returns`
/// (trainer/utils.py). `rewards` is `[B]`, raw (before any KL penalty). A batch without variance
/// gets 0. Returns are the advantages. No gradient flows.
///
/// # Errors
/// [`AlgoError::Empty`], [`AlgoError::NonFinite`], [`AlgoError::Parameter`] for an epsilon below 0.
pub fn cpgd(spec: &Cpgd, rewards: &[f64]) -> Result<Vec<f64>, AlgoError> {
    const F: &str = "cpgd";
    parameter(F, "epsilon", spec.epsilon, spec.epsilon >= 0.0, "at least 0")?;
    if rewards.is_empty() {
        return Err(AlgoError::Empty { function: F, what: "rewards" });
    }
    all_finite(F, "rewards", rewards)?;
    if rewards.iter().all(|r| *r == rewards[0]) {
        return Ok(vec![0.0; rewards.len()]);
    }
    let mean = mean(rewards);
    let samples = rewards.len() as f64;
    let weight = match spec.weight {
        CpgdWeight::Std => 1.0 / ((square_sum(rewards, mean) / samples).sqrt() + spec.epsilon),
        CpgdWeight::CompatClipFilter => samples.min(3.0),
        CpgdWeight::Centre => 1.0,
    };
    Ok(rewards.iter().map(|r| (r - mean) * weight).collect())
}
