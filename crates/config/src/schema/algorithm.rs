//! Keys of the algorithm.

use plumb_domain::KlKind;
use serde::{Deserialize, Serialize};

use super::lora::LoraConfig;
use super::loss::LossConfig;
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
    /// (z-score). Not compared: `reinforce`.
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
    /// Discount per token when KL stands in the reward.
    #[serde(default = "unit")]
    pub gamma: f64,
    /// Leave out groups whose rewards are all equal: they carry no gradient. Not with an `advantage`
    /// for which they do: `reinforce`, `reinforce_plus_plus`, `reinforce_plus_plus_baseline`, `cpgd`,
    /// `gdpo`.
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
}

impl Default for KlConfig {
    fn default() -> Self {
        Self { coef: 0.01, kind: KlKind::K3, place: KlPlace::Loss, bound: 0.5 }
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

/// AdamW and its schedule.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OptimizerConfig {
    /// Peak learning rate.
    pub learning_rate: f64,
    /// Decay rates of the two moments.
    #[serde(default = "betas")]
    pub betas: [f64; 2],
    /// Added to the root of the second moment.
    #[serde(default = "eps")]
    pub eps: f64,
    /// Decoupled weight decay.
    #[serde(default)]
    pub weight_decay: f64,
    /// Gradients are scaled down to this global norm.
    #[serde(default = "unit")]
    pub max_grad_norm: f64,
    /// Steps over which the rate rises from 0.
    #[serde(default)]
    pub warmup_steps: u64,
    /// What follows the warm-up: `constant`, `linear` or `cosine` (to 0).
    #[serde(default)]
    pub schedule: Schedule,
}

/// Course of the learning rate.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Schedule {
    /// Stays at the peak.
    #[default]
    Constant,
    /// Falls in a line to 0.
    Linear,
    /// Falls along half a cosine to 0.
    Cosine,
}

impl OptimizerConfig {
    /// This learning rate, and defaults.
    fn of(learning_rate: f64) -> Self {
        Self {
            learning_rate,
            betas: betas(),
            eps: eps(),
            weight_decay: 0.0,
            max_grad_norm: unit(),
            warmup_steps: 0,
            schedule: Schedule::default(),
        }
    }

    /// Learning rate of step `step` (from 0) of `steps`, as HF's schedules have it, with the
    /// warm-up counted so that the first step already moves.
    #[must_use]
    pub fn learning_rate_at(&self, step: u64, steps: u64) -> f64 {
        let peak = self.learning_rate;
        if step < self.warmup_steps {
            return peak * (step + 1) as f64 / (self.warmup_steps + 1) as f64;
        }
        let span = steps.saturating_sub(self.warmup_steps).max(1) as f64;
        let done = ((step - self.warmup_steps) as f64 / span).min(1.0);
        match self.schedule {
            Schedule::Constant => peak,
            Schedule::Linear => peak * (1.0 - done),
            Schedule::Cosine => peak * 0.5 * (1.0 + (std::f64::consts::PI * done).cos()),
        }
    }
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
fn betas() -> [f64; 2] {
    [0.9, 0.95]
}
fn eps() -> f64 {
    1e-8
}

#[cfg(test)]
mod tests {
    use super::*;

    fn optimizer(schedule: Schedule) -> OptimizerConfig {
        OptimizerConfig {
            learning_rate: 1.0,
            betas: betas(),
            eps: eps(),
            weight_decay: 0.0,
            max_grad_norm: 1.0,
            warmup_steps: 1,
            schedule,
        }
    }

    #[test]
    fn the_rate_rises_then_follows_its_schedule() {
        let linear = optimizer(Schedule::Linear);
        let rates: Vec<f64> = (0..5).map(|step| linear.learning_rate_at(step, 5)).collect();
        assert_eq!(rates, [0.5, 1.0, 0.75, 0.5, 0.25]);
        let cosine = optimizer(Schedule::Cosine);
        assert!((cosine.learning_rate_at(3, 5) - 0.5).abs() < 1e-12);
        assert_eq!(optimizer(Schedule::Constant).learning_rate_at(99, 5), 1.0);
    }
}
