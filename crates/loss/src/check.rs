//! Argument checks that all losses share.

use tch::{Kind, Tensor};

use crate::LossError;

/// The kind that maths is done in: double stays double, everything else becomes float.
pub(crate) fn maths_kind(tensor: &Tensor) -> Kind {
    if tensor.kind() == Kind::Double { Kind::Double } else { Kind::Float }
}

/// `argument` must have the shape `expected`.
pub(crate) fn shape(
    function: &'static str,
    argument: &'static str,
    expected: &[i64],
    tensor: &Tensor,
) -> Result<(), LossError> {
    let got = tensor.size();
    if got == expected {
        return Ok(());
    }
    Err(LossError::Shape { function, argument, expected: expected.to_vec(), got })
}

/// A float tensor of any width.
pub(crate) fn float(
    function: &'static str,
    argument: &'static str,
    tensor: &Tensor,
) -> Result<(), LossError> {
    let got = tensor.kind();
    if matches!(got, Kind::Float | Kind::Double | Kind::BFloat16 | Kind::Half) {
        return Ok(());
    }
    Err(LossError::Kind { function, argument, expected: "a floating-point kind", got })
}

/// Logits must have a last dimension, the vocabulary.
pub(crate) fn vocabulary(function: &'static str, logits: &Tensor) -> Result<(), LossError> {
    if logits.dim() > 0 {
        return Ok(());
    }
    let got = logits.size();
    Err(LossError::Rank { function, argument: "logits", expected: "[.., V]", got })
}

/// The mask as a boolean tensor of shape `expected`.
pub(crate) fn mask(
    function: &'static str,
    expected: &[i64],
    mask: &Tensor,
) -> Result<Tensor, LossError> {
    shape(function, "mask", expected, mask)?;
    Ok(if mask.kind() == Kind::Bool { mask.shallow_clone() } else { mask.ne(0.0) })
}

/// `value` must lie in a range that `holds` tells.
pub(crate) fn parameter(
    function: &'static str,
    parameter: &'static str,
    value: f64,
    holds: bool,
    expected: &'static str,
) -> Result<(), LossError> {
    if holds && value.is_finite() {
        return Ok(());
    }
    Err(LossError::Parameter { function, parameter, value, expected })
}

/// Refuses NaN and infinities.
pub(crate) fn finite(
    function: &'static str,
    what: &'static str,
    value: f64,
) -> Result<f64, LossError> {
    if value.is_finite() {
        return Ok(value);
    }
    Err(LossError::NonFinite { function, what, value })
}
