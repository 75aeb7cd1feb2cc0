use std::fmt;
use std::sync::Arc;

use tch::Tensor;

use crate::{CollectiveError, Pending, ReduceOp};

/// One rank's membership of a group. Owned by the thread that owns the tensors.
///
/// All tensors are contiguous and of the same dtype and element count on every rank. Every
/// operation fails with [`CollectiveError::Misuse`] for operands that do not fit and
/// [`CollectiveError::Aborted`] once the group has failed or was aborted.
pub trait Collective: Send + fmt::Debug {
    /// This rank, from 0.
    fn rank(&self) -> usize;

    /// Ranks in the group.
    fn world_size(&self) -> usize;

    /// The group's name.
    fn group(&self) -> &str;

    /// Combines `tensor` over all ranks, in place.
    ///
    /// # Errors
    /// See [`Collective`].
    fn all_reduce(&self, tensor: &mut Tensor, op: ReduceOp) -> Result<Pending, CollectiveError>;

    /// Concatenates every rank's `input` `[n]` into `out` `[W * n]`, in rank order. `input` may be
    /// this rank's part of `out`.
    ///
    /// # Errors
    /// See [`Collective`].
    fn all_gather(&self, out: &mut Tensor, input: &Tensor) -> Result<Pending, CollectiveError>;

    /// Combines `input` `[W * n]` over all ranks; rank r gets part r in `out` `[n]`. What `input`
    /// holds afterwards is undefined: a backend may combine in place.
    ///
    /// # Errors
    /// See [`Collective`].
    fn reduce_scatter(
        &self,
        out: &mut Tensor,
        input: &Tensor,
        op: ReduceOp,
    ) -> Result<Pending, CollectiveError>;

    /// Copies rank `root`'s `tensor` into every rank's.
    ///
    /// # Errors
    /// See [`Collective`].
    fn broadcast(&self, tensor: &mut Tensor, root: usize) -> Result<Pending, CollectiveError>;

    /// Blocks until every rank has come here.
    ///
    /// # Errors
    /// See [`Collective`]; also [`CollectiveError::Peer`], since it waits.
    fn barrier(&self) -> Result<(), CollectiveError>;

    /// A handle with which another thread ends what this rank may be blocked in.
    fn abort_handle(&self) -> AbortHandle;

    /// Ends all operations in flight, here and so that the peers notice, and refuses later ones.
    fn abort(&self) {
        self.abort_handle().abort();
    }
}

/// Aborts a group from any thread, also after the group was dropped.
#[derive(Clone)]
pub struct AbortHandle(Arc<dyn Fn() + Send + Sync>);

impl AbortHandle {
    pub(crate) fn new(abort: impl Fn() + Send + Sync + 'static) -> Self {
        Self(Arc::new(abort))
    }

    /// As [`Collective::abort`].
    pub fn abort(&self) {
        (self.0)();
    }
}

impl fmt::Debug for AbortHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("AbortHandle(..)")
    }
}
