//! The choice of a group estimator, by name.

use std::str::FromStr;

use super::{Grpo, Rloo, Singleton, group_norm, grpo, reinforce_baseline, rloo};
use crate::AlgoError;
use crate::error::{all_finite, same_length};
use crate::group::Groups;

/// How the rewards of a group become advantages.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Estimator {
    /// LightRFT's: z-score, a group of one refused.
    GroupNorm,
    /// verl's GRPO.
    Grpo(Grpo),
    /// Leave one out.
    Rloo(Rloo),
    /// Minus the group's mean.
    ReinforceBaseline,
    /// The reward itself.
    Reinforce,
}

impl FromStr for Estimator {
    type Err = AlgoError;

    /// `group_norm`, `grpo`, `rloo`, `reinforce_baseline`, `reinforce`, each with its defaults.
    /// `rloo` refuses groups of one, as LightRFT does.
    fn from_str(name: &str) -> Result<Self, AlgoError> {
        match name {
            "group_norm" => Ok(Self::GroupNorm),
            "grpo" => Ok(Self::Grpo(Grpo::default())),
            "rloo" => Ok(Self::Rloo(Rloo { singleton: Singleton::Refuse })),
            "reinforce_baseline" => Ok(Self::ReinforceBaseline),
            "reinforce" => Ok(Self::Reinforce),
            other => Err(AlgoError::UnknownName {
                what: "advantage estimator",
                got: other.to_owned(),
                expected: "group_norm, grpo, rloo, reinforce_baseline, reinforce",
            }),
        }
    }
}

impl Estimator {
    /// The advantage of each sample, `[B]`, from the rewards `[B]`.
    ///
    /// # Errors
    /// As the estimator that is chosen.
    pub fn advantages(&self, rewards: &[f64], groups: &Groups) -> Result<Vec<f64>, AlgoError> {
        match self {
            Self::GroupNorm => group_norm(rewards, groups),
            Self::Grpo(spec) => grpo(spec, rewards, groups),
            Self::Rloo(spec) => rloo(spec, rewards, groups),
            Self::ReinforceBaseline => reinforce_baseline(rewards, groups),
            Self::Reinforce => {
                same_length("reinforce", "rewards", groups.samples(), rewards.len())?;
                all_finite("reinforce", "rewards", rewards)?;
                Ok(rewards.to_vec())
            }
        }
    }
}
