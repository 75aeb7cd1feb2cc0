//! The coefficient of the KL penalty over the steps of a run.
//!
//! Sources: Ziegler et al. 2019, section 2.2; verl and LightRFT `AdaptiveKLController`,
//! `FixedKLController`.

use serde::{Deserialize, Serialize};

use crate::AlgoError;
use crate::error::parameter;

/// A coefficient that may follow the measured KL. It is algorithm state: it is saved with a
/// checkpoint and restored.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum KlController {
    /// The same coefficient always.
    Fixed {
        /// The coefficient.
        coef: f64,
    },
    /// `coef <- coef (1 + clip(kl / target - 1, ±0.2) n / horizon)`.
    Adaptive {
        /// The coefficient now.
        coef: f64,
        /// The KL to hold, above 0.
        target: f64,
        /// Samples over which an error of 20 % changes the coefficient by about 20 %; above 0.
        /// verl and LightRFT: 10 000.
        horizon: f64,
    },
}

impl KlController {
    /// Checks ranges.
    ///
    /// # Errors
    /// [`AlgoError::Parameter`] names the parameter.
    pub fn validate(self) -> Result<Self, AlgoError> {
        const F: &str = "KlController";
        let coef = self.coef();
        parameter(F, "coef", coef, coef >= 0.0, "at least 0")?;
        if let Self::Adaptive { target, horizon, .. } = self {
            parameter(F, "target", target, target > 0.0, "above 0")?;
            parameter(F, "horizon", horizon, horizon > 0.0, "above 0")?;
        }
        Ok(self)
    }

    /// The coefficient now.
    #[must_use]
    pub fn coef(&self) -> f64 {
        match *self {
            Self::Fixed { coef } | Self::Adaptive { coef, .. } => coef,
        }
    }

    /// Takes in the KL measured on a batch of `samples` samples.
    ///
    /// # Errors
    /// [`AlgoError::NonFinite`] for a KL that is no number; the coefficient is then unchanged.
    pub fn update(&mut self, kl: f64, samples: usize) -> Result<(), AlgoError> {
        if !kl.is_finite() {
            let function = "KlController::update";
            return Err(AlgoError::NonFinite { function, argument: "kl", index: 0, value: kl });
        }
        if let Self::Adaptive { coef, target, horizon } = self {
            let error = (kl / *target - 1.0).clamp(-0.2, 0.2);
            *coef *= 1.0 + error * samples as f64 / *horizon;
        }
        Ok(())
    }
}
