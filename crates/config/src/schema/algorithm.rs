//! Keys of the algorithm.

use plumb_domain::KlKind;
use serde::{Deserialize, Serialize};

use super::critic::{CriticConfig, GaeConfig, LagrangeConfig, PtxConfig};
use super::lora::LoraConfig;
use super::loss::LossConfig;
use super::optimizer::OptimizerConfig;
use super::{Advantage, CpgdWeight};

/// Which rewards become which advantages and how the policy learns from them: GRPO, where the answers
/// to a prompt are compared with one another, and its relatives.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AlgorithmConfig {
    /// How rewards become advantages. Compared within the answers to a prompt (at least 2; an answer
    /// that is left alone because the others have no reward takes no part): `group_norm` (LightRFT:
    /// z-score, unbiased standard deviation + 1e-9), `grpo` (verl: + 1e-6), `grpo_passk` (the best
    /// answer's lead over the second, the others 0), `rloo`, `reinforce_baseline` (less the mean),
    /// `opo` (less the mean weighted by length), `gpg` (less the mean, times samples / rewards that
    /// are not 0), `reinforce_plus_plus_baseline` (less the mean, whitened over the step's tokens),
    /// `gdpo` (each component of the mix normalised by itself, added by weight, normalised over the
    /// step). Compared within the whole step: `reinforce_plus_plus` (whitened over tokens), `cpgd`
    /// (z-score). Not compared: `reinforce`. By a critic, token by token: `gae` (PPO, PPO-Lag; needs
    /// `[algorithm.critic]`).
    pub advantage: Advantage,
    /// Divide by the group's standard deviation. Only `grpo` and `grpo_passk` can switch it off.
    #[serde(default = "yes")]
    pub normalise_by_std: bool,
    /// Added to standard deviations, where `advantage` is `grpo`, `grpo_passk`, `cpgd` (absent: 1e-6)
    /// or `gdpo` (absent: 1e-4).
    #[serde(default)]
    pub advantage_epsilon: Option<f64>,
    /// Divisor of the advantages of `gpg`; absent: 1.
    #[serde(default)]
    pub gpg_norm: Option<f64>,
    /// Weight of `cpgd`: `std` (over the standard deviation; the same when absent), `centre` (less
    /// the mean only) or `compat_clip_filter` (times the samples, 3 at most, as LightRFT has it).
    #[serde(default)]
    pub cpgd_weight: Option<CpgdWeight>,
    /// Steps: generate, score, update, publish.
    pub steps: u64,
    /// Prompts in a step.
    pub prompts_per_step: u32,
    /// Answers to each prompt; they are one group.
    pub samples_per_prompt: u32,
    /// Optimiser steps that a step's samples are cut into.
    #[serde(default = "one")]
    pub mini_batches: u32,
    /// Passes over a step's samples.
    #[serde(default = "one")]
    pub epochs: u32,
    /// Where the old log-probs of the ratio come from: `rollout` (recorded while sampling),
    /// `recompute` (by the policy before its update) or `current` (ratio 1; one optimiser step a
    /// step only).
    #[serde(default)]
    pub old_logps: OldLogps,
    /// Discount per token, when KL stands in the reward and with `gae`.
    #[serde(default = "unit")]
    pub gamma: f64,
    /// Leave out groups whose rewards are all equal: they carry no gradient. Not with an `advantage`
    /// for which they do: `reinforce`, `reinforce_plus_plus`, `reinforce_plus_plus_baseline`, `cpgd`,
    /// `gdpo`, `gae`.
    #[serde(default)]
    pub skip_equal_groups: bool,
    /// The policy loss.
    #[serde(default)]
    pub loss: LossConfig,
    /// The leash to the reference model.
    #[serde(default)]
    pub kl: KlConfig,
    /// AdamW and its schedule.
    pub optimizer: OptimizerConfig,
    /// Low-rank adapters; absent: the whole policy is trained.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lora: Option<LoraConfig>,
    /// Generalised advantage estimation, with `advantage = "gae"`.
    #[serde(default)]
    pub gae: GaeConfig,
    /// The critic of the reward, with `advantage = "gae"`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub critic: Option<CriticConfig>,
    /// The critic of the cost, for a `ppo_lag` stage; absent: as `[algorithm.critic]`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cost_critic: Option<CriticConfig>,
    /// The constraint of a `ppo_lag` stage.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lagrange: Option<LagrangeConfig>,
    /// A language-modelling loss beside that of a `ppo` or `ppo_lag` stage.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ptx: Option<PtxConfig>,
}

impl Default for AlgorithmConfig {
    /// Of a recipe without reinforcement learning: no steps.
    fn default() -> Self {
        Self {
            advantage: Advantage::GroupNorm,
            normalise_by_std: true,
            advantage_epsilon: None,
            gpg_norm: None,
            cpgd_weight: None,
            steps: 0,
            prompts_per_step: 0,
            samples_per_prompt: 0,
            mini_batches: 1,
            epochs: 1,
            old_logps: OldLogps::default(),
            gamma: unit(),
            skip_equal_groups: false,
            loss: LossConfig::default(),
            kl: KlConfig::default(),
            optimizer: OptimizerConfig::of(0.0),
            lora: None,
            gae: GaeConfig::default(),
            critic: None,
            cost_critic: None,
            lagrange: None,
            ptx: None,
        }
    }
}

/// Source of the old log-probs.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OldLogps {
    /// Recorded while sampling.
    #[default]
    Rollout,
    /// Computed by the policy before its update.
    Recompute,
    /// The current ones; the ratio is 1 by definition.
    Current,
}

impl OldLogps {
    /// The name on the wire.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Rollout => "rollout",
            Self::Recompute => "recompute",
            Self::Current => "current",
        }
    }
}

/// The leash to the reference model.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct KlConfig {
    /// Coefficient; 0 leaves KL measured but without effect on training.
    pub coef: f64,
    /// Estimator: `k1`, `k2`, `k3` or `abs`.
    pub kind: KlKind,
    /// Where it acts: `loss` or `reward`.
    pub place: KlPlace,
    /// Bound of the mean KL per token to the reference (k3). The summary says whether it held.
    pub bound: f64,
    /// KL per token (k3) that `coef` is to hold: it goes up where the KL is higher and down where it
    /// is lower (Ziegler et al. 2019). With `gae` only; absent: `coef` stays.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub target: Option<f64>,
    /// Samples over which a KL off by 20 % or more changes `coef` by about 20 %.
    pub horizon: f64,
}

impl Default for KlConfig {
    fn default() -> Self {
        Self {
            coef: 0.01,
            kind: KlKind::K3,
            place: KlPlace::Loss,
            bound: 0.5,
            target: None,
            horizon: 1e4,
        }
    }
}

/// Where the KL acts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum KlPlace {
    /// A term of the loss.
    Loss,
    /// A penalty on each token's reward.
    Reward,
}

fn yes() -> bool {
    true
}
fn one() -> u32 {
    1
}
fn unit() -> f64 {
    1.0
}
