//! What is done to token advantages after they are estimated.

use crate::AlgoError;
use crate::error::parameter;
use crate::masked::{Moments, rescale};
use crate::real::Real;

/// Least variance that [`cross_batch`] divides by.
pub const CROSS_BATCH_FLOOR: f64 = 1e-8;

/// Settings of [`cross_batch`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CrossBatch {
    /// Divide by the standard deviation; false is LightRFT's `no_advantage_std_norm`. Default
    /// true.
    pub divide_by_std: bool,
}

impl Default for CrossBatch {
    fn default() -> Self {
        Self { divide_by_std: true }
    }
}

/// `A <- (A - mean) / sqrt(max(var, 1e-8))` with the population variance over all masked-in tokens
/// of the batch, or `A <- A - mean`. All entries are changed, also those outside the mask.
///
/// Source: LightRFT `normalize_advantages_cross_batch` (advantage_calculator.py; it does so for
/// gae, reinforce and reinforce_baseline). Both slices are the whole batch laid flat.
///
/// # Errors
/// As [`Moments::of`].
pub fn cross_batch<R: Real>(
    spec: &CrossBatch,
    advantages: &mut [R],
    mask: &[bool],
) -> Result<(), AlgoError> {
    let moments = Moments::of(advantages, mask)?;
    let scale = match spec.divide_by_std {
        true => 1.0 / moments.population_variance.max(CROSS_BATCH_FLOOR).sqrt(),
        false => 1.0,
    };
    rescale(advantages, moments.mean, scale);
    Ok(())
}

/// Clamps every advantage to `± bound`; returns the share that was outside.
///
/// Source: LightRFT `--advantage_clip`, whose `advantage_clip_frac` counts all entries, padding
/// too. 0 for no advantages.
///
/// # Errors
/// [`AlgoError::Parameter`] for a bound that is not above 0.
pub fn clip<R: Real>(advantages: &mut [R], bound: f64) -> Result<f64, AlgoError> {
    parameter("advantage::clip", "bound", bound, bound > 0.0, "above 0")?;
    let mut outside = 0usize;
    let entries = advantages.len().max(1);
    let processor = pulp::Arch::new();
    for block in advantages.chunks_mut(BLOCK) {
        outside += processor.dispatch(Clipped { block, bound }) as usize;
    }
    Ok(outside as f64 / entries as f64)
}

/// Entries that are clamped together.
const BLOCK: usize = 4096;

/// [`clip`] of some entries; gives how many were outside.
struct Clipped<'a, R> {
    block: &'a mut [R],
    bound: f64,
}

impl<R: Real> pulp::NullaryFnOnce for Clipped<'_, R> {
    type Output = u32;

    #[inline(always)]
    fn call(self) -> u32 {
        let bound = self.bound;
        let mut outside = 0;
        for a in self.block {
            let value: f64 = (*a).into();
            // Not `clamp`: what is no number stays as it is.
            let low = if value < -bound { -bound } else { value };
            *a = R::of(if value > bound { bound } else { low });
            outside += u32::from(value.abs() > bound);
        }
        outside
    }
}
