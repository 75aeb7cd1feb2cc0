use std::ffi::{CStr, c_char};

use crate::ffi;

/// A libtorch call that failed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{operation} failed: {message}")]
pub struct TorchError {
    /// What was being done.
    pub operation: &'static str,
    /// What libtorch, or the check before it, said.
    pub message: String,
}

impl TorchError {
    pub(crate) fn new(operation: &'static str, message: impl Into<String>) -> Self {
        Self { operation, message: message.into() }
    }
}

/// Turns the shim's answer into a result and frees its message.
pub(crate) fn check(operation: &'static str, message: *mut c_char) -> Result<(), TorchError> {
    if message.is_null() {
        return Ok(());
    }
    // SAFETY: a non-null answer of the shim is a NUL-terminated string from malloc that is ours.
    let text = unsafe {
        let text = CStr::from_ptr(message).to_string_lossy().into_owned();
        ffi::plumb_string_free(message);
        text
    };
    Err(TorchError::new(operation, text))
}
