//! The functions of `libnccl.so.2`, found at run time. Signatures as in NCCL 2's `nccl.h`.

use std::ffi::{CStr, c_char, c_int, c_uint, c_void};
use std::sync::OnceLock;

use libloading::os::unix::{Library, RTLD_GLOBAL, RTLD_NOW};

use super::NcclError;

const LIBRARY: &str = "libnccl.so.2";

pub(super) const SUCCESS: c_int = 0;
pub(super) const IN_PROGRESS: c_int = 7;

/// `ncclUniqueId`.
#[repr(C)]
#[derive(Clone, Copy)]
pub(super) struct RawUniqueId {
    pub(super) bytes: [c_char; 128],
}

/// `ncclComm_t` points at one.
#[repr(C)]
pub(super) struct RawComm {
    opaque: [u8; 0],
}

/// `ncclConfig_t` as of NCCL 2.17; later versions read as much of it as `size` and `version` say.
#[repr(C)]
pub(super) struct RawConfig {
    size: usize,
    magic: c_uint,
    version: c_uint,
    blocking: c_int,
    cga_cluster_size: c_int,
    min_ctas: c_int,
    max_ctas: c_int,
    net_name: *const c_char,
    split_share: c_int,
}

impl RawConfig {
    /// A communicator whose calls return at once, so that a peer that never comes cannot hang us.
    pub(super) fn non_blocking() -> Self {
        const UNDEFINED: c_int = c_int::MIN;
        Self {
            size: size_of::<Self>(),
            magic: 0xcafe_beef,
            version: 21_800,
            blocking: 0,
            cga_cluster_size: UNDEFINED,
            min_ctas: UNDEFINED,
            max_ctas: UNDEFINED,
            net_name: std::ptr::null(),
            split_share: UNDEFINED,
        }
    }
}

type Reduce = unsafe extern "C" fn(
    *const c_void,
    *mut c_void,
    usize,
    c_int,
    c_int,
    *mut RawComm,
    *mut c_void,
) -> c_int;
type OfComm = unsafe extern "C" fn(*mut RawComm) -> c_int;

/// Declares the function table and its loading from one list of names and types.
macro_rules! functions {
    ($($field:ident = $symbol:literal: $type:ty;)*) => {
        /// The loaded functions.
        pub(super) struct Functions {
            $(pub(super) $field: $type,)*
        }

        impl Functions {
            fn from(library: &Library) -> Result<Self, NcclError> {
                Ok(Self {$(
                    // SAFETY: the symbol has this signature in every NCCL of major version 2.
                    $field: *unsafe { library.get::<$type>($symbol) }.map_err(|error| {
                        NcclError::Unavailable { reason: format!("{LIBRARY}: {error}") }
                    })?,
                )*})
            }
        }
    };
}

functions! {
    get_version = "ncclGetVersion": unsafe extern "C" fn(*mut c_int) -> c_int;
    get_unique_id = "ncclGetUniqueId": unsafe extern "C" fn(*mut RawUniqueId) -> c_int;
    comm_init_rank_config = "ncclCommInitRankConfig": unsafe extern "C" fn(
        *mut *mut RawComm, c_int, RawUniqueId, c_int, *mut RawConfig) -> c_int;
    comm_finalize = "ncclCommFinalize": OfComm;
    comm_destroy = "ncclCommDestroy": OfComm;
    comm_abort = "ncclCommAbort": OfComm;
    comm_get_async_error = "ncclCommGetAsyncError":
        unsafe extern "C" fn(*mut RawComm, *mut c_int) -> c_int;
    get_error_string = "ncclGetErrorString": unsafe extern "C" fn(c_int) -> *const c_char;
    get_last_error = "ncclGetLastError": unsafe extern "C" fn(*mut RawComm) -> *const c_char;
    all_reduce = "ncclAllReduce": Reduce;
    reduce_scatter = "ncclReduceScatter": Reduce;
    all_gather = "ncclAllGather": unsafe extern "C" fn(
        *const c_void, *mut c_void, usize, c_int, *mut RawComm, *mut c_void) -> c_int;
    broadcast = "ncclBroadcast": unsafe extern "C" fn(
        *const c_void, *mut c_void, usize, c_int, c_int, *mut RawComm, *mut c_void) -> c_int;
    send = "ncclSend": unsafe extern "C" fn(
        *const c_void, usize, c_int, c_int, *mut RawComm, *mut c_void) -> c_int;
    recv = "ncclRecv": unsafe extern "C" fn(
        *mut c_void, usize, c_int, c_int, *mut RawComm, *mut c_void) -> c_int;
    group_start = "ncclGroupStart": unsafe extern "C" fn() -> c_int;
    group_end = "ncclGroupEnd": unsafe extern "C" fn() -> c_int;
}

/// The library, loaded once a process. libtorch_cuda brings NCCL along, so after
/// [`crate::cuda::load`] this finds the copy that is already there.
pub(super) fn functions() -> Result<&'static Functions, NcclError> {
    static LOADED: OnceLock<Result<Functions, NcclError>> = OnceLock::new();
    LOADED
        .get_or_init(|| {
            // SAFETY: NCCL's initialisers only set up its own state, and it is never unloaded.
            let library = unsafe { Library::open(Some(LIBRARY), RTLD_NOW | RTLD_GLOBAL) };
            let library = library.map_err(|error| NcclError::Unavailable {
                reason: format!("{LIBRARY}: {error}"),
            })?;
            let functions = Functions::from(&library);
            std::mem::forget(library);
            functions
        })
        .as_ref()
        .map_err(Clone::clone)
}

impl Functions {
    /// The error for a result code that is neither success nor, where allowed, "in progress".
    pub(super) fn failure(
        &self,
        operation: &'static str,
        code: c_int,
        comm: *mut RawComm,
    ) -> NcclError {
        // SAFETY: both calls return NUL-terminated strings that NCCL keeps; a null communicator
        // is allowed.
        let (kind, last) = unsafe {
            let text = |p: *const c_char| {
                if p.is_null() {
                    String::new()
                } else {
                    CStr::from_ptr(p).to_string_lossy().trim().to_owned()
                }
            };
            (text((self.get_error_string)(code)), text((self.get_last_error)(comm)))
        };
        let message = if last.is_empty() { kind } else { format!("{kind}: {last}") };
        NcclError::Failed { operation, code, message }
    }
}
