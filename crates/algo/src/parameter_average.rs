//! A moving average of a model's parameters.

use serde::{Deserialize, Serialize};

use crate::AlgoError;
use crate::error::{parameter, same_length};
use crate::real::Real;

/// `ema <- beta ema + (1 - beta) p`, elementwise, in place.
///
/// Source: HC-RLHF `moving_average` (utils.py, `lerp(p, ema, beta)`); LightRFT
/// `DeepspeedStrategy.moving_average`. `beta` is in `[0, 1]`: 1 leaves the average as it is. The
/// average is computed in `f64` and rounded once to the kind of `ema`.
///
/// # Errors
/// [`AlgoError::Length`]; [`AlgoError::Parameter`] for beta outside `[0, 1]`;
/// [`AlgoError::NonFinite`] for a parameter that is no number, before anything is changed.
pub fn moving_average<R: Real>(
    beta: f64,
    parameters: &[R],
    ema: &mut [R],
) -> Result<(), AlgoError> {
    const F: &str = "moving_average";
    parameter(F, "beta", beta, (0.0..=1.0).contains(&beta), "in [0, 1]")?;
    same_length(F, "ema", parameters.len(), ema.len())?;
    if let Some(index) = parameters.iter().position(|p| !(*p).into().is_finite()) {
        let value = parameters[index].into();
        return Err(AlgoError::NonFinite { function: F, argument: "parameters", index, value });
    }
    for (p, average) in parameters.iter().zip(ema) {
        let (p, old): (f64, f64) = ((*p).into(), (*average).into());
        *average = R::of((1.0 - beta) * p + beta * old);
    }
    Ok(())
}

/// When a moving average of parameters follows them, and how fast. Algorithm state: saved with a
/// checkpoint.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ParameterAverage {
    /// Weight of the old average. LightRFT 0.992 (fixed there), HC-RLHF 0.99.
    beta: f64,
    /// The average follows at every `interval`-th step. LightRFT: gradient accumulation steps.
    interval: u64,
    /// Steps so far.
    steps: u64,
}

impl ParameterAverage {
    /// LightRFT's beta.
    pub const LIGHTRFT_BETA: f64 = 0.992;
    /// HC-RLHF's beta (`tau`).
    pub const HC_RLHF_BETA: f64 = 0.99;

    /// Follows at every `interval`-th step.
    ///
    /// # Errors
    /// [`AlgoError::Parameter`] for beta outside `[0, 1]` or an interval of 0.
    pub fn new(beta: f64, interval: u64) -> Result<Self, AlgoError> {
        const F: &str = "ParameterAverage::new";
        parameter(F, "beta", beta, (0.0..=1.0).contains(&beta), "in [0, 1]")?;
        parameter(F, "interval", interval as f64, interval > 0, "at least 1")?;
        Ok(Self { beta, interval, steps: 0 })
    }

    /// Counts a step and says whether the average is to follow at it; then call
    /// [`ParameterAverage::follow`] for every trainable parameter (frozen ones never differ).
    pub fn step(&mut self) -> bool {
        self.steps += 1;
        self.steps.is_multiple_of(self.interval)
    }

    /// [`moving_average`] of one parameter.
    ///
    /// # Errors
    /// As [`moving_average`].
    pub fn follow<R: Real>(&self, parameters: &[R], ema: &mut [R]) -> Result<(), AlgoError> {
        moving_average(self.beta, parameters, ema)
    }
}
