//! Means, variances and whitening over the tokens that a mask keeps.
//!
//! Slices are a whole batch laid flat, of any layout, with one mask entry a token.

use crate::AlgoError;
use crate::error::same_length;
use crate::real::Real;

/// Mean, variances and count of the masked-in entries, in two passes.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Moments {
    /// Number of masked-in entries.
    pub count: usize,
    /// Their mean.
    pub mean: f64,
    /// `sum (x - mean)^2 / n`.
    pub population_variance: f64,
}

impl Moments {
    /// What verl adds to the count that its masked means divide by.
    pub const VERL_COUNT_EPSILON: f64 = 1e-8;

    /// Over the entries that `mask` keeps. Entries outside may hold anything.
    ///
    /// # Errors
    /// [`AlgoError::Length`], [`AlgoError::Empty`] for a mask that keeps nothing,
    /// [`AlgoError::NonFinite`] for a masked-in value that is no number.
    pub fn of<R: Real>(values: &[R], mask: &[bool]) -> Result<Self, AlgoError> {
        Self::with_count_epsilon(values, mask, 0.0)
    }

    /// The same with `epsilon` added to the count that mean and variance divide by; verl's
    /// `masked_mean` and `masked_var` (torch_functional.py) with
    /// [`Moments::VERL_COUNT_EPSILON`].
    ///
    /// # Errors
    /// As [`Moments::of`].
    pub fn with_count_epsilon<R: Real>(
        values: &[R],
        mask: &[bool],
        epsilon: f64,
    ) -> Result<Self, AlgoError> {
        const F: &str = "Moments::of";
        same_length(F, "mask", values.len(), mask.len())?;
        let (mut count, mut sum) = (0usize, 0.0f64);
        for (value, _) in kept(values, mask) {
            count += 1;
            sum += value;
        }
        if count == 0 {
            return Err(AlgoError::Empty { function: F, what: "the mask" });
        }
        if !sum.is_finite()
            && let Some((value, index)) = kept(values, mask).find(|(v, _)| !v.is_finite())
        {
            return Err(AlgoError::NonFinite { function: F, argument: "values", index, value });
        }
        let divisor = count as f64 + epsilon;
        let mean = sum / divisor;
        let squares: f64 = kept(values, mask).map(|(v, _)| (v - mean) * (v - mean)).sum();
        Ok(Self { count, mean, population_variance: squares / divisor })
    }

    /// `sum (x - mean)^2 / (n - 1)`.
    ///
    /// # Errors
    /// [`AlgoError::TooFew`] for a single entry (verl's `masked_var` raises there too).
    pub fn unbiased_variance(&self) -> Result<f64, AlgoError> {
        if self.count < 2 {
            let function = "Moments::unbiased_variance";
            return Err(AlgoError::TooFew { function, expected: 2, got: self.count });
        }
        let n = self.count as f64;
        Ok(self.population_variance * n / (n - 1.0))
    }
}

/// `x <- (x - mean) / sqrt(var + 1e-8)` with the unbiased variance of the masked-in entries; with
/// `shift_mean` false the mean is added back.
///
/// Source: verl `masked_whiten` (torch_functional.py), with its
/// [`Moments::VERL_COUNT_EPSILON`]. **All** entries are changed, also those outside the mask, as
/// there; zero them afterwards if that matters.
///
/// # Errors
/// As [`Moments::of`] and [`Moments::unbiased_variance`].
pub fn whiten<R: Real>(values: &mut [R], mask: &[bool], shift_mean: bool) -> Result<(), AlgoError> {
    let moments = Moments::with_count_epsilon(values, mask, Moments::VERL_COUNT_EPSILON)?;
    let scale = 1.0 / (moments.unbiased_variance()? + 1e-8).sqrt();
    let back = if shift_mean { 0.0 } else { moments.mean };
    for value in values {
        *value = R::of(((*value).into() - moments.mean) * scale + back);
    }
    Ok(())
}

/// `x <- (x - mean) / (std + epsilon)` with the unbiased standard deviation of the masked-in
/// entries. All entries are changed, also those outside the mask.
///
/// Source: LightRFT `--advantages_norm` (advantage_calculator.py): epsilon 1e-9 for GAE, 1e-8
/// elsewhere.
///
/// # Errors
/// As [`whiten`]; [`AlgoError::Parameter`] for a negative epsilon.
pub fn standardize<R: Real>(
    values: &mut [R],
    mask: &[bool],
    epsilon: f64,
) -> Result<(), AlgoError> {
    crate::error::parameter("standardize", "epsilon", epsilon, epsilon >= 0.0, "at least 0")?;
    let moments = Moments::of(values, mask)?;
    let deviation = moments.unbiased_variance()?.sqrt() + epsilon;
    // Without spread and epsilon every value is the mean: 0, not 0/0.
    let scale = if deviation > 0.0 { 1.0 / deviation } else { 0.0 };
    for value in values {
        *value = R::of(((*value).into() - moments.mean) * scale);
    }
    Ok(())
}

/// The masked-in values with their indices.
fn kept<'a, R: Real>(values: &'a [R], mask: &'a [bool]) -> impl Iterator<Item = (f64, usize)> + 'a {
    values
        .iter()
        .zip(mask)
        .enumerate()
        .filter(|(_, (_, keep))| **keep)
        .map(|(i, (v, _))| ((*v).into(), i))
}
