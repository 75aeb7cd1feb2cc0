//! Means with their uncertainty, for reports and evaluation.

use crate::AlgoError;
use crate::error::{all_finite, same_length};

/// Mean and spread of independent values.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Summary {
    /// How many values.
    pub n: usize,
    /// `sum x / n`.
    pub mean: f64,
    /// Unbiased variance `sum (x - mean)^2 / (n - 1)`; 0 for a single value.
    pub variance: f64,
    /// `sqrt(variance / n)`. Infinite for a single value: one value says nothing of its spread.
    pub standard_error: f64,
}

impl Summary {
    /// Of the given values.
    ///
    /// # Errors
    /// [`AlgoError::Empty`], [`AlgoError::NonFinite`].
    pub fn of(values: &[f64]) -> Result<Self, AlgoError> {
        const F: &str = "Summary::of";
        if values.is_empty() {
            return Err(AlgoError::Empty { function: F, what: "values" });
        }
        all_finite(F, "values", values)?;
        let n = values.len();
        let mean = mean(values);
        if n == 1 {
            return Ok(Self { n, mean, variance: 0.0, standard_error: f64::INFINITY });
        }
        let variance = square_sum(values, mean) / (n - 1) as f64;
        Ok(Self { n, mean, variance, standard_error: (variance / n as f64).sqrt() })
    }
}

/// Mean and unbiased standard deviation of two values or more.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Spread {
    pub(crate) mean: f64,
    /// Exactly 0 for values that are all equal.
    pub(crate) std: f64,
}

impl Spread {
    /// Of the given values.
    ///
    /// # Errors
    /// [`AlgoError::TooFew`], [`AlgoError::NonFinite`].
    pub(crate) fn of(values: &[f64]) -> Result<Self, AlgoError> {
        const F: &str = "Spread::of";
        if values.len() < 2 {
            return Err(AlgoError::TooFew { function: F, expected: 2, got: values.len() });
        }
        all_finite(F, "values", values)?;
        if values.iter().all(|value| *value == values[0]) {
            return Ok(Self { mean: values[0], std: 0.0 });
        }
        let mean = mean(values);
        Ok(Self { mean, std: (square_sum(values, mean) / (values.len() - 1) as f64).sqrt() })
    }

    /// `mean + k std`; the mean where there is no spread, whatever `k` is.
    pub(crate) fn above_mean(&self, k: f64) -> f64 {
        if self.std == 0.0 { self.mean } else { self.mean + k * self.std }
    }
}

/// The change of the same items measured twice: a [`Summary`] of `after - before`. Its standard
/// error is that of the paired difference, smaller than that of two separate means when items
/// keep their rank.
///
/// # Errors
/// [`AlgoError::Length`] when the two differ in length; else as [`Summary::of`].
pub fn paired_difference(before: &[f64], after: &[f64]) -> Result<Summary, AlgoError> {
    const F: &str = "paired_difference";
    same_length(F, "after", before.len(), after.len())?;
    all_finite(F, "before", before)?;
    all_finite(F, "after", after)?;
    let change: Vec<f64> = before.iter().zip(after).map(|(b, a)| a - b).collect();
    Summary::of(&change)
}

/// Share of values above `high` or below `low`, 0 for none at all. NaN is neither.
///
/// Source: LightRFT `compute_clip_fraction` (trainer/utils.py), a batch metric that it repeats
/// for every row.
#[must_use]
pub fn fraction_outside(values: &[f64], low: f64, high: f64) -> f64 {
    let above = values.iter().filter(|x| **x > high).count();
    let below = values.iter().filter(|x| **x < low).count();
    if values.is_empty() { 0.0 } else { (above + below) as f64 / values.len() as f64 }
}

/// `sum x / n`; the caller has checked that there are values.
pub(crate) fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len() as f64
}

/// `sum (x - mean)^2` about the values' own mean, less what the rounding of that mean added.
pub(crate) fn square_sum(values: &[f64], mean: f64) -> f64 {
    let (mut squares, mut rest) = (0.0, 0.0);
    for x in values {
        squares += (x - mean) * (x - mean);
        rest += x - mean;
    }
    less_rounding(squares, rest, values.len() as f64)
}

/// `squares - rest^2 / n`, where `rest = sum (x - mean)` is 0 but for the rounding of the mean.
pub(crate) fn less_rounding(squares: f64, rest: f64, n: f64) -> f64 {
    let corrected = squares - rest * rest / n;
    // Squares of huge values overflow: their sum is infinite, not 0.
    if corrected.is_nan() { squares } else { corrected.max(0.0) }
}
