use std::fmt;

use crate::CollectiveError;

/// An operation that was started. Its tensors may not be touched before [`Pending::wait`] returns.
#[must_use = "an operation is only done once it was waited for"]
pub struct Pending(Option<Box<dyn FnOnce() -> Result<(), CollectiveError> + Send>>);

impl fmt::Debug for Pending {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.0.is_some() { "Pending(..)" } else { "Pending(done)" })
    }
}

impl Pending {
    /// An operation that is already done.
    pub fn done() -> Self {
        Self(None)
    }

    /// An operation that `finish` brings to its end.
    pub(crate) fn new(
        finish: impl FnOnce() -> Result<(), CollectiveError> + Send + 'static,
    ) -> Self {
        Self(Some(Box::new(finish)))
    }

    /// Blocks until the operation is done. On a CUDA device: until the calling thread's current
    /// stream is ordered after it.
    ///
    /// # Errors
    /// [`CollectiveError::Peer`] when a peer is lost or hangs, [`CollectiveError::Aborted`].
    pub fn wait(self) -> Result<(), CollectiveError> {
        match self.0 {
            None => Ok(()),
            Some(finish) => finish(),
        }
    }
}
