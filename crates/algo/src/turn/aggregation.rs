//! One reward from the scores of a trajectory's turns.

use std::str::FromStr;

use crate::AlgoError;
use crate::error::{all_finite, parameter, same_length};

const FUNCTION: &str = "turn aggregation";

/// How the scores `s_0 .. s_{n-1}` of a trajectory's turns become its reward. A lone turn's score
/// is the reward, whatever the method.
///
/// Source: SaFeR-Steer `aggregate_turn_scores` (verl/utils/reward_score/safedy.py).
#[derive(Debug, Clone, PartialEq)]
pub enum Aggregation {
    /// `sum s_i / n`.
    Mean,
    /// `alpha min s_i + (1 - alpha) mean s_i`: no turn may be bad.
    MinMean {
        /// Weight of the least score, in `[0, 1]`.
        alpha: f64,
    },
    /// Weighted mean with `w_i = 1 + increment i`: later turns count a little more.
    SoftLinear {
        /// What each turn adds to the weight, at least 0.
        increment: f64,
    },
    /// Weighted mean with `w_i = i + 1`. The policy may come to care for the last turn alone.
    Linear,
    /// `n / sum 1 / max(s_i, floor)`: low scores weigh heavily.
    Harmonic {
        /// Scores below it count as this, more than 0.
        floor: f64,
    },
    /// `s_{n-1}`.
    Last,
    /// Weighted mean with the given weights, one for each turn, of positive sum.
    Weights(Vec<f64>),
}

impl Default for Aggregation {
    /// [`Aggregation::MIN_MEAN`].
    fn default() -> Self {
        Self::MIN_MEAN
    }
}

impl Aggregation {
    /// `min_mean` with alpha 0.3, as the paper has it and the later code.
    pub const MIN_MEAN: Self = Self::MinMean { alpha: 0.3 };
    /// `min_mean` with alpha 0.4, as the first public code has it beside a comment that says 0.3.
    pub const MIN_MEAN_COMPAT: Self = Self::MinMean { alpha: 0.4 };
    /// `soft_linear` with 0.1 a turn.
    pub const SOFT_LINEAR: Self = Self::SoftLinear { increment: 0.1 };
    /// `harmonic` with scores floored at 0.01.
    pub const HARMONIC: Self = Self::Harmonic { floor: 0.01 };

    /// The reward of a trajectory.
    ///
    /// # Errors
    /// [`AlgoError::Empty`] without scores; [`AlgoError::NonFinite`] names a score that is none;
    /// [`AlgoError::Length`] where the weights are not one for each turn;
    /// [`AlgoError::Parameter`] for a parameter or a sum of weights out of range.
    pub fn reward(&self, scores: &[f64]) -> Result<f64, AlgoError> {
        self.validate()?;
        if scores.is_empty() {
            return Err(AlgoError::Empty { function: FUNCTION, what: "scores" });
        }
        all_finite(FUNCTION, "scores", scores)?;
        if let ([score], true) = (scores, !matches!(self, Self::Weights(_))) {
            return Ok(*score);
        }
        if let Self::Weights(weights) = self {
            same_length(FUNCTION, "weights", scores.len(), weights.len())?;
        }
        Ok(self.combine(scores))
    }

    fn validate(&self) -> Result<(), AlgoError> {
        match self {
            Self::Mean | Self::Linear | Self::Last => Ok(()),
            Self::MinMean { alpha } => {
                let holds = (0.0..=1.0).contains(alpha);
                parameter(FUNCTION, "alpha", *alpha, holds, "0 to 1")
            }
            Self::SoftLinear { increment } => {
                parameter(FUNCTION, "increment", *increment, *increment >= 0.0, "0 or more")
            }
            Self::Harmonic { floor } => {
                parameter(FUNCTION, "floor", *floor, *floor > 0.0, "more than 0")
            }
            Self::Weights(weights) => {
                all_finite(FUNCTION, "weights", weights)?;
                let sum = weights.iter().sum();
                parameter(FUNCTION, "sum of weights", sum, sum > 0.0, "more than 0")
            }
        }
    }

    /// The equation alone, on at least one score.
    pub(super) fn combine(&self, scores: &[f64]) -> f64 {
        let turns = scores.len() as f64;
        let mean = || scores.iter().sum::<f64>() / turns;
        match self {
            Self::Mean => mean(),
            Self::MinMean { alpha } => {
                let least = scores.iter().copied().fold(f64::INFINITY, f64::min);
                alpha * least + (1.0 - alpha) * mean()
            }
            Self::SoftLinear { increment } => {
                weighted_mean((0..scores.len()).map(|i| 1.0 + i as f64 * increment), scores)
            }
            Self::Linear => weighted_mean((0..scores.len()).map(|i| (i + 1) as f64), scores),
            Self::Harmonic { floor } => {
                // Not f64::max, which would take the floor for NaN.
                let floored = |s: f64| if s < *floor { *floor } else { s };
                let sum: f64 = scores.iter().map(|s| 1.0 / floored(*s)).sum();
                // All scores infinite: the original answers 0 to the division by zero.
                if sum == 0.0 { 0.0 } else { turns / sum }
            }
            Self::Last => scores[scores.len() - 1],
            Self::Weights(weights) => weighted_mean(weights.iter().copied(), scores),
        }
    }
}

fn weighted_mean(weights: impl Iterator<Item = f64>, scores: &[f64]) -> f64 {
    let (sum, total) =
        weights.zip(scores).fold((0.0, 0.0), |(sum, total), (w, s)| (sum + w * s, total + w));
    sum / total
}

impl FromStr for Aggregation {
    type Err = AlgoError;

    /// The methods by their names, with default parameters.
    fn from_str(name: &str) -> Result<Self, AlgoError> {
        Ok(match name {
            "mean" => Self::Mean,
            "min_mean" => Self::MIN_MEAN,
            "soft_linear" => Self::SOFT_LINEAR,
            "linear" => Self::Linear,
            "harmonic" => Self::HARMONIC,
            "last" => Self::Last,
            _ => {
                return Err(AlgoError::UnknownName {
                    what: "turn aggregation",
                    got: name.to_owned(),
                    expected: "mean, min_mean, soft_linear, linear, harmonic, last",
                });
            }
        })
    }
}
