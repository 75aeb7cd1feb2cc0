use std::ffi::c_int;

use crate::TorchError;

/// A failure of NCCL, or to get at it.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum NcclError {
    /// The library is not on this machine, or is no NCCL 2.
    #[error("nccl is not available: {reason}")]
    Unavailable {
        /// What the loader said.
        reason: String,
    },
    /// NCCL refused or failed an operation.
    #[error("nccl {operation} failed with code {code}: {message}")]
    Failed {
        /// The operation.
        operation: &'static str,
        /// NCCL's result code.
        code: c_int,
        /// NCCL's own words.
        message: String,
    },
    /// The peers did not come in time.
    #[error("nccl {operation} was not done within {timeout_secs} s")]
    Timeout {
        /// The operation.
        operation: &'static str,
        /// The limit, in seconds.
        timeout_secs: f64,
    },
    /// A tensor that NCCL cannot take.
    #[error("nccl {operation}: {reason}")]
    Unsupported {
        /// The operation.
        operation: &'static str,
        /// What is wrong with it.
        reason: String,
    },
    /// A device call around it failed.
    #[error(transparent)]
    Device(#[from] TorchError),
}
