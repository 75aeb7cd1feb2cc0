//! NCCL communicators: collectives between CUDA tensors.
//!
//! NCCL is loaded at run time (`libnccl.so.2`); without it every entry is
//! [`NcclError::Unavailable`]. Calls only queue work on a [`Stream`]; the caller orders streams with
//! [`crate::device::Event`]s and watches [`Communicator::check`].

mod buffer;
mod error;
mod library;
mod unique_id;

use std::ffi::c_int;
use std::time::{Duration, Instant};

use tch::Tensor;

use crate::device;
use crate::device::Stream;
use crate::gloo::ReduceOp;
use buffer::{Buffer, reduction};
pub use error::NcclError;
use library::{Functions, IN_PROGRESS, RawComm, RawConfig, SUCCESS, functions};
pub use unique_id::UniqueId;

/// How often a communicator in progress is looked at.
const POLL: Duration = Duration::from_micros(200);

/// The library's version, for example 22809 for 2.28.9.
///
/// # Errors
/// [`NcclError::Unavailable`], [`NcclError::Failed`].
pub fn version() -> Result<i32, NcclError> {
    let functions = functions()?;
    let mut version = 0;
    // SAFETY: NCCL writes one number.
    let code = unsafe { (functions.get_version)(&mut version) };
    if code == SUCCESS {
        Ok(version)
    } else {
        Err(functions.failure("version", code, std::ptr::null_mut()))
    }
}

/// One rank's membership of an NCCL group. Used by one thread at a time.
pub struct Communicator {
    functions: &'static Functions,
    comm: *mut RawComm,
    world_size: usize,
    timeout: Duration,
}

// SAFETY: a communicator is not bound to the thread that made it; exclusive use is up to the owner.
unsafe impl Send for Communicator {}

impl std::fmt::Debug for Communicator {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Communicator").field("world_size", &self.world_size).finish_non_exhaustive()
    }
}

impl Communicator {
    /// Joins the group of `id` as `rank`, with CUDA device `device_index`.
    ///
    /// # Errors
    /// [`NcclError::Unavailable`]; [`NcclError::Timeout`] when peers stay away; NCCL's own.
    pub fn connect(
        id: &UniqueId,
        rank: usize,
        world_size: usize,
        device_index: usize,
        timeout: Duration,
    ) -> Result<Self, NcclError> {
        const OPERATION: &str = "connect";
        let functions = functions()?;
        device::set_current(device_index)?;
        let code_of = |n: usize| {
            c_int::try_from(n).map_err(|_| NcclError::Unsupported {
                operation: OPERATION,
                reason: format!("rank or size {n} is too large"),
            })
        };
        let (rank, size) = (code_of(rank)?, code_of(world_size)?);
        let mut comm = std::ptr::null_mut();
        let mut config = RawConfig::non_blocking();
        // SAFETY: out-parameter and config live for the call; NCCL copies the config.
        let code = unsafe {
            (functions.comm_init_rank_config)(&mut comm, size, id.raw(), rank, &mut config)
        };
        if comm.is_null() {
            return Err(functions.failure(OPERATION, code, comm));
        }
        let communicator = Self { functions, comm, world_size, timeout };
        communicator.finish(OPERATION, code)?;
        Ok(communicator)
    }

    /// Waits out "in progress" and turns any other code than success into an error.
    fn finish(&self, operation: &'static str, mut code: c_int) -> Result<(), NcclError> {
        let start = Instant::now();
        while code == IN_PROGRESS {
            if start.elapsed() > self.timeout {
                let timeout_secs = self.timeout.as_secs_f64();
                return Err(NcclError::Timeout { operation, timeout_secs });
            }
            std::thread::sleep(POLL);
            code = self.async_code(operation)?;
        }
        if code == SUCCESS {
            Ok(())
        } else {
            Err(self.functions.failure(operation, code, self.comm))
        }
    }

    fn async_code(&self, operation: &'static str) -> Result<c_int, NcclError> {
        let mut state = SUCCESS;
        // SAFETY: the communicator is alive; NCCL writes one code.
        let code = unsafe { (self.functions.comm_get_async_error)(self.comm, &mut state) };
        if code == SUCCESS {
            Ok(state)
        } else {
            Err(self.functions.failure(operation, code, self.comm))
        }
    }

    /// Whether queued operations met a failure, such as a lost peer.
    ///
    /// # Errors
    /// That failure.
    pub fn check(&self, operation: &'static str) -> Result<(), NcclError> {
        match self.async_code(operation)? {
            SUCCESS | IN_PROGRESS => Ok(()),
            code => Err(self.functions.failure(operation, code, self.comm)),
        }
    }

    /// Queues a reduction of `tensor` over all ranks, in place.
    ///
    /// # Errors
    /// [`NcclError::Unsupported`] for tensors not dense and on CUDA; NCCL's own.
    pub fn all_reduce(
        &self,
        tensor: &Tensor,
        op: ReduceOp,
        stream: &Stream,
    ) -> Result<(), NcclError> {
        const OPERATION: &str = "all-reduce";
        let buffer = Buffer::of(OPERATION, tensor)?;
        let stream = stream.native()?;
        // SAFETY: the buffer is live device memory of `count` elements of that type.
        let code = unsafe {
            (self.functions.all_reduce)(
                buffer.data,
                buffer.data,
                buffer.count,
                buffer.kind,
                reduction(op),
                self.comm,
                stream,
            )
        };
        self.finish(OPERATION, code)
    }

    /// Queues the concatenation of every rank's `input` `[n]` into `output` `[W * n]`.
    ///
    /// # Errors
    /// As [`Communicator::all_reduce`].
    pub fn all_gather(
        &self,
        output: &Tensor,
        input: &Tensor,
        stream: &Stream,
    ) -> Result<(), NcclError> {
        const OPERATION: &str = "all-gather";
        let (whole, part) = self.whole_and_part(OPERATION, output, input)?;
        let stream = stream.native()?;
        // SAFETY: `output` holds world size times the elements of `input`, both live.
        let code = unsafe {
            (self.functions.all_gather)(
                part.data, whole.data, part.count, part.kind, self.comm, stream,
            )
        };
        self.finish(OPERATION, code)
    }

    /// Queues the reduction of `input` `[W * n]`, this rank's part of it into `output` `[n]`.
    ///
    /// # Errors
    /// As [`Communicator::all_reduce`].
    pub fn reduce_scatter(
        &self,
        output: &Tensor,
        input: &Tensor,
        op: ReduceOp,
        stream: &Stream,
    ) -> Result<(), NcclError> {
        const OPERATION: &str = "reduce-scatter";
        let (whole, part) = self.whole_and_part(OPERATION, input, output)?;
        let stream = stream.native()?;
        // SAFETY: `input` holds world size times the elements of `output`, both live.
        let code = unsafe {
            (self.functions.reduce_scatter)(
                whole.data,
                part.data,
                part.count,
                part.kind,
                reduction(op),
                self.comm,
                stream,
            )
        };
        self.finish(OPERATION, code)
    }

    /// Queues the copy of the root's `tensor` into every rank's.
    ///
    /// # Errors
    /// As [`Communicator::all_reduce`].
    pub fn broadcast(
        &self,
        tensor: &Tensor,
        root: usize,
        stream: &Stream,
    ) -> Result<(), NcclError> {
        const OPERATION: &str = "broadcast";
        let buffer = Buffer::of(OPERATION, tensor)?;
        let (root, stream) = (self.peer(OPERATION, root)?, stream.native()?);
        // SAFETY: the buffer is live device memory of `count` elements of that type.
        let code = unsafe {
            (self.functions.broadcast)(
                buffer.data,
                buffer.data,
                buffer.count,
                buffer.kind,
                root,
                self.comm,
                stream,
            )
        };
        self.finish(OPERATION, code)
    }

    /// Queues sends and receives as one group, so that pairs of ranks can exchange.
    ///
    /// # Errors
    /// As [`Communicator::all_reduce`].
    pub fn exchange(
        &self,
        sends: &[(&Tensor, usize)],
        receives: &[(&Tensor, usize)],
        stream: &Stream,
    ) -> Result<(), NcclError> {
        const OPERATION: &str = "exchange";
        let resolve = |pairs: &[(&Tensor, usize)]| {
            let resolved = pairs.iter().map(|(tensor, rank)| {
                Ok((Buffer::of(OPERATION, tensor)?, self.peer(OPERATION, *rank)?))
            });
            resolved.collect::<Result<Vec<_>, NcclError>>()
        };
        // Everything that can be refused is, before the group is opened.
        let (sends, receives, stream) = (resolve(sends)?, resolve(receives)?, stream.native()?);
        let f = self.functions;
        // SAFETY: all buffers are live device memory of their counts and types; the group that is
        // opened is closed on every path.
        let code = unsafe {
            let mut code = (f.group_start)();
            if code == SUCCESS {
                for (b, to) in &sends {
                    let sent = (f.send)(b.data, b.count, b.kind, *to, self.comm, stream);
                    code = worse(code, sent);
                }
                for (b, from) in &receives {
                    let received = (f.recv)(b.data, b.count, b.kind, *from, self.comm, stream);
                    code = worse(code, received);
                }
                let ended = (f.group_end)();
                code = worse(code, ended);
            }
            code
        };
        self.finish(OPERATION, code)
    }

    /// Ends everything queued, here and so that peers notice. Nothing may be called afterwards.
    ///
    /// # Errors
    /// NCCL's own; the communicator is gone all the same.
    pub fn abort(mut self) -> Result<(), NcclError> {
        let comm = std::mem::replace(&mut self.comm, std::ptr::null_mut());
        // SAFETY: the communicator is alive and not used again.
        match unsafe { (self.functions.comm_abort)(comm) } {
            SUCCESS | IN_PROGRESS => Ok(()),
            code => Err(self.functions.failure("abort", code, std::ptr::null_mut())),
        }
    }

    /// Ends the membership after all queued work is done.
    ///
    /// # Errors
    /// NCCL's own, and [`NcclError::Timeout`].
    pub fn close(mut self) -> Result<(), NcclError> {
        const OPERATION: &str = "close";
        // SAFETY: the communicator is alive.
        let code = unsafe { (self.functions.comm_finalize)(self.comm) };
        // On failure, dropping `self` aborts.
        self.finish(OPERATION, code)?;
        let comm = std::mem::replace(&mut self.comm, std::ptr::null_mut());
        // SAFETY: finalised, and not used again.
        match unsafe { (self.functions.comm_destroy)(comm) } {
            SUCCESS => Ok(()),
            code => Err(self.functions.failure(OPERATION, code, std::ptr::null_mut())),
        }
    }

    fn peer(&self, operation: &'static str, rank: usize) -> Result<c_int, NcclError> {
        let valid = c_int::try_from(rank).ok().filter(|_| rank < self.world_size);
        valid.ok_or_else(|| NcclError::Unsupported {
            operation,
            reason: format!("no rank {rank} in a group of {}", self.world_size),
        })
    }

    fn whole_and_part(
        &self,
        operation: &'static str,
        whole: &Tensor,
        part: &Tensor,
    ) -> Result<(Buffer, Buffer), NcclError> {
        let (whole, part) = (Buffer::of(operation, whole)?, Buffer::of(operation, part)?);
        if whole.kind != part.kind || whole.count != part.count * self.world_size {
            let reason = format!(
                "{} elements of type {} are not {} ranks times {} of type {}",
                whole.count, whole.kind, self.world_size, part.count, part.kind
            );
            return Err(NcclError::Unsupported { operation, reason });
        }
        Ok((whole, part))
    }
}

impl Drop for Communicator {
    fn drop(&mut self) {
        if !self.comm.is_null() {
            // SAFETY: the communicator is alive and not used again. Aborting does not wait for
            // peers, as destroying would.
            unsafe { (self.functions.comm_abort)(self.comm) };
        }
    }
}

/// The first code that is a failure, else "in progress" if either is.
fn worse(a: c_int, b: c_int) -> c_int {
    match (a, b) {
        (SUCCESS, other) | (other, SUCCESS) => other,
        (IN_PROGRESS, other) => other,
        (failure, _) => failure,
    }
}

#[cfg(test)]
mod tests;
