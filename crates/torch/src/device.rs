//! Streams, events and memory figures of CUDA devices. Every call fails, without harm, in a
//! process that did not [`crate::cuda::load`].

use std::ffi::{c_int, c_void};
use std::ptr::NonNull;

use tch::Tensor;

use crate::TorchError;
use crate::error::check;
use crate::ffi::{self, RawEvent, RawStream};

/// Memory of one device, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Memory {
    /// Free on the device, whoever holds the rest.
    pub free_bytes: u64,
    /// On the device altogether.
    pub total_bytes: u64,
    /// In live tensors of this process.
    pub allocated_bytes: u64,
    /// The most that live tensors of this process held since [`reset_peak`].
    pub peak_bytes: u64,
    /// Held by this process's caching allocator.
    pub reserved_bytes: u64,
}

fn device_code(index: usize) -> Result<c_int, TorchError> {
    i8::try_from(index)
        .map(c_int::from)
        .map_err(|_| TorchError::new("device choice", format!("no cuda device {index}")))
}

/// Memory figures of CUDA device `index`.
///
/// # Errors
/// When there is no such device or CUDA is not loaded.
pub fn memory(index: usize) -> Result<Memory, TorchError> {
    let mut figures = [0u64; 5];
    let index = device_code(index)?;
    // SAFETY: the shim writes five figures.
    let answer = unsafe { ffi::plumb_device_memory(index, figures.as_mut_ptr()) };
    check("device memory", answer)?;
    let [free_bytes, total_bytes, allocated_bytes, peak_bytes, reserved_bytes] = figures;
    Ok(Memory { free_bytes, total_bytes, allocated_bytes, peak_bytes, reserved_bytes })
}

/// Starts the peak figure of device `index` anew.
///
/// # Errors
/// As [`memory`].
pub fn reset_peak(index: usize) -> Result<(), TorchError> {
    let index = device_code(index)?;
    // SAFETY: takes a number only.
    check("device peak reset", unsafe { ffi::plumb_device_reset_peak(index) })
}

/// Gives the caching allocator's unused memory back to the devices.
///
/// # Errors
/// When CUDA is not loaded.
pub fn empty_cache() -> Result<(), TorchError> {
    // SAFETY: takes nothing.
    check("device cache release", unsafe { ffi::plumb_device_empty_cache() })
}

/// Blocks until all work of device `index` is done.
///
/// # Errors
/// As [`memory`], and when earlier work failed.
pub fn synchronize(index: usize) -> Result<(), TorchError> {
    let index = device_code(index)?;
    // SAFETY: takes a number only.
    check("device synchronisation", unsafe { ffi::plumb_device_synchronize(index) })
}

/// Makes `index` the calling thread's current device.
///
/// # Errors
/// As [`memory`].
pub fn set_current(index: usize) -> Result<(), TorchError> {
    let index = device_code(index)?;
    // SAFETY: takes a number only.
    check("device choice", unsafe { ffi::plumb_device_set(index) })
}

/// A queue of device work.
#[derive(Debug)]
pub struct Stream(NonNull<RawStream>);

// SAFETY: a c10::Stream is a device, an index and a number; libtorch accepts it from any thread.
unsafe impl Send for Stream {}

impl Stream {
    fn from_raw(operation: &'static str, raw: *mut RawStream) -> Result<Self, TorchError> {
        NonNull::new(raw).map(Self).ok_or_else(|| TorchError::new(operation, "no stream was made"))
    }

    /// The calling thread's current stream on device `index`.
    ///
    /// # Errors
    /// As [`memory`].
    pub fn current(index: usize) -> Result<Self, TorchError> {
        const OPERATION: &str = "current stream";
        let (index, mut raw) = (device_code(index)?, std::ptr::null_mut());
        // SAFETY: the out-parameter is valid for the call.
        check(OPERATION, unsafe { ffi::plumb_stream_current(index, &mut raw) })?;
        Self::from_raw(OPERATION, raw)
    }

    /// A stream of high priority on device `index`, from libtorch's pool.
    ///
    /// # Errors
    /// As [`memory`].
    pub fn new(index: usize) -> Result<Self, TorchError> {
        const OPERATION: &str = "new stream";
        let (index, mut raw) = (device_code(index)?, std::ptr::null_mut());
        // SAFETY: the out-parameter is valid for the call.
        check(OPERATION, unsafe { ffi::plumb_stream_new(index, &mut raw) })?;
        Self::from_raw(OPERATION, raw)
    }

    /// The `cudaStream_t`; null for the default stream.
    ///
    /// # Errors
    /// When the device's guard offers none.
    pub fn native(&self) -> Result<*mut c_void, TorchError> {
        let mut handle = std::ptr::null_mut();
        // SAFETY: the stream is alive; the out-parameter is valid for the call.
        let answer = unsafe { ffi::plumb_stream_native(self.0.as_ptr(), &mut handle) };
        check("stream handle", answer)?;
        Ok(handle)
    }

    /// Blocks until all work queued so far is done.
    ///
    /// # Errors
    /// When that work failed.
    pub fn synchronize(&self) -> Result<(), TorchError> {
        // SAFETY: the stream is alive.
        check("stream synchronisation", unsafe { ffi::plumb_stream_synchronize(self.0.as_ptr()) })
    }

    /// Makes this the calling thread's current stream and returns the one it replaces.
    ///
    /// # Errors
    /// As [`memory`].
    pub fn make_current(&self) -> Result<Self, TorchError> {
        const OPERATION: &str = "stream choice";
        let mut previous = std::ptr::null_mut();
        // SAFETY: the stream is alive; the out-parameter is valid for the call.
        let answer = unsafe { ffi::plumb_stream_exchange(self.0.as_ptr(), &mut previous) };
        check(OPERATION, answer)?;
        Self::from_raw(OPERATION, previous)
    }

    /// Keeps `tensor`'s memory from being reused before this stream has passed the work queued so
    /// far: for tensors that another stream allocated.
    ///
    /// # Errors
    /// When the tensor is not on this stream's device.
    pub fn keeps(&self, tensor: &Tensor) -> Result<(), TorchError> {
        // SAFETY: tensor and stream are alive.
        let answer = unsafe { ffi::plumb_record_stream(tensor.as_ptr(), self.0.as_ptr()) };
        check("stream record", answer)
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        // SAFETY: ours, dropped once.
        unsafe { ffi::plumb_stream_free(self.0.as_ptr()) };
    }
}

/// A mark in a stream's work.
#[derive(Debug)]
pub struct Event(NonNull<RawEvent>);

// SAFETY: an event may be used from any thread, one at a time.
unsafe impl Send for Event {}

impl Event {
    /// An event that marks the work queued on `stream` so far.
    ///
    /// # Errors
    /// When CUDA is not loaded or the device fails.
    pub fn record(stream: &Stream) -> Result<Self, TorchError> {
        const OPERATION: &str = "event record";
        let mut raw = std::ptr::null_mut();
        // SAFETY: the out-parameter is valid for the call.
        check(OPERATION, unsafe { ffi::plumb_event_new(&mut raw) })?;
        let event = NonNull::new(raw).map(Self);
        let event = event.ok_or_else(|| TorchError::new(OPERATION, "no event was made"))?;
        // SAFETY: event and stream are alive.
        let answer = unsafe { ffi::plumb_event_record(event.0.as_ptr(), stream.0.as_ptr()) };
        check(OPERATION, answer)?;
        Ok(event)
    }

    /// Makes `stream` wait for the mark; the caller does not.
    ///
    /// # Errors
    /// When the device fails.
    pub fn block(&self, stream: &Stream) -> Result<(), TorchError> {
        // SAFETY: event and stream are alive.
        let answer = unsafe { ffi::plumb_event_block(self.0.as_ptr(), stream.0.as_ptr()) };
        check("event wait", answer)
    }

    /// Whether the marked work is done.
    ///
    /// # Errors
    /// When that work failed.
    pub fn is_done(&self) -> Result<bool, TorchError> {
        let mut done = 0;
        // SAFETY: the event is alive; the out-parameter is valid for the call.
        check("event query", unsafe { ffi::plumb_event_query(self.0.as_ptr(), &mut done) })?;
        Ok(done != 0)
    }
}

impl Drop for Event {
    fn drop(&mut self) {
        // SAFETY: ours, dropped once.
        unsafe { ffi::plumb_event_free(self.0.as_ptr()) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_cuda_every_call_is_an_error_that_says_so() {
        if tch::Cuda::is_available() {
            println!("skipped: this machine has CUDA");
            return;
        }
        for error in [
            memory(0).unwrap_err(),
            synchronize(0).unwrap_err(),
            set_current(0).unwrap_err(),
            empty_cache().unwrap_err(),
            Stream::new(0).unwrap_err(),
            Stream::current(0).unwrap_err(),
        ] {
            assert!(!error.message.is_empty(), "{error:?}");
        }
        assert!(memory(1000).unwrap_err().message.contains("1000"));
    }
}
