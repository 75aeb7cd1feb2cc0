//! The critic's loss.

use tch::{Kind, Tensor};

use crate::aggregate::{Aggregation, Denominators, Layout, aggregate};
use crate::{LossError, check};

/// How far a value may move from the old one before its loss is clipped.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ValueLoss {
    /// Clip range of the value; `None` is plain squared error. Default 0.5 (verl).
    pub clip: Option<f64>,
    /// How token losses are aggregated. Default the token mean.
    pub aggregation: Aggregation,
}

impl Default for ValueLoss {
    fn default() -> Self {
        Self { clip: Some(0.5), aggregation: Aggregation::TokenMean }
    }
}

/// A value loss with what it was clipped by.
#[derive(Debug)]
pub struct ValueTerms {
    /// This batch's contribution, a scalar with gradients to `values`.
    pub loss: Tensor,
    /// Number of masked-in tokens whose clipped loss is the larger.
    pub clipped_tokens: f64,
}

/// `1/2 aggregate(max((v - R)^2, (clip(v, v_old ± c) - R)^2))`.
///
/// Source: PPO2's value clipping; verl `compute_value_loss` (core_algos.py), LightRFT `ValueLoss`
/// (models/loss.py; there the mean over each sequence, then over sequences).
///
/// All tensors have the shape of `values`, `[B, T]` or `[N]`. Gradients flow to `values`.
///
/// # Errors
/// As [`aggregate`]; [`LossError::Parameter`] for a clip range below 0, [`LossError::NonFinite`]
/// when the result is no number.
pub fn value_loss(
    spec: &ValueLoss,
    values: &Tensor,
    old_values: &Tensor,
    returns: &Tensor,
    mask: &Tensor,
    layout: Layout<'_>,
    denominators: &Denominators,
) -> Result<ValueTerms, LossError> {
    const F: &str = "value_loss";
    check::float(F, "values", values)?;
    let shape = values.size();
    check::shape(F, "old_values", &shape, old_values)?;
    check::shape(F, "returns", &shape, returns)?;
    let mask = check::mask(F, &shape, mask)?;
    let outside = mask.logical_not();
    let kind = check::maths_kind(values);
    let inside = |t: &Tensor| t.to_kind(kind).masked_fill(&outside, 0.0);
    let (values, old_values, returns) =
        (inside(values), inside(&old_values.detach()), inside(&returns.detach()));
    let plain = (&values - &returns).square();
    let (token_loss, clipped_tokens) = match spec.clip {
        None => (plain, 0.0),
        Some(clip) => {
            check::parameter(F, "clip", clip, clip >= 0.0, "at least 0")?;
            let near = values.clamp_tensor(Some(&old_values - clip), Some(&old_values + clip));
            let clipped = (near - &returns).square();
            let larger = clipped.gt_tensor(&plain).logical_and(&mask);
            (plain.maximum(&clipped), larger.sum(Kind::Double).double_value(&[]))
        }
    };
    let loss = aggregate(spec.aggregation, &token_loss, &mask, layout, denominators)? * 0.5;
    check::finite(F, "the loss", loss.double_value(&[]))?;
    Ok(ValueTerms { loss, clipped_tokens })
}
