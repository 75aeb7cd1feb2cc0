//! Means, variances and whitening over the tokens that a mask keeps.
//!
//! Slices are a whole batch laid flat, of any layout, with one mask entry a token.

use crate::AlgoError;
use crate::error::{finite_within, same_length};
use crate::real::Real;
use crate::threads;

/// Mean, variances and count of the masked-in entries, in one pass over memory.
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
        let pieces = values.chunks(PIECE).zip(mask.chunks(PIECE)).enumerate();
        let of = |(at, (values, mask))| Sums::of(at * PIECE, values, mask);
        let sums = match threads::worth(values.len()) {
            1 => pieces.map(of).try_fold(Sums::default(), |sums, own| Ok(sums.and(own?)))?,
            threads => {
                let each = values.len().div_ceil(PIECE).div_ceil(threads);
                let sums_of = |first: usize| -> Vec<_> {
                    pieces.clone().skip(first).take(each).map(of).collect()
                };
                let firsts = (0..values.len().div_ceil(PIECE)).step_by(each);
                let pieces = threads::at_once(firsts, sums_of);
                let mut pieces = pieces.into_iter().flatten();
                pieces.try_fold(Sums::default(), |sums, own| Ok(sums.and(own?)))?
            }
        };
        let Some(own_mean) = sums.mean() else {
            return match epsilon > 0.0 {
                true => Ok(Self { count: 0, mean: 0.0, population_variance: 0.0 }),
                false => Err(AlgoError::Empty { function: F, what: "the mask" }),
            };
        };
        let n = sums.count as f64;
        let mean = sums.sum / (n + epsilon);
        // The squares are about their own mean, from which an epsilon leads away.
        let squares = sums.squares + n * (own_mean - mean) * (own_mean - mean);
        Ok(Self { count: sums.count, mean, population_variance: squares / (n + epsilon) })
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
        // Around this centre, what comes out has the mean added back.
        let back = if self.shift_mean { 0.0 } else { moments.mean };
        rescale(values, moments.mean - back / scale, scale);
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
    rescale(values, moments.mean, scale);
    Ok(())
}

/// Entries that one thread sums up after another; pieces do not hang on how many threads there are,
/// and so neither does the result.
const PIECE: usize = threads::LEAST_ENTRIES;

/// Entries whose sums are taken together: few enough to stay in the first-level cache.
const BLOCK: usize = 2048;

/// Independent sums that a block is added up in.
const LANES: usize = 16;

/// What the moments of some entries are made of.
#[derive(Debug, Clone, Copy, Default)]
struct Sums {
    count: usize,
    sum: f64,
    /// About their own mean.
    squares: f64,
}

/// Least share of the squares about a guessed mean that those about the true one may be; below it
/// the guess was bad and their difference has lost too many digits (three of sixteen).
const GOOD_GUESS: f64 = 1e-3;

impl Sums {
    /// Of entries the first of which is the `start`-th of all.
    fn of<R: Real>(start: usize, values: &[R], mask: &[bool]) -> Result<Self, AlgoError> {
        let mut sums = Self::default();
        let processor = pulp::Arch::new();
        for (block, (values, mask)) in values.chunks(BLOCK).zip(mask.chunks(BLOCK)).enumerate() {
            let own = processor.dispatch(Block { values, mask, guess: sums.mean() });
            if !own.sum.is_finite() {
                finite_within("Moments::of", "values", start + block * BLOCK, values, mask)?;
            }
            sums = sums.and(own);
        }
        Ok(sums)
    }

    fn mean(&self) -> Option<f64> {
        (self.count > 0).then(|| self.sum / self.count as f64)
    }

    /// Both together. Source: Chan, Golub and LeVeque 1983, "Algorithms for computing the sample
    /// variance", eq. 2.1.
    fn and(self, other: Self) -> Self {
        if self.count == 0 || other.count == 0 {
            return if self.count == 0 { other } else { self };
        }
        let (n, m) = (self.count as f64, other.count as f64);
        let apart = other.sum / m - self.sum / n;
        Self {
            count: self.count + other.count,
            sum: self.sum + other.sum,
            squares: self.squares + other.squares + apart * apart * (n * m / (n + m)),
        }
    }
}

/// Adds up one block, in the vector instructions that the processor has.
struct Block<'a, R> {
    values: &'a [R],
    mask: &'a [bool],
    /// What the mean may be near to.
    guess: Option<f64>,
}

impl<R: Real> pulp::NullaryFnOnce for Block<'_, R> {
    type Output = Sums;

    #[inline(always)]
    fn call(self) -> Sums {
        let Self { values, mask, guess } = self;
        let count = count_of(mask);
        if count == 0 {
            return Sums::default();
        }
        let first = || values.iter().zip(mask).find(|(_, keep)| **keep);
        let guess = guess.or_else(|| first().map(|(value, _)| (*value).into())).unwrap_or(0.0);
        let n = count as f64;
        let (off, about_guess) = differences(values, mask, guess);
        let sum = off + n * guess;
        let squares = about_guess - off * off / n;
        if squares >= GOOD_GUESS * about_guess {
            return Sums { count, sum, squares };
        }
        let (off, about_mean) = differences(values, mask, sum / n);
        Sums { count, sum: sum + off, squares: (about_mean - off * off / n).max(0.0) }
    }
}

/// How many entries of a block the mask keeps.
#[inline(always)]
fn count_of(mask: &[bool]) -> usize {
    let kept: u32 = mask.iter().map(|keep| u32::from(*keep)).sum();
    kept as usize
}

/// `sum (x - guess)` and `sum (x - guess)^2` over the masked-in entries. What stands outside never
/// counts.
#[inline(always)]
fn differences<R: Real>(values: &[R], mask: &[bool], guess: f64) -> (f64, f64) {
    let (whole_values, last_values) = values.as_chunks::<LANES>();
    let (whole_mask, last_mask) = mask.as_chunks::<LANES>();
    let (mut sums, mut squares) = ([0.0; LANES], [0.0; LANES]);
    for (values, mask) in whole_values.iter().zip(whole_mask) {
        for lane in 0..LANES {
            let off = values[lane].into() - guess;
            let off = if mask[lane] { off } else { 0.0 };
            sums[lane] += off;
            squares[lane] += off * off;
        }
    }
    for (value, keep) in last_values.iter().zip(last_mask) {
        let off = if *keep { (*value).into() - guess } else { 0.0 };
        sums[0] += off;
        squares[0] += off * off;
    }
    (sums.iter().sum(), squares.iter().sum())
}

/// `x <- (x - centre) * scale`.
pub(crate) fn rescale<R: Real>(values: &mut [R], centre: f64, scale: f64) {
    let rescale = |values| pulp::Arch::new().dispatch(Rescaled { values, centre, scale });
    match threads::worth(values.len()) {
        1 => rescale(values),
        threads => {
            let pieces = values.chunks_mut(values.len().div_ceil(threads));
            threads::at_once(pieces, rescale);
        }
    }
}

struct Rescaled<'a, R> {
    values: &'a mut [R],
    centre: f64,
    scale: f64,
}

impl<R: Real> pulp::NullaryFnOnce for Rescaled<'_, R> {
    type Output = ();

    #[inline(always)]
    fn call(self) {
        for value in self.values {
            *value = R::of(((*value).into() - self.centre) * self.scale);
        }
    }
}
