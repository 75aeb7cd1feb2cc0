//! The choice of an advantage estimator.

use serde::{Deserialize, Serialize};

/// How rewards become advantages.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Advantage {
    /// LightRFT's `group_norm`.
    GroupNorm,
    /// verl's `grpo`.
    Grpo,
    /// Only a group's best answer is rewarded, by its lead.
    GrpoPassk,
    /// Leave one out.
    Rloo,
    /// Minus the group's mean.
    ReinforceBaseline,
    /// The reward itself.
    Reinforce,
    /// The reward, whitened over the tokens of the step.
    ReinforcePlusPlus,
    /// Minus the group's mean, then whitened over the tokens of the step.
    ReinforcePlusPlusBaseline,
    /// Minus the group's mean weighted by length.
    Opo,
    /// Minus the group's mean, scaled up for rewards that are 0.
    Gpg,
    /// z-score over the step.
    Cpgd,
    /// Each component normalised within its group by itself.
    Gdpo,
    /// By a critic, token by token.
    Gae,
}

impl Advantage {
    /// The name in a recipe.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::GroupNorm => "group_norm",
            Self::Grpo => "grpo",
            Self::GrpoPassk => "grpo_passk",
            Self::Rloo => "rloo",
            Self::ReinforceBaseline => "reinforce_baseline",
            Self::Reinforce => "reinforce",
            Self::ReinforcePlusPlus => "reinforce_plus_plus",
            Self::ReinforcePlusPlusBaseline => "reinforce_plus_plus_baseline",
            Self::Opo => "opo",
            Self::Gpg => "gpg",
            Self::Cpgd => "cpgd",
            Self::Gdpo => "gdpo",
            Self::Gae => "gae",
        }
    }

    /// Does it compare the answers to one prompt, and so need at least two?
    #[must_use]
    pub fn compares_within_group(self) -> bool {
        !matches!(self, Self::Reinforce | Self::ReinforcePlusPlus | Self::Cpgd | Self::Gae)
    }

    /// Do groups of equal rewards get advantage 0, so that leaving them out changes nothing else?
    #[must_use]
    pub fn ignores_equal_groups(self) -> bool {
        self.compares_within_group()
            && !matches!(self, Self::Gdpo | Self::ReinforcePlusPlusBaseline)
    }

    /// Is it whitened over tokens?
    #[must_use]
    pub fn whitens(self) -> bool {
        matches!(self, Self::ReinforcePlusPlus | Self::ReinforcePlusPlusBaseline)
    }
}

/// How `cpgd` weights rewards less their mean.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CpgdWeight {
    /// Over their standard deviation.
    Std,
    /// Not at all.
    Centre,
    /// Times the number of samples, 3 at most (LightRFT's `clip_filter_like_weight`).
    CompatClipFilter,
}
