//! The choice of an estimator, by name, for the outcomes of a step.

use std::str::FromStr;

use super::reinforce_plus_plus::centred;
use super::{
    Component, Cpgd, Gdpo, Gpg, Grpo, Opo, PassK, ReinforceBaseline, ReinforcePlusPlusBaseline,
    Rloo, Singleton, cpgd, gdpo, gpg, group_norm, grpo, opo, pass_k, reinforce_baseline, rloo,
};
use crate::AlgoError;
use crate::error::{all_finite, same_length};
use crate::group::Groups;
use crate::masked::whiten_samples;

/// How the rewards of samples become advantages.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Estimator {
    /// LightRFT's: z-score, a group of one refused.
    GroupNorm,
    /// verl's GRPO.
    Grpo(Grpo),
    /// Only a group's best sample.
    PassK(PassK),
    /// Leave one out.
    Rloo(Rloo),
    /// Minus the group's mean.
    ReinforceBaseline(ReinforceBaseline),
    /// The reward itself.
    Reinforce,
    /// The reward, whitened over the tokens of the batch. The same as
    /// [`super::reinforce_plus_plus`] where the reward is all there is (gamma 1, no KL in it).
    ReinforcePlusPlus,
    /// Minus the group's mean, then whitened over the tokens of the batch.
    ReinforcePlusPlusBaseline(ReinforcePlusPlusBaseline),
    /// Minus the group's mean weighted by length.
    Opo(Opo),
    /// Minus the group's mean, scaled up for samples that teach nothing.
    Gpg(Gpg),
    /// z-score over the batch.
    Cpgd(Cpgd),
    /// Each component normalised by itself.
    Gdpo(Gdpo),
}

/// What a step knows of its samples.
#[derive(Debug, Clone, Copy)]
pub struct Outcomes<'a> {
    /// The samples' rewards, `[B]`.
    pub rewards: &'a [f64],
    /// Which of them answer the same prompt.
    pub groups: &'a Groups,
    /// Tokens of the samples that are trained on, `[B]`. Needed by OPO and REINFORCE++.
    pub lengths_tokens: &'a [usize],
    /// The reward's components, each `[B]`. Needed by GDPO.
    pub components: &'a [Component<'a>],
}

impl<'a> Outcomes<'a> {
    /// Rewards alone, which is enough for the estimators that need neither lengths nor components.
    #[must_use]
    pub fn of(rewards: &'a [f64], groups: &'a Groups) -> Self {
        Self { rewards, groups, lengths_tokens: &[], components: &[] }
    }
}

impl FromStr for Estimator {
    type Err = AlgoError;

    /// `group_norm`, `grpo`, `grpo_passk`, `rloo`, `reinforce_baseline`, `reinforce`,
    /// `reinforce_plus_plus`, `reinforce_plus_plus_baseline`, `opo`, `gpg`, `cpgd`, `gdpo`, each
    /// with its defaults. `rloo` refuses groups of one, as LightRFT does.
    fn from_str(name: &str) -> Result<Self, AlgoError> {
        match name {
            "group_norm" => Ok(Self::GroupNorm),
            "grpo" => Ok(Self::Grpo(Grpo::default())),
            "grpo_passk" => Ok(Self::PassK(PassK::default())),
            "rloo" => Ok(Self::Rloo(Rloo { singleton: Singleton::Refuse })),
            "reinforce_baseline" => Ok(Self::ReinforceBaseline(ReinforceBaseline::default())),
            "reinforce" => Ok(Self::Reinforce),
            "reinforce_plus_plus" => Ok(Self::ReinforcePlusPlus),
            "reinforce_plus_plus_baseline" => {
                Ok(Self::ReinforcePlusPlusBaseline(ReinforcePlusPlusBaseline::default()))
            }
            "opo" => Ok(Self::Opo(Opo::default())),
            "gpg" => Ok(Self::Gpg(Gpg::default())),
            "cpgd" => Ok(Self::Cpgd(Cpgd::default())),
            "gdpo" => Ok(Self::Gdpo(Gdpo::default())),
            other => Err(AlgoError::UnknownName {
                what: "advantage estimator",
                got: other.to_owned(),
                expected: "group_norm, grpo, grpo_passk, rloo, reinforce_baseline, reinforce, \
                           reinforce_plus_plus, reinforce_plus_plus_baseline, opo, gpg, cpgd, gdpo",
            }),
        }
    }
}

impl Estimator {
    /// The advantage of each sample, `[B]`.
    ///
    /// # Errors
    /// As the estimator that is chosen; [`AlgoError::Length`] where it needs lengths that are not
    /// given, [`AlgoError::Empty`] where it needs components.
    pub fn advantages(&self, outcomes: &Outcomes<'_>) -> Result<Vec<f64>, AlgoError> {
        let Outcomes { rewards, groups, lengths_tokens, components } = *outcomes;
        match self {
            Self::GroupNorm => group_norm(rewards, groups),
            Self::Grpo(spec) => grpo(spec, rewards, groups),
            Self::PassK(spec) => pass_k(spec, rewards, groups),
            Self::Rloo(spec) => rloo(spec, rewards, groups),
            Self::ReinforceBaseline(spec) => reinforce_baseline(spec, rewards, groups),
            Self::Reinforce => plain("reinforce", rewards, groups),
            Self::ReinforcePlusPlus => {
                let advantages = plain("reinforce_plus_plus", rewards, groups)?;
                whitened(advantages, lengths_tokens)
            }
            Self::ReinforcePlusPlusBaseline(spec) => {
                whitened(centred(spec, rewards, groups)?, lengths_tokens)
            }
            Self::Opo(spec) => opo(spec, rewards, lengths_tokens, groups),
            Self::Gpg(spec) => gpg(spec, rewards, groups),
            Self::Cpgd(spec) => {
                same_length("cpgd", "rewards", groups.samples(), rewards.len())?;
                cpgd(spec, rewards)
            }
            Self::Gdpo(spec) => Ok(gdpo(spec, components, groups)?.advantages),
        }
    }

    /// Does it compare the samples of a group, so that a group of one teaches nothing?
    #[must_use]
    pub fn compares_within_group(&self) -> bool {
        !matches!(self, Self::Reinforce | Self::ReinforcePlusPlus | Self::Cpgd(_))
    }

    /// Do samples of a group whose rewards are all equal always get 0?
    #[must_use]
    pub fn ignores_equal_groups(&self) -> bool {
        self.compares_within_group()
            && !matches!(self, Self::Gdpo(_) | Self::ReinforcePlusPlusBaseline(_))
    }
}

fn plain(function: &'static str, rewards: &[f64], groups: &Groups) -> Result<Vec<f64>, AlgoError> {
    same_length(function, "rewards", groups.samples(), rewards.len())?;
    all_finite(function, "rewards", rewards)?;
    Ok(rewards.to_vec())
}

fn whitened(mut advantages: Vec<f64>, lengths_tokens: &[usize]) -> Result<Vec<f64>, AlgoError> {
    whiten_samples(&mut advantages, lengths_tokens)?;
    Ok(advantages)
}
