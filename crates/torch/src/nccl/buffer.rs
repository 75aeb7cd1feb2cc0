//! Tensors and reductions in NCCL's terms.

use std::ffi::{c_int, c_void};

use tch::{Kind, Tensor};

use super::NcclError;
use crate::gloo::ReduceOp;

/// `ncclRedOp_t`.
pub(super) const fn reduction(op: ReduceOp) -> c_int {
    match op {
        ReduceOp::Sum => 0,
        ReduceOp::Max => 2,
        ReduceOp::Min => 3,
    }
}

/// Device memory as NCCL takes it.
pub(super) struct Buffer {
    pub(super) data: *mut c_void,
    pub(super) count: usize,
    /// `ncclDataType_t`.
    pub(super) kind: c_int,
}

impl Buffer {
    pub(super) fn of(operation: &'static str, tensor: &Tensor) -> Result<Self, NcclError> {
        let unsupported = |reason| NcclError::Unsupported { operation, reason };
        if !tensor.device().is_cuda() || !tensor.is_contiguous() {
            return Err(unsupported(format!(
                "a tensor of shape {:?} on {:?} must be contiguous on a cuda device",
                tensor.size(),
                tensor.device()
            )));
        }
        let kind = match tensor.kind() {
            Kind::Int8 => 0,
            Kind::Uint8 => 1,
            Kind::Int => 2,
            Kind::Int64 => 4,
            Kind::Half => 6,
            Kind::Float => 7,
            Kind::Double => 8,
            Kind::BFloat16 => 9,
            other => return Err(unsupported(format!("dtype {other:?} is not supported"))),
        };
        Ok(Self { data: tensor.data_ptr(), count: tensor.numel(), kind })
    }
}
