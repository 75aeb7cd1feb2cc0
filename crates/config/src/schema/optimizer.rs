//! Keys of the optimiser.

use serde::{Deserialize, Serialize};

use super::is_default;

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
    /// How AdamW's two moments are kept: `fp32` (8 bytes a parameter) or `8bit` (block-wise
    /// dynamic quantisation, 2.03 bytes).
    #[serde(default, skip_serializing_if = "is_default")]
    pub state: MomentState,
    /// Optimiser steps in a row that may be skipped because their gradient is not finite. A skipped
    /// step changes nothing; it is counted as `skipped_steps`, and the run warns of it. One more in
    /// a row fails the run; 0: the first one does. A loss that is not finite always does.
    #[serde(default)]
    pub max_skipped_steps: u32,
    /// Steps over which the rate rises to its peak, a `1 / (warmup_steps + 1)` of it in the first
    /// step. (HF starts at 0: its first step does not move.)
    #[serde(default)]
    pub warmup_steps: u64,
    /// Share of the steps that are warm-up, rounded up, in place of `warmup_steps`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub warmup_ratio: Option<f64>,
    /// What follows the warm-up: `constant`, `linear`, `cosine` (as HF's schedules of these names)
    /// or `steps` (as `rates` says).
    #[serde(default)]
    pub schedule: Schedule,
    /// Share of the peak that `linear` and `cosine` end at (HF's `cosine_with_min_lr`).
    #[serde(default, skip_serializing_if = "is_zero")]
    pub min_learning_rate_ratio: f64,
    /// Of `schedule = "steps"`: pairs of a step, counted from 0, and the learning rate from it on,
    /// for example `[[8000, 1e-7]]`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub rates: Vec<(u64, f64)>,
    /// Regular expressions over the parameters' names in a Hugging Face folder, found anywhere in a
    /// name; what one is found in is not trained, for example `["^model\\.embed_tokens",
    /// "layers\\.[0-3]\\."]`. One that finds nothing to freeze is an error.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub freeze: Vec<String>,
    /// Parameters with a rate or decay of their own.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub group: Vec<ParameterGroupConfig>,
    /// Moving average of the trained parameters; absent: none is kept.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ema: Option<EmaConfig>,
}

/// Parameters that step with a rate or decay of their own; the first group whose pattern is found
/// in a name has the parameter. A group that is left without any is an error. No decay on norms
/// and biases, as is common: `pattern = "norm|bias$"`, `weight_decay = 0.0`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ParameterGroupConfig {
    /// Regular expression over the parameters' names in a Hugging Face folder, found anywhere in a
    /// name.
    pub pattern: String,
    /// Peak learning rate of the group; it follows the same schedule. Not with
    /// `learning_rate_scale`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub learning_rate: Option<f64>,
    /// Factor of the learning rate.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub learning_rate_scale: Option<f64>,
    /// Decoupled weight decay; absent: that of all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub weight_decay: Option<f64>,
}

impl ParameterGroupConfig {
    /// Factor of the learning rate of all, whose peak is `peak`.
    #[must_use]
    pub fn scale(&self, peak: f64) -> f64 {
        match self.learning_rate {
            Some(own) => own / peak,
            None => self.learning_rate_scale.unwrap_or(1.0),
        }
    }
}

/// A moving average of the trained parameters, `ema <- decay ema + (1 - decay) p`, kept in fp32
/// beside them and saved in checkpoints. It starts as a copy of them. What a training stage
/// measures last and writes is then the average; an `export` stage writes it with
/// `average = true`. HC-RLHF takes decay 0.99 at every step, LightRFT 0.992 with its gradient
/// accumulation steps as the interval.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EmaConfig {
    /// Weight of the old average, in [0, 1].
    pub decay: f64,
    /// Optimiser steps from one update of the average to the next.
    #[serde(default = "one")]
    pub interval: u64,
}

/// How AdamW's moments are kept.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum MomentState {
    /// 32 bits each.
    #[default]
    #[serde(rename = "fp32")]
    Fp32,
    /// 8 bits each and a scale for 256 of them.
    #[serde(rename = "8bit")]
    EightBit,
}

impl MomentState {
    /// The name on the wire.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Fp32 => "fp32",
            Self::EightBit => "8bit",
        }
    }
}

/// Course of the learning rate.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Schedule {
    /// Stays at the peak.
    #[default]
    Constant,
    /// Falls in a line.
    Linear,
    /// Falls along half a cosine.
    Cosine,
    /// Changes at given steps.
    Steps,
}

impl OptimizerConfig {
    /// This learning rate, and defaults.
    pub(super) fn of(learning_rate: f64) -> Self {
        Self {
            learning_rate,
            betas: betas(),
            eps: eps(),
            weight_decay: 0.0,
            max_grad_norm: unit(),
            state: MomentState::default(),
            max_skipped_steps: 0,
            warmup_steps: 0,
            warmup_ratio: None,
            schedule: Schedule::default(),
            min_learning_rate_ratio: 0.0,
            rates: Vec::new(),
            freeze: Vec::new(),
            group: Vec::new(),
            ema: None,
        }
    }

    /// Steps of the warm-up in a run of `steps` steps.
    #[must_use]
    pub fn warmup(&self, steps: u64) -> u64 {
        match self.warmup_ratio {
            Some(ratio) => (ratio * steps as f64).ceil() as u64,
            None => self.warmup_steps,
        }
    }
}

fn one() -> u64 {
    1
}
fn unit() -> f64 {
    1.0
}
fn is_zero(value: &f64) -> bool {
    *value == 0.0
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

    #[test]
    fn a_ratio_of_the_steps_is_rounded_up_as_hf_does() {
        let of = |warmup_ratio| OptimizerConfig { warmup_ratio, ..OptimizerConfig::of(1.0) };
        assert_eq!(of(Some(0.03)).warmup(101), 4);
        assert_eq!(of(None).warmup(101), 0);
    }
}
