//! What is done to token advantages after they are estimated.

use crate::AlgoError;
use crate::error::parameter;
use crate::masked::Moments;
use crate::real::Real;

/// Least variance that [`cross_batch`] divides by.
pub const CROSS_BATCH_FLOOR: f64 = 1e-8;

/// `A <- (A - mean) / sqrt(max(var, 1e-8))` with the population variance over all masked-in tokens
/// of the batch. All entries are changed, also those outside the mask.
///
/// Source: LightRFT `normalize_advantages_cross_batch` (for gae, reinforce and
/// reinforce_baseline).
///
/// # Errors
/// As [`Moments::of`].
pub fn cross_batch<R: Real>(advantages: &mut [R], mask: &[bool]) -> Result<(), AlgoError> {
    let moments = Moments::of(advantages, mask)?;
    let scale = 1.0 / moments.population_variance.max(CROSS_BATCH_FLOOR).sqrt();
    for a in advantages {
        *a = R::of(((*a).into() - moments.mean) * scale);
    }
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
    for a in advantages {
        let value: f64 = (*a).into();
        if value.abs() > bound {
            outside += 1;
            *a = R::of(value.clamp(-bound, bound));
        }
    }
    Ok(outside as f64 / entries as f64)
}
