//! c10d's Gloo process group: collectives between CPU tensors over TCP.
//!
//! Operations start at once and run on the group's own threads; [`Work::wait`] ends them. Until
//! then nothing else may touch their tensors. All ranks start the same operations in the same order.

use std::ffi::{CString, c_int};
use std::ptr::NonNull;
use std::sync::Arc;
use std::time::Duration;

use tch::Tensor;

use crate::error::check;
use crate::ffi::{self, Answer, RawGroup, RawWork};
use crate::store::callbacks;
use crate::{Store, TorchError};

/// How a reduction combines the ranks' elements.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ReduceOp {
    /// The sum.
    Sum,
    /// The least.
    Min,
    /// The greatest.
    Max,
}

impl ReduceOp {
    const fn code(self) -> c_int {
        match self {
            Self::Sum => 0,
            Self::Min => 1,
            Self::Max => 2,
        }
    }
}

/// One rank's membership of a Gloo group. Used by one thread at a time.
#[derive(Debug)]
pub struct ProcessGroup(NonNull<RawGroup>);

// SAFETY: the C++ group is not bound to the thread that made it; exclusive use is up to the owner.
unsafe impl Send for ProcessGroup {}

impl ProcessGroup {
    /// Connects to the `world_size - 1` peers that do the same with the same `store`.
    ///
    /// `address` is a host name or address of the interface to listen on and connect from.
    /// `timeout` bounds the connecting, and later each operation.
    ///
    /// # Errors
    /// When the address is not this machine's, or a peer does not come in time.
    pub fn connect(
        store: Arc<dyn Store>,
        rank: usize,
        world_size: usize,
        timeout: Duration,
        address: &str,
    ) -> Result<Self, TorchError> {
        const OPERATION: &str = "gloo connect";
        let invalid = |what: &str| TorchError::new(OPERATION, what.to_owned());
        let address = CString::new(address).map_err(|_| invalid("the address holds a NUL"))?;
        let small = |n: usize| c_int::try_from(n).map_err(|_| invalid("rank or size too large"));
        let (rank, world_size) = (small(rank)?, small(world_size)?);
        let mut group = std::ptr::null_mut();
        // SAFETY: the callbacks own their context; the C string and out-parameter live for the call.
        let answer = unsafe {
            ffi::plumb_gloo_connect(
                callbacks(store),
                rank,
                world_size,
                millis(timeout),
                address.as_ptr(),
                &mut group,
            )
        };
        check(OPERATION, answer)?;
        NonNull::new(group).map(Self).ok_or_else(|| invalid("no group was made"))
    }

    /// A handle with which another thread can close this rank's connections.
    #[must_use]
    pub fn closer(&self) -> Closer {
        // SAFETY: the group is alive; sharing only adds a counted reference.
        let shared = unsafe { ffi::plumb_gloo_share(self.0.as_ptr()) };
        Closer(NonNull::new(shared).unwrap_or_else(|| unreachable!("operator new returned null")))
    }

    fn start(
        &self,
        operation: &'static str,
        start: impl FnOnce(*mut RawGroup, *mut *mut RawWork) -> Answer,
    ) -> Result<Work, TorchError> {
        let mut work = std::ptr::null_mut();
        check(operation, start(self.0.as_ptr(), &mut work))?;
        let work = NonNull::new(work);
        let work = work.ok_or_else(|| TorchError::new(operation, "no operation was started"))?;
        Ok(Work { work, operation })
    }

    /// Reduces `tensor` over all ranks, in place.
    ///
    /// # Errors
    /// When the tensor cannot be reduced or the group is closed.
    pub fn all_reduce(&self, tensor: &Tensor, op: ReduceOp) -> Result<Work, TorchError> {
        // SAFETY: the tensor lives for the call, and the operation keeps its own reference to it.
        self.start("all-reduce", |group, work| unsafe {
            ffi::plumb_gloo_all_reduce(group, tensor.as_ptr(), op.code(), work)
        })
    }

    /// Concatenates every rank's `input` `[n]` into `output` `[W * n]`, in rank order.
    ///
    /// # Errors
    /// When sizes or dtypes do not fit or the group is closed.
    pub fn all_gather(&self, output: &Tensor, input: &Tensor) -> Result<Work, TorchError> {
        // SAFETY: both tensors live for the call, and the operation keeps its own references.
        self.start("all-gather", |group, work| unsafe {
            ffi::plumb_gloo_all_gather(group, output.as_ptr(), input.as_ptr(), work)
        })
    }

    /// Reduces `input` `[W * n]` over the ranks and leaves this rank's part in `output` `[n]`.
    ///
    /// # Errors
    /// When sizes or dtypes do not fit or the group is closed.
    pub fn reduce_scatter(
        &self,
        output: &Tensor,
        input: &Tensor,
        op: ReduceOp,
    ) -> Result<Work, TorchError> {
        // SAFETY: both tensors live for the call, and the operation keeps its own references.
        self.start("reduce-scatter", |group, work| unsafe {
            ffi::plumb_gloo_reduce_scatter(group, output.as_ptr(), input.as_ptr(), op.code(), work)
        })
    }

    /// Copies the root's `tensor` into every rank's.
    ///
    /// # Errors
    /// When the root does not exist or the group is closed.
    pub fn broadcast(&self, tensor: &Tensor, root: usize) -> Result<Work, TorchError> {
        let root = rank_code("broadcast", root)?;
        // SAFETY: the tensor lives for the call, and the operation keeps its own reference to it.
        self.start("broadcast", |group, work| unsafe {
            ffi::plumb_gloo_broadcast(group, tensor.as_ptr(), root, work)
        })
    }

    /// Completes once every rank has started it.
    ///
    /// # Errors
    /// When the group is closed.
    pub fn barrier(&self) -> Result<Work, TorchError> {
        // SAFETY: `start` passes a live group and a valid out-parameter.
        self.start("barrier", |group, work| unsafe { ffi::plumb_gloo_barrier(group, work) })
    }

    /// Sends `tensor` to one rank, which receives it under the same tag. Done only once the
    /// receiver takes it.
    ///
    /// # Errors
    /// When the rank does not exist or the group is closed.
    pub fn send(&self, tensor: &Tensor, to: usize, tag: u16) -> Result<Work, TorchError> {
        let to = rank_code("send", to)?;
        // SAFETY: the tensor lives for the call, and the operation keeps its own reference to it.
        self.start("send", |group, work| unsafe {
            ffi::plumb_gloo_send(group, tensor.as_ptr(), to, c_int::from(tag), work)
        })
    }

    /// Receives into `tensor` what one rank sends under the same tag.
    ///
    /// # Errors
    /// When the rank does not exist or the group is closed.
    pub fn recv(&self, tensor: &Tensor, from: usize, tag: u16) -> Result<Work, TorchError> {
        let from = rank_code("receive", from)?;
        // SAFETY: the tensor lives for the call, and the operation keeps its own reference to it.
        self.start("receive", |group, work| unsafe {
            ffi::plumb_gloo_recv(group, tensor.as_ptr(), from, c_int::from(tag), work)
        })
    }
}

impl Drop for ProcessGroup {
    fn drop(&mut self) {
        // SAFETY: the reference is ours and dropped once.
        unsafe { ffi::plumb_gloo_free(self.0.as_ptr()) };
    }
}

/// Closes a group's connections from any thread.
#[derive(Debug)]
pub struct Closer(NonNull<RawGroup>);

// SAFETY: closing takes gloo's own locks; the handle allows nothing else.
unsafe impl Send for Closer {}
// SAFETY: as above.
unsafe impl Sync for Closer {}

impl Closer {
    /// Closes this rank's connections. The peers' operations in flight fail at once; this rank's
    /// own fail at their time limit at the latest.
    ///
    /// # Errors
    /// When gloo reports a failure.
    pub fn close(&self) -> Result<(), TorchError> {
        // SAFETY: the handle keeps the group alive.
        check("gloo close", unsafe { ffi::plumb_gloo_close(self.0.as_ptr()) })
    }
}

impl Drop for Closer {
    fn drop(&mut self) {
        // SAFETY: the reference is ours and dropped once.
        unsafe { ffi::plumb_gloo_free(self.0.as_ptr()) };
    }
}

/// An operation in flight.
#[derive(Debug)]
#[must_use = "tensors of an operation in flight may not be touched before it was waited for"]
pub struct Work {
    work: NonNull<RawWork>,
    operation: &'static str,
}

// SAFETY: waiting takes the operation's own lock; the handle is used by one thread at a time.
unsafe impl Send for Work {}

impl Work {
    /// Blocks until the operation is done; it fails at the group's time limit.
    ///
    /// # Errors
    /// When a peer is gone, did not come in time, or the group was closed.
    pub fn wait(self) -> Result<(), TorchError> {
        // SAFETY: the operation is alive until this value is dropped.
        check(self.operation, unsafe { ffi::plumb_work_wait(self.work.as_ptr(), 0) })
    }
}

impl Drop for Work {
    fn drop(&mut self) {
        // SAFETY: the reference is ours and dropped once.
        unsafe { ffi::plumb_work_free(self.work.as_ptr()) };
    }
}

fn millis(duration: Duration) -> i64 {
    i64::try_from(duration.as_millis()).unwrap_or(i64::MAX)
}

fn rank_code(operation: &'static str, rank: usize) -> Result<c_int, TorchError> {
    c_int::try_from(rank).map_err(|_| TorchError::new(operation, format!("no rank {rank}")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::MemoryStore;
    use tch::{Device, Kind};

    const TIMEOUT: Duration = Duration::from_secs(30);

    /// Runs `body` as both ranks of a group of two threads.
    fn pair(body: impl Fn(&ProcessGroup, usize) + Send + Copy + 'static) {
        let store = MemoryStore::new();
        let ranks = [0, 1].map(|rank| {
            let store: Arc<dyn Store> = store.clone();
            std::thread::spawn(move || {
                let group = ProcessGroup::connect(store, rank, 2, TIMEOUT, "127.0.0.1").unwrap();
                body(&group, rank);
            })
        });
        for rank in ranks {
            rank.join().unwrap();
        }
    }

    #[test]
    fn what_one_rank_sends_the_other_receives_by_tag() {
        pair(|group, rank| {
            let mut tensors = [1.0f32, 2.0].map(|v| Tensor::from_slice(&[v]));
            if rank == 0 {
                // Sent in one order, received in the other.
                let first = group.send(&tensors[0], 1, 10).unwrap();
                let second = group.send(&tensors[1], 1, 20).unwrap();
                first.wait().unwrap();
                second.wait().unwrap();
            } else {
                let _ = tensors.each_mut().map(|t| t.zero_());
                group.recv(&tensors[1], 0, 20).unwrap().wait().unwrap();
                group.recv(&tensors[0], 0, 10).unwrap().wait().unwrap();
                assert_eq!(tensors[0].double_value(&[0]), 1.0);
                assert_eq!(tensors[1].double_value(&[0]), 2.0);
            }
        });
    }

    #[test]
    fn closing_fails_the_peers_operation_at_once() {
        pair(|group, rank| {
            let tensor = Tensor::ones([4], (Kind::Float, Device::Cpu));
            if rank == 0 {
                group.closer().close().unwrap();
            } else {
                let start = std::time::Instant::now();
                let error = group.all_reduce(&tensor, ReduceOp::Sum).unwrap().wait().unwrap_err();
                assert_eq!(error.operation, "all-reduce");
                assert!(start.elapsed() < TIMEOUT / 2, "{error} after {:?}", start.elapsed());
            }
        });
    }

    #[test]
    fn a_store_that_fails_or_an_address_of_nobody_is_an_error() {
        struct Broken;
        impl Store for Broken {
            fn set(&self, _: &str, _: &[u8]) -> Result<(), crate::StoreError> {
                Err(crate::StoreError::Failed("the coordinator is gone".to_owned()))
            }
            fn get(&self, _: &[&str], _: Duration) -> Result<Vec<Vec<u8>>, crate::StoreError> {
                panic!("a bug in a store must not unwind into c++")
            }
            fn add(&self, _: &str, _: i64) -> Result<i64, crate::StoreError> {
                Ok(1)
            }
            fn delete(&self, _: &str) -> Result<bool, crate::StoreError> {
                Ok(false)
            }
        }
        let error =
            ProcessGroup::connect(Arc::new(Broken), 0, 2, TIMEOUT, "127.0.0.1").unwrap_err();
        assert!(error.message.contains("the coordinator is gone"), "{error}");
        let store = MemoryStore::new();
        let error = ProcessGroup::connect(store, 0, 2, TIMEOUT, "no.such.host.invalid");
        assert!(error.is_err());
    }
}
