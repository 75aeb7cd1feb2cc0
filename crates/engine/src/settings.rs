//! How a model is trained: precision, memory and optimiser.

use serde::{Deserialize, Serialize};
use tch::{Device, Kind};

use crate::{EngineError, Offload, ParameterGroup};

/// Floating point type of a copy of the parameters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Precision {
    /// IEEE single precision.
    #[serde(rename = "fp32")]
    Fp32,
    /// bfloat16.
    #[serde(rename = "bf16")]
    Bf16,
}

impl Precision {
    /// The tensor element type.
    #[must_use]
    pub fn kind(self) -> Kind {
        match self {
            Self::Fp32 => Kind::Float,
            Self::Bf16 => Kind::BFloat16,
        }
    }

    /// The name used in recipes and requests.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Fp32 => "fp32",
            Self::Bf16 => "bf16",
        }
    }
}

impl std::str::FromStr for Precision {
    type Err = EngineError;
    fn from_str(name: &str) -> Result<Self, EngineError> {
        match name {
            "fp32" => Ok(Self::Fp32),
            "bf16" => Ok(Self::Bf16),
            other => Err(EngineError::Setting {
                key: "dtype",
                value: other.to_owned(),
                expected: "fp32 or bf16",
            }),
        }
    }
}

/// Memory and precision choices of one sharded model.
#[derive(Debug, Clone, PartialEq)]
pub struct EngineSettings {
    /// Type of the gathered parameters and of the activations.
    pub compute: Precision,
    /// Type in which gradients are summed over ranks.
    pub reduce: Precision,
    /// Recompute activations in the backward pass instead of keeping them.
    pub recompute: bool,
    /// Free the gathered parameters of a block after its forward pass.
    pub reshard_after_forward: bool,
    /// Upper bound of tokens in one packed micro-batch of one rank.
    pub micro_batch_tokens: usize,
    /// Put one sample into each pass over response tokens: its log-probs are then the same to the
    /// bit as [`crate::response_logps`] computes them.
    pub one_sample_a_pass: bool,
    /// The embedding and this many of the lowest layers are not trained; the backward pass ends
    /// above them. 0 trains everything.
    pub frozen_layers: usize,
    /// Where the model computes.
    pub device: Device,
    /// What lives in host memory instead.
    pub offload: Offload,
}

impl EngineSettings {
    /// Refuses values that cannot work.
    ///
    /// # Errors
    /// [`EngineError::Setting`] names key and value.
    pub fn validate(&self) -> Result<(), EngineError> {
        if self.micro_batch_tokens == 0 {
            return Err(EngineError::Setting {
                key: "micro_batch_tokens",
                value: "0".to_owned(),
                expected: "at least 1",
            });
        }
        self.offload.validate()
    }
}

/// How AdamW keeps its moments.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum MomentState {
    /// 8 bytes a parameter.
    #[default]
    #[serde(rename = "fp32")]
    Fp32,
    /// Block-wise dynamic quantisation, 2.03 bytes a parameter.
    #[serde(rename = "8bit")]
    EightBit,
}

impl std::str::FromStr for MomentState {
    type Err = EngineError;
    fn from_str(name: &str) -> Result<Self, EngineError> {
        match name {
            "fp32" => Ok(Self::Fp32),
            "8bit" => Ok(Self::EightBit),
            other => Err(EngineError::Setting {
                key: "optimizer.state",
                value: other.to_owned(),
                expected: "fp32 or 8bit",
            }),
        }
    }
}

/// AdamW as in Loshchilov & Hutter 2019 (decoupled weight decay) with clipping by global norm.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct AdamWSettings {
    /// Decay of the first moment.
    pub beta1: f64,
    /// Decay of the second moment.
    pub beta2: f64,
    /// Added to the square root of the second moment.
    pub eps: f64,
    /// Decoupled decay of every parameter without a group that says otherwise.
    pub weight_decay: f64,
    /// Gradients are scaled down to this global norm; 0 switches clipping off.
    pub max_grad_norm: f64,
    /// Steps in a row that may be left out because their gradient is not finite; one more is an
    /// error. A checkpoint keeps the count.
    pub max_skipped_steps: u32,
    /// How the moments are kept.
    pub state: MomentState,
    /// Regular expressions over parameter names; what one is found in is not trained.
    pub freeze: Vec<String>,
    /// Parameters with a rate or decay of their own.
    pub groups: Vec<ParameterGroup>,
}

impl AdamWSettings {
    /// Refuses values outside their domain.
    ///
    /// # Errors
    /// [`EngineError::Setting`] names key and value.
    pub fn validate(&self) -> Result<(), EngineError> {
        let unit = |key, value: f64| match (0.0..1.0).contains(&value) {
            true => Ok(()),
            false => setting(key, value, "a number in [0, 1)"),
        };
        let not_negative = |key, value: f64| match value >= 0.0 && value.is_finite() {
            true => Ok(()),
            false => setting(key, value, "a finite number, 0 or more"),
        };
        unit("beta1", self.beta1)?;
        unit("beta2", self.beta2)?;
        not_negative("eps", self.eps)?;
        not_negative("weight_decay", self.weight_decay)?;
        not_negative("max_grad_norm", self.max_grad_norm)?;
        for group in &self.groups {
            if !(group.learning_rate_scale > 0.0 && group.learning_rate_scale.is_finite()) {
                let key = "group.learning_rate_scale";
                return setting(key, group.learning_rate_scale, "a finite number above 0");
            }
            not_negative("group.weight_decay", group.weight_decay.unwrap_or(0.0))?;
        }
        Ok(())
    }
}

impl AdamWSettings {
    /// Rate and decay of a group at a step of this learning rate.
    pub(crate) fn rule(&self, group: Option<usize>, learning_rate: f64) -> plumb_torch::AdamW {
        let &Self { beta1, beta2, eps, weight_decay, .. } = self;
        let all = plumb_torch::AdamW { lr: learning_rate, beta1, beta2, eps, weight_decay };
        match group.map(|index| &self.groups[index]) {
            None => all,
            Some(group) => plumb_torch::AdamW {
                lr: learning_rate * group.learning_rate_scale,
                weight_decay: group.weight_decay.unwrap_or(weight_decay),
                ..all
            },
        }
    }
}

impl Default for AdamWSettings {
    /// PyTorch's defaults with a clipping norm of 1.
    fn default() -> Self {
        Self {
            beta1: 0.9,
            beta2: 0.999,
            eps: 1e-8,
            weight_decay: 0.01,
            max_grad_norm: 1.0,
            max_skipped_steps: 0,
            state: MomentState::Fp32,
            freeze: Vec::new(),
            groups: Vec::new(),
        }
    }
}

fn setting(key: &'static str, value: f64, expected: &'static str) -> Result<(), EngineError> {
    Err(EngineError::Setting { key, value: value.to_string(), expected })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wrong_setting_is_named_with_its_value() {
        let settings = AdamWSettings { beta2: 1.0, ..AdamWSettings::default() };
        let message = settings.validate().unwrap_err().to_string();
        assert!(message.contains("beta2") && message.contains('1'), "{message}");
        assert!("fp16".parse::<Precision>().unwrap_err().to_string().contains("fp16"));
        assert!(AdamWSettings::default().validate().is_ok());
    }
}
