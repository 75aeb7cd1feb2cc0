//! The shim's functions, as declared in `shim/*.cpp`.

use std::ffi::{c_char, c_int, c_void};

pub(crate) use torch_sys::C_tensor;

/// What a call answers: NULL, or a message for [`plumb_string_free`].
pub(crate) type Answer = *mut c_char;

/// `c10::Stream`.
#[repr(C)]
pub(crate) struct RawStream {
    opaque: [u8; 0],
}
/// `c10::Event`.
#[repr(C)]
pub(crate) struct RawEvent {
    opaque: [u8; 0],
}
/// A counted reference to a process group.
#[repr(C)]
pub(crate) struct RawGroup {
    opaque: [u8; 0],
}
/// A counted reference to an operation in flight.
#[repr(C)]
pub(crate) struct RawWork {
    opaque: [u8; 0],
}

#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct StoreKey {
    pub(crate) data: *const c_char,
    pub(crate) bytes: usize,
}

pub(crate) type ValueSink = unsafe extern "C" fn(sink: *mut c_void, value: *const u8, bytes: usize);

#[repr(C)]
pub(crate) struct StoreCallbacks {
    pub(crate) context: *mut c_void,
    pub(crate) set: unsafe extern "C" fn(*mut c_void, StoreKey, *const u8, usize) -> Answer,
    pub(crate) get: unsafe extern "C" fn(
        *mut c_void,
        *const StoreKey,
        usize,
        i64,
        ValueSink,
        *mut c_void,
    ) -> Answer,
    pub(crate) check:
        unsafe extern "C" fn(*mut c_void, *const StoreKey, usize, *mut c_int) -> Answer,
    pub(crate) add: unsafe extern "C" fn(*mut c_void, StoreKey, i64, *mut i64) -> Answer,
    pub(crate) remove: unsafe extern "C" fn(*mut c_void, StoreKey, *mut c_int) -> Answer,
    pub(crate) release: unsafe extern "C" fn(*mut c_void),
}

unsafe extern "C" {
    pub(crate) fn plumb_paged_write(
        keys: *const C_tensor,
        values: *const C_tensor,
        tables: *const C_tensor,
        sequences: *const C_tensor,
        positions: *const C_tensor,
        k: *const C_tensor,
        v: *const C_tensor,
    ) -> Answer;
    pub(crate) fn plumb_paged_attend(
        keys: *const C_tensor,
        values: *const C_tensor,
        tables: *const C_tensor,
        sequences: *const C_tensor,
        positions: *const C_tensor,
        q: *const C_tensor,
        out: *const C_tensor,
        window: i64,
        scale: f64,
    ) -> Answer;
    pub(crate) fn plumb_allocator_install(
        mapped_from: usize,
        reused_up_to: usize,
        kept: usize,
    ) -> Answer;
    pub(crate) fn plumb_allocator_give_back();
    pub(crate) fn plumb_mapped_zeros(
        like: *const C_tensor,
        elements: i64,
        result: *mut *mut C_tensor,
    ) -> Answer;
    pub(crate) fn plumb_string_new(data: *const c_char, bytes: usize) -> *mut c_char;
    pub(crate) fn plumb_string_free(message: *mut c_char);

    pub(crate) fn plumb_vjp(
        outputs: *const *const C_tensor,
        grad_outputs: *const *const C_tensor,
        output_count: usize,
        inputs: *const *const C_tensor,
        input_count: usize,
        retain_graph: c_int,
        results: *mut *mut C_tensor,
    ) -> Answer;
    pub(crate) fn plumb_storage_bytes(tensor: *const C_tensor, bytes: *mut usize) -> Answer;
    pub(crate) fn plumb_storage_resize(tensor: *const C_tensor, bytes: usize) -> Answer;
    pub(crate) fn plumb_contiguous_bytes(
        tensor: *const C_tensor,
        data: *mut *mut u8,
        bytes: *mut usize,
    ) -> Answer;
    pub(crate) fn plumb_fused_adamw(
        params: *const *const C_tensor,
        grads: *const *const C_tensor,
        exp_avgs: *const *const C_tensor,
        exp_avg_sqs: *const *const C_tensor,
        steps: *const *const C_tensor,
        count: usize,
        lr: f64,
        beta1: f64,
        beta2: f64,
        weight_decay: f64,
        eps: f64,
    ) -> Answer;
    pub(crate) fn plumb_varlen_attention(
        q: *const C_tensor,
        k: *const C_tensor,
        v: *const C_tensor,
        cu_seqlens: *const C_tensor,
        longest: i64,
        window: i64,
        result: *mut *mut C_tensor,
    ) -> Answer;

    pub(crate) fn plumb_device_memory(index: c_int, figures: *mut u64) -> Answer;
    pub(crate) fn plumb_device_reset_peak(index: c_int) -> Answer;
    pub(crate) fn plumb_device_empty_cache() -> Answer;
    pub(crate) fn plumb_device_synchronize(index: c_int) -> Answer;
    pub(crate) fn plumb_device_set(index: c_int) -> Answer;
    pub(crate) fn plumb_stream_current(index: c_int, stream: *mut *mut RawStream) -> Answer;
    pub(crate) fn plumb_stream_new(index: c_int, stream: *mut *mut RawStream) -> Answer;
    pub(crate) fn plumb_stream_free(stream: *mut RawStream);
    pub(crate) fn plumb_stream_native(stream: *const RawStream, handle: *mut *mut c_void)
    -> Answer;
    pub(crate) fn plumb_stream_synchronize(stream: *const RawStream) -> Answer;
    pub(crate) fn plumb_stream_exchange(
        stream: *const RawStream,
        previous: *mut *mut RawStream,
    ) -> Answer;
    pub(crate) fn plumb_record_stream(tensor: *const C_tensor, stream: *const RawStream) -> Answer;
    pub(crate) fn plumb_event_new(event: *mut *mut RawEvent) -> Answer;
    pub(crate) fn plumb_event_free(event: *mut RawEvent);
    pub(crate) fn plumb_event_record(event: *mut RawEvent, stream: *const RawStream) -> Answer;
    pub(crate) fn plumb_event_block(event: *const RawEvent, stream: *const RawStream) -> Answer;
    pub(crate) fn plumb_event_query(event: *const RawEvent, done: *mut c_int) -> Answer;

    pub(crate) fn plumb_gloo_connect(
        callbacks: StoreCallbacks,
        rank: c_int,
        world_size: c_int,
        timeout_millis: i64,
        address: *const c_char,
        group: *mut *mut RawGroup,
    ) -> Answer;
    pub(crate) fn plumb_gloo_share(group: *const RawGroup) -> *mut RawGroup;
    pub(crate) fn plumb_gloo_free(group: *mut RawGroup);
    pub(crate) fn plumb_gloo_close(group: *const RawGroup) -> Answer;
    pub(crate) fn plumb_gloo_all_reduce(
        group: *mut RawGroup,
        tensor: *const C_tensor,
        op: c_int,
        work: *mut *mut RawWork,
    ) -> Answer;
    pub(crate) fn plumb_gloo_all_gather(
        group: *mut RawGroup,
        output: *const C_tensor,
        input: *const C_tensor,
        work: *mut *mut RawWork,
    ) -> Answer;
    pub(crate) fn plumb_gloo_reduce_scatter(
        group: *mut RawGroup,
        output: *const C_tensor,
        input: *const C_tensor,
        op: c_int,
        work: *mut *mut RawWork,
    ) -> Answer;
    pub(crate) fn plumb_gloo_broadcast(
        group: *mut RawGroup,
        tensor: *const C_tensor,
        root: c_int,
        work: *mut *mut RawWork,
    ) -> Answer;
    pub(crate) fn plumb_gloo_barrier(group: *mut RawGroup, work: *mut *mut RawWork) -> Answer;
    pub(crate) fn plumb_gloo_send(
        group: *mut RawGroup,
        tensor: *const C_tensor,
        to: c_int,
        tag: c_int,
        work: *mut *mut RawWork,
    ) -> Answer;
    pub(crate) fn plumb_gloo_recv(
        group: *mut RawGroup,
        tensor: *const C_tensor,
        from: c_int,
        tag: c_int,
        work: *mut *mut RawWork,
    ) -> Answer;
    pub(crate) fn plumb_work_wait(work: *mut RawWork, timeout_millis: i64) -> Answer;
    pub(crate) fn plumb_work_free(work: *mut RawWork);
}
