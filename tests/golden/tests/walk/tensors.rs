//! Golden numbers as tensors and back.

use plumb_golden::{Failure, Fields, encode};
use serde_json::Value;
use tch::{Kind, Tensor};

/// A nested list as a double tensor of its shape.
pub(crate) fn tensor(fields: &Fields, key: &str) -> Result<Tensor, Failure> {
    let (numbers, shape) = fields.flat(key)?;
    if shape.iter().product::<i64>() != numbers.len() as i64 {
        return Err(Failure::Malformed(format!("{key:?} is ragged")));
    }
    Ok(Tensor::from_slice(&numbers).reshape(&shape))
}

/// The same, ready for a gradient.
pub(crate) fn leaf(fields: &Fields, key: &str) -> Result<Tensor, Failure> {
    Ok(tensor(fields, key)?.set_requires_grad(true))
}

/// The gradient of a scalar in `leaf`.
pub(crate) fn gradient(scalar: &Tensor, leaf: &Tensor) -> Tensor {
    Tensor::run_backward(&[scalar], &[leaf], false, false).remove(0)
}

/// A tensor of any shape as nested lists.
pub(crate) fn nested(tensor: &Tensor) -> Value {
    if tensor.dim() == 0 {
        return encode(tensor.to_kind(Kind::Double).double_value(&[]));
    }
    Value::Array((0..tensor.size()[0]).map(|i| nested(&tensor.get(i))).collect())
}
