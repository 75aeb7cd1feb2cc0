//! The Lagrange multiplier, by its logarithm.

use crate::AlgoError;
use crate::error::parameter;

/// Settings of a [`Multiplier`].
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct MultiplierSpec {
    /// `lambda` at the start, at least 0 (0 stays 0: the constraint is off). Default 1.
    pub initial: f64,
    /// Step size of the gradient ascent on `log lambda`. Default 0.1 (HC-RLHF's script: 0.01).
    pub learning_rate: f64,
    /// Largest `lambda` after an update. Default none (safe-rlhf's script: 5; HC-RLHF's: 1e6).
    pub max: Option<f64>,
    /// Updates leave `lambda` as it is before this step (counted from 0). Default 0.
    pub delay_steps: u64,
    /// `d`, what the cost must stay below. Default 0.
    pub threshold: f64,
}

impl Default for MultiplierSpec {
    fn default() -> Self {
        Self { initial: 1.0, learning_rate: 0.1, max: None, delay_steps: 0, threshold: 0.0 }
    }
}

/// `log lambda <- log lambda + lr (J - d) lambda`, then at most `log max`.
///
/// One step of plain gradient descent in `log lambda` on the loss `-(J - d) lambda`. `J` is the
/// mean of a [`super::CostWindow`] for PPO-Lag (safe-rlhf `PPOLagTrainer.rl_step`), and the
/// [`super::ConfidenceBound`] of the gathered costs for CI-Lag (HC-RLHF
/// `ReinforceCILagTrainer.rl_step`). The bound `max` is applied after an update only, as there.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Multiplier {
    spec: MultiplierSpec,
    log_lambda: f64,
}

impl Multiplier {
    /// With `lambda` at `spec.initial`.
    ///
    /// # Errors
    /// [`AlgoError::Parameter`]: negative `initial`, `max` that is not above 0, or settings that
    /// are no numbers.
    pub fn new(spec: MultiplierSpec) -> Result<Self, AlgoError> {
        const F: &str = "Multiplier::new";
        parameter(F, "initial", spec.initial, spec.initial >= 0.0, "at least 0")?;
        parameter(F, "learning_rate", spec.learning_rate, true, "a finite number")?;
        parameter(F, "threshold", spec.threshold, true, "a finite number")?;
        if let Some(max) = spec.max {
            parameter(F, "max", max, max > 0.0, "above 0")?;
        }
        Ok(Self { spec, log_lambda: spec.initial.ln() })
    }

    /// As it was saved: with `log_lambda` where the run stood.
    ///
    /// # Errors
    /// As [`Multiplier::new`]; [`AlgoError::Parameter`] for a `log_lambda` that is NaN.
    pub fn resumed(spec: MultiplierSpec, log_lambda: f64) -> Result<Self, AlgoError> {
        if log_lambda.is_nan() {
            return Err(AlgoError::Parameter {
                function: "Multiplier::resumed",
                parameter: "log_lambda",
                value: log_lambda,
                expected: "a number",
            });
        }
        Ok(Self { log_lambda, ..Self::new(spec)? })
    }

    /// `lambda`.
    #[must_use]
    pub fn lambda(&self) -> f64 {
        self.log_lambda.exp()
    }

    /// `log lambda`; `-inf` for a `lambda` of 0.
    #[must_use]
    pub fn log_lambda(&self) -> f64 {
        self.log_lambda
    }

    /// The loss that an update with this `cost` descends on, `-(J - d) lambda`.
    #[must_use]
    pub fn loss(&self, cost: f64) -> f64 {
        -(cost - self.spec.threshold) * self.lambda()
    }

    /// Takes the step for training step `step`, with `cost` the `J` of the equation. Nothing
    /// happens before `delay_steps`. An infinite cost is taken at its word: `lambda` goes to its
    /// bound or to infinity, which [`super::Mixing`] then refuses.
    ///
    /// # Errors
    /// [`AlgoError::NonFinite`] for a cost that is NaN, or where infinities cancel; `lambda` is
    /// then unchanged.
    pub fn update(&mut self, step: u64, cost: f64) -> Result<(), AlgoError> {
        if step < self.spec.delay_steps {
            return Ok(());
        }
        let mut moved = self.log_lambda - self.spec.learning_rate * self.loss(cost);
        if moved.is_nan() {
            let function = "Multiplier::update";
            return Err(AlgoError::NonFinite { function, argument: "cost", index: 0, value: cost });
        }
        if let Some(max) = self.spec.max {
            moved = moved.min(max.ln());
        }
        self.log_lambda = moved;
        Ok(())
    }
}
