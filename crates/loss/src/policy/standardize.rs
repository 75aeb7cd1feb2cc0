//! Advantages on one scale over a micro-batch, as LightRFT's GSPO has them.

use tch::{Kind, Tensor};

use super::masked;
use crate::{LossError, check};

/// `(A - mean) / (std + epsilon)` over the masked-in tokens, with the unbiased standard deviation;
/// `A - mean` alone where that is at most `epsilon` or where there is one token only.
///
/// Source: LightRFT `PolicyLoss._maybe_normalize_advantages`, with epsilon 1e-8. It looks at the
/// tokens it is given, so it depends on how a batch was cut into micro-batches; Plumbline's own
/// normalisation is over the whole batch (`plumb_algo::masked::standardize`).
///
/// Tensors are of one shape (any). The result has no gradient and is 0 outside the mask.
///
/// # Errors
/// [`LossError::Parameter`] for an epsilon below 0, [`LossError::Shape`] and [`LossError::Kind`]
/// for tensors that do not fit.
pub fn standardized_advantages(
    advantage: &Tensor,
    mask: &Tensor,
    epsilon: f64,
) -> Result<Tensor, LossError> {
    const F: &str = "standardized_advantages";
    check::parameter(F, "epsilon", epsilon, epsilon >= 0.0, "at least 0")?;
    let m = masked(F, advantage, advantage, advantage, mask)?;
    let outside = m.mask.logical_not();
    let count = m.mask.sum(Kind::Double).double_value(&[]);
    let mean = m.advantage.sum(Kind::Double).double_value(&[]) / count.max(1.0);
    let centred = (&m.advantage - mean).masked_fill(&outside, 0.0);
    let square_sum = centred.square().sum(Kind::Double).double_value(&[]);
    let deviation = (square_sum / (count - 1.0).max(1.0)).sqrt();
    Ok(if deviation > epsilon { centred / (deviation + epsilon) } else { centred })
}
