//! Means, variances and whitening over the tokens that a mask keeps.
//!
//! Slices are a whole batch laid flat, of any layout, with one mask entry a token.

use crate::AlgoError;
use crate::error::same_length;
use crate::real::Real;
use crate::statistics::less_rounding;

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
    /// With an epsilon above 0 a mask that keeps nothing has mean and variance 0.
    ///
    /// # Errors
    /// As [`Moments::of`]; [`AlgoError::Parameter`] for a negative epsilon.
    pub fn with_count_epsilon<R: Real>(
        values: &[R],
        mask: &[bool],
        epsilon: f64,
    ) -> Result<Self, AlgoError> {
        const F: &str = "Moments::of";
        same_length(F, "mask", values.len(), mask.len())?;
        crate::error::parameter(F, "epsilon", epsilon, epsilon >= 0.0, "at least 0")?;
        let (mut count, mut sum) = (0usize, 0.0f64);
        for (value, _) in kept(values, mask) {
            count += 1;
            sum += value;
        }
        if count == 0 && epsilon == 0.0 {
            return Err(AlgoError::Empty { function: F, what: "the mask" });
        }
        if !sum.is_finite()
            && let Some((value, index)) = kept(values, mask).find(|(v, _)| !v.is_finite())
        {
            return Err(AlgoError::NonFinite { function: F, argument: "values", index, value });
        }
        let divisor = count as f64 + epsilon;
        let mean = sum / divisor;
        let (mut squares, mut rest) = (0.0, 0.0);
        for (value, _) in kept(values, mask) {
            squares += (value - mean) * (value - mean);
            rest += value - mean;
        }
        if epsilon == 0.0 {
            squares = less_rounding(squares, rest, divisor);
        }
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

/// Settings of whitening.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Whiten {
    /// Take the mean away; false adds it back after scaling. Default true.
    pub shift_mean: bool,
    /// Added to the count that mean and variance divide by. Default
    /// [`Moments::VERL_COUNT_EPSILON`]; earlier versions of verl have 0.
    pub count_epsilon: f64,
}

impl Default for Whiten {
    fn default() -> Self {
        Self { shift_mean: true, count_epsilon: Moments::VERL_COUNT_EPSILON }
    }
}

impl Whiten {
    /// What is added to the variance.
    pub const VARIANCE_EPSILON: f64 = 1e-8;

    /// `x <- (x - mean) / sqrt(var + 1e-8)` with the unbiased variance of the masked-in entries.
    /// **All** entries are changed, also those outside the mask ([`zero_outside`]).
    ///
    /// Source: verl `masked_whiten` (torch_functional.py).
    ///
    /// # Errors
    /// As [`Moments::of`] and [`Moments::unbiased_variance`].
    pub fn apply<R: Real>(&self, values: &mut [R], mask: &[bool]) -> Result<(), AlgoError> {
        let moments = Moments::with_count_epsilon(values, mask, self.count_epsilon)?;
        let scale = 1.0 / (moments.unbiased_variance()? + Self::VARIANCE_EPSILON).sqrt();
        let back = if self.shift_mean { 0.0 } else { moments.mean };
        for value in values {
            *value = R::of(((*value).into() - moments.mean) * scale + back);
        }
        Ok(())
    }
}

/// [`Whiten`] with verl's count.
///
/// # Errors
/// As [`Whiten::apply`].
pub fn whiten<R: Real>(values: &mut [R], mask: &[bool], shift_mean: bool) -> Result<(), AlgoError> {
    Whiten { shift_mean, ..Whiten::default() }.apply(values, mask)
}

/// Whitens figures of samples as if each stood on every one of its tokens: moments weigh a sample
/// by its length. The same as [`whiten`] of the figures put on their tokens, without the tokens.
/// `values` and `lengths_tokens` (masked-in tokens) are `[B]`.
///
/// # Errors
/// [`AlgoError::Length`], [`AlgoError::NonFinite`], [`AlgoError::TooFew`] for less than two tokens.
pub fn whiten_samples(values: &mut [f64], lengths_tokens: &[usize]) -> Result<(), AlgoError> {
    const F: &str = "whiten_samples";
    same_length(F, "lengths_tokens", values.len(), lengths_tokens.len())?;
    crate::error::all_finite(F, "values", values)?;
    let tokens: usize = lengths_tokens.iter().sum();
    if tokens < 2 {
        return Err(AlgoError::TooFew { function: F, expected: 2, got: tokens });
    }
    let weighted = |of: &dyn Fn(f64) -> f64| -> f64 {
        let sum: f64 = values.iter().zip(lengths_tokens).map(|(v, n)| of(*v) * *n as f64).sum();
        sum / (tokens as f64 + Moments::VERL_COUNT_EPSILON)
    };
    let mean = weighted(&|v| v);
    let n = tokens as f64;
    let variance = weighted(&|v| (v - mean) * (v - mean)) * n / (n - 1.0);
    let scale = 1.0 / (variance + Whiten::VARIANCE_EPSILON).sqrt();
    for value in values {
        *value = (*value - mean) * scale;
    }
    Ok(())
}

/// Sets every entry outside the mask to 0.
///
/// # Errors
/// [`AlgoError::Length`].
pub fn zero_outside<R: Real>(values: &mut [R], mask: &[bool]) -> Result<(), AlgoError> {
    same_length("zero_outside", "mask", values.len(), mask.len())?;
    for (value, keep) in values.iter_mut().zip(mask) {
        if !keep {
            *value = R::of(0.0);
        }
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
