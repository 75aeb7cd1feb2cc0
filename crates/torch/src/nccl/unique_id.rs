use std::ffi::c_char;

use super::NcclError;
use super::library::{RawUniqueId, SUCCESS, functions};

/// What rank 0 makes and every rank of a group joins with.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct UniqueId([u8; 128]);

impl std::fmt::Debug for UniqueId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("UniqueId(..)")
    }
}

impl UniqueId {
    /// A new id. Needs the library, but no device.
    ///
    /// # Errors
    /// [`NcclError::Unavailable`], [`NcclError::Failed`].
    pub fn generate() -> Result<Self, NcclError> {
        let functions = functions()?;
        let mut raw = RawUniqueId { bytes: [0; 128] };
        // SAFETY: NCCL writes the 128 bytes.
        let code = unsafe { (functions.get_unique_id)(&mut raw) };
        if code != SUCCESS {
            return Err(functions.failure("unique id", code, std::ptr::null_mut()));
        }
        Ok(Self(raw.bytes.map(|byte| byte.to_ne_bytes()[0])))
    }

    /// The bytes, to be sent to the other ranks.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8; 128] {
        &self.0
    }

    /// An id that rank 0 sent.
    ///
    /// # Errors
    /// [`NcclError::Unsupported`] unless there are 128 bytes.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, NcclError> {
        let unsupported = |_| NcclError::Unsupported {
            operation: "unique id",
            reason: format!("{} bytes instead of 128", bytes.len()),
        };
        Ok(Self(bytes.try_into().map_err(unsupported)?))
    }

    /// As NCCL passes it.
    pub(super) fn raw(&self) -> RawUniqueId {
        RawUniqueId { bytes: self.0.map(|byte| c_char::from_ne_bytes([byte])) }
    }
}
