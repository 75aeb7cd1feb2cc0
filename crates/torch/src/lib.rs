//! What Plumbline needs of libtorch and NCCL and tch does not offer, behind safe functions.
//!
//! This is the only crate with `unsafe` code. Tensors are [`tch::Tensor`]s throughout.
//!
//! - [`vjp`]: vector-Jacobian products, the backward of one block.
//! - [`storage_resize`], [`storage_bytes`]: give memory back under tensors that still exist.
//! - [`AdamW`]: libtorch's fused step.
//! - [`VarlenAttention`]: flash attention over sequences laid end to end (CUDA).
//! - [`with_bytes`], [`bytes`], [`copy_from_bytes`]: a CPU tensor's memory.
//! - [`paged`]: attention on the CPU to keys and values that lie in blocks.
//! - [`gloo`]: c10d's Gloo process group, which meets its peers through a [`Store`].
//! - [`nccl`]: NCCL, loaded at run time.
//! - [`allocator`]: host memory that is resident only while it is used.
//! - [`cuda`], [`device`]: CUDA at run time; streams, events, memory figures.
//!
//! C++ exceptions end in the shim (`shim/`) and come back as [`TorchError`].
#![allow(unsafe_code)]

mod adamw;
pub mod allocator;
mod autograd;
mod bytes;
pub mod cuda;
pub mod device;
mod error;
mod ffi;
pub mod gloo;
pub mod nccl;
pub mod paged;
mod storage;
mod store;
mod varlen;

pub use adamw::AdamW;
pub use autograd::vjp;
pub use bytes::{bytes, copy_from_bytes, with_bytes};
pub use error::TorchError;
pub use storage::{storage_bytes, storage_resize};
pub use store::{MemoryStore, Store, StoreError};
pub use varlen::VarlenAttention;
