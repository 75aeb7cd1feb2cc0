//! Running moments of a score model's outputs, and scores normalised by them.
//!
//! Source: safe-rlhf `models/normalizer.py` and `ScoreModelMixin` (models/score_model).

use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::AlgoError;
use crate::error::{all_finite, parameter};
use crate::statistics::{mean, square_sum};

/// What normalising does to a score.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum NormalizeFunction {
    /// `(x - mean) / (std + epsilon)`.
    Affine,
    /// `x / (std + epsilon)`: keeps the sign, which means safe or unsafe of a cost.
    Scale,
    /// `x - mean`.
    Translate,
    /// `x`.
    Identity,
}

/// What a score model's output is taken for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ScoreType {
    /// How good an answer is; safe-rlhf normalises it with [`NormalizeFunction::Affine`].
    Reward,
    /// How unsafe an answer is, above 0 for unsafe; [`NormalizeFunction::Scale`].
    Cost,
    /// A value estimate; [`NormalizeFunction::Identity`].
    Critic,
}

impl ScoreType {
    /// How safe-rlhf normalises it.
    #[must_use]
    pub fn normalize_function(self) -> NormalizeFunction {
        match self {
            Self::Reward => NormalizeFunction::Affine,
            Self::Cost => NormalizeFunction::Scale,
            Self::Critic => NormalizeFunction::Identity,
        }
    }
}

/// How running moments follow the batches.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum Follow {
    /// Mean and population variance of all scores so far, however they were cut into batches.
    Running,
    /// safe-rlhf `RunningMeanStd`: the same, but each batch brings its unbiased variance (n - 1)
    /// times n, so that the variance comes out too large and depends on the cut, and the weight
    /// of the distance between means is a float32 (torch divides whole numbers so). A batch of
    /// one brings no spread of its own; the reference's variance is NaN from then on.
    CompatRunning,
    /// `m old + (1 - m) batch` of mean and unbiased variance; safe-rlhf
    /// `ExponentialMovingAverage`. A batch of one leaves the variance as it is (NaN in the
    /// reference).
    ExponentialMovingAverage {
        /// Weight of the old moments, in `[0, 1]`. Default 0.9.
        momentum: f64,
    },
    /// Never; only the count goes up. safe-rlhf `IdentityNormalizer`.
    Never,
}

impl Follow {
    /// safe-rlhf's `normalizer_type`; `None` is its null.
    ///
    /// # Errors
    /// [`AlgoError::UnknownName`]; [`AlgoError::Parameter`] for a momentum outside `[0, 1]`.
    pub fn compat_named(name: Option<&str>, momentum: f64) -> Result<Self, AlgoError> {
        match name {
            None => Ok(Self::Never),
            Some("RunningMeanStd") => Ok(Self::CompatRunning),
            Some("ExponentialMovingAverage") => {
                let holds = (0.0..=1.0).contains(&momentum);
                parameter("Follow::compat_named", "momentum", momentum, holds, "in [0, 1]")?;
                Ok(Self::ExponentialMovingAverage { momentum })
            }
            Some(other) => Err(AlgoError::UnknownName {
                what: "normalizer type",
                got: other.to_owned(),
                expected: "RunningMeanStd, ExponentialMovingAverage",
            }),
        }
    }
}

impl FromStr for NormalizeFunction {
    type Err = AlgoError;

    fn from_str(name: &str) -> Result<Self, AlgoError> {
        match name {
            "affine" => Ok(Self::Affine),
            "scale" => Ok(Self::Scale),
            "translate" => Ok(Self::Translate),
            "identity" => Ok(Self::Identity),
            other => Err(AlgoError::UnknownName {
                what: "normalize function",
                got: other.to_owned(),
                expected: "affine, scale, translate, identity",
            }),
        }
    }
}

impl FromStr for ScoreType {
    type Err = AlgoError;

    fn from_str(name: &str) -> Result<Self, AlgoError> {
        match name {
            "reward" => Ok(Self::Reward),
            "cost" => Ok(Self::Cost),
            "critic" => Ok(Self::Critic),
            other => Err(AlgoError::UnknownName {
                what: "score type",
                got: other.to_owned(),
                expected: "reward, cost, critic",
            }),
        }
    }
}

/// Moments of a score model's outputs. Algorithm state: saved with the model.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ScoreNormalizer {
    /// How the moments follow.
    pub follow: Follow,
    /// What normalising does.
    pub function: NormalizeFunction,
    /// Mean, at first 0.
    pub mean: f64,
    /// Variance, at first 1.
    pub variance: f64,
    /// Scores seen.
    pub count: u64,
}

impl ScoreNormalizer {
    /// What safe-rlhf adds to the standard deviation that it divides by.
    pub const EPSILON: f64 = 1e-8;

    /// With mean 0, variance 1 and nothing seen.
    #[must_use]
    pub fn new(follow: Follow, function: NormalizeFunction) -> Self {
        Self { follow, function, mean: 0.0, variance: 1.0, count: 0 }
    }

    /// The same with moments from elsewhere (a model's saved ones).
    ///
    /// # Errors
    /// [`AlgoError::Parameter`] for a mean that is not finite or a variance that is negative.
    pub fn with_moments(self, mean: f64, variance: f64) -> Result<Self, AlgoError> {
        const F: &str = "ScoreNormalizer::with_moments";
        parameter(F, "mean", mean, true, "a finite number")?;
        parameter(F, "variance", variance, variance >= 0.0, "at least 0")?;
        Ok(Self { mean, variance, ..self })
    }

    /// Takes in a batch of scores, one a sequence, of all ranks together.
    ///
    /// # Errors
    /// [`AlgoError::Empty`], [`AlgoError::NonFinite`]; the moments are then unchanged.
    pub fn update(&mut self, scores: &[f64]) -> Result<(), AlgoError> {
        const F: &str = "ScoreNormalizer::update";
        if self.follow == Follow::Never {
            self.count += scores.len() as u64;
            return Ok(());
        }
        if scores.is_empty() {
            return Err(AlgoError::Empty { function: F, what: "scores" });
        }
        all_finite(F, "scores", scores)?;
        let n = scores.len() as f64;
        let batch_mean = mean(scores);
        let squares = square_sum(scores, batch_mean);
        let unbiased = if scores.len() > 1 { squares / (n - 1.0) } else { 0.0 };
        match self.follow {
            Follow::Never => {}
            Follow::Running => {
                let seen = self.count as f64;
                self.merge(n, batch_mean, squares, seen * n / (seen + n));
            }
            Follow::CompatRunning => {
                let (seen, n32) = (self.count as f32, n as f32);
                let weight = f64::from(seen * n32 / (seen + n32));
                self.merge(n, batch_mean, unbiased * n, weight);
            }
            Follow::ExponentialMovingAverage { momentum } => {
                self.mean = momentum * self.mean + (1.0 - momentum) * batch_mean;
                if scores.len() > 1 {
                    self.variance = momentum * self.variance + (1.0 - momentum) * unbiased;
                }
            }
        }
        self.count += scores.len() as u64;
        Ok(())
    }

    /// Chan et al. 1979: joins a batch of `n` scores with the sum of squares about its mean.
    /// `weight` is that of the squared distance of the two means.
    fn merge(&mut self, n: f64, batch_mean: f64, squares: f64, weight: f64) {
        let seen = self.count as f64;
        let total = seen + n;
        let delta = batch_mean - self.mean;
        self.mean += delta * n / total;
        let joined = self.variance * seen + squares + delta * delta * weight;
        self.variance = joined / total;
    }

    /// Normalises scores (of tokens or of sequences) in place. `epsilon` is added to the standard
    /// deviation, [`ScoreNormalizer::EPSILON`] in safe-rlhf. Where that sum is 0, a score at the
    /// mean becomes 0 and any other infinite.
    ///
    /// # Errors
    /// [`AlgoError::NonFinite`] for a score that is no number, [`AlgoError::Parameter`] for a
    /// negative epsilon.
    pub fn normalize(&self, scores: &mut [f64], epsilon: f64) -> Result<(), AlgoError> {
        const F: &str = "ScoreNormalizer::normalize";
        all_finite(F, "scores", scores)?;
        parameter(F, "epsilon", epsilon, epsilon >= 0.0, "at least 0")?;
        let deviation = self.variance.sqrt() + epsilon;
        let over = |x: f64| if x == 0.0 { 0.0 } else { x / deviation };
        for score in scores {
            *score = match self.function {
                NormalizeFunction::Affine => over(*score - self.mean),
                NormalizeFunction::Scale => over(*score),
                NormalizeFunction::Translate => *score - self.mean,
                NormalizeFunction::Identity => *score,
            };
        }
        Ok(())
    }
}
