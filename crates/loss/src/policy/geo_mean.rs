//! GMPO: the geometric mean of clipped token ratios.

use tch::Tensor;

use super::{Masked, PolicyTokens, check_clip};
use crate::aggregate::Rows;
use crate::{LossError, check};

/// Settings of the geometric mean.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct GeoMean {
    /// Log ratios of tokens with a negative advantage are at least `-clip_low`. Default 0.4.
    pub clip_low: f64,
    /// Log ratios of tokens with a positive advantage are at most `clip_high`. Default 0.4.
    pub clip_high: f64,
    /// Added to the token count of a sequence in its two means. 0 (the default) is exact; verl
    /// adds 1e-8.
    pub row_epsilon: f64,
    /// A token whose advantage is 0 keeps its ratio, bounded like that of a positive one (LightRFT).
    /// False (the default): the sign of 0 is 0, so its log ratio counts 0 (the paper, verl).
    pub zero_is_positive: bool,
}

impl Default for GeoMean {
    fn default() -> Self {
        Self { clip_low: 0.4, clip_high: 0.4, row_epsilon: 0.0, zero_is_positive: false }
    }
}

/// Importance weights are at least this before their logarithm is taken (verl).
const LEAST_WEIGHT: f64 = 1e-10;

/// `l_b = -A_b exp(mean_t x_t)` for every token of sequence b, where `A_b` is the mean advantage,
/// `x = min(d, high)` for `A_t > 0` and `x = max(d, -low)` for `A_t < 0`, of `d = logp - old_logp`.
///
/// Source: GMPO (2025, eq. 4); verl `compute_policy_loss_geo_mean`; LightRFT `PolicyLoss` with
/// `use_gmpo`. Both take the mean over all sequences, which is
/// [`crate::aggregate::Aggregation::SeqMeanTokenMean`] with
/// [`crate::aggregate::Denominators::with_all_sequences`]: every token of a sequence carries the
/// sequence's loss. `clipped` are tokens outside the bounds with a positive advantage,
/// `clipped_lower` those with a negative one, whether or not the bound was on their side (verl).
///
/// With importance weights the sequence's loss is multiplied by their geometric mean.
pub(super) fn geo_mean(
    spec: &GeoMean,
    m: &Masked,
    rows: &Rows,
    weight: Option<&Tensor>,
) -> Result<PolicyTokens, LossError> {
    const F: &str = "geo_mean";
    check_clip(F, spec.clip_low, spec.clip_high)?;
    let epsilon = spec.row_epsilon;
    check::parameter(F, "row_epsilon", epsilon, epsilon >= 0.0, "at least 0")?;
    let log_ratio = &m.logp - &m.old_logp;
    let (positive, negative) = (m.advantage.gt(0.0), m.advantage.lt(0.0));
    let upper = log_ratio.clamp_max(spec.clip_high);
    let lower = log_ratio.clamp_min(-spec.clip_low);
    let at_zero = if spec.zero_is_positive { upper.shallow_clone() } else { upper.zeros_like() };
    let bounded = upper.where_self(&positive, &lower.where_self(&negative, &at_zero));
    let mean = |values: &Tensor| rows.means(values, &m.mask, epsilon);
    let mut sequence = -mean(&m.advantage) * mean(&bounded).exp();
    if let Some(weight) = weight {
        let outside = m.mask.logical_not();
        let log_weight = (weight + LEAST_WEIGHT).log().masked_fill(&outside, 0.0);
        sequence *= mean(&log_weight).exp();
    }
    let within = log_ratio.detach().clamp(-spec.clip_low, spec.clip_high);
    let outside_bounds = log_ratio.ne_tensor(&within).logical_and(&m.mask);
    Ok(PolicyTokens {
        loss: (rows.spread(&sequence) * m.mask.to_kind(m.logp.kind())),
        log_ratio: log_ratio.detach(),
        clipped: outside_bounds.logical_and(&positive),
        clipped_lower: outside_bounds.logical_and(&negative),
    })
}
