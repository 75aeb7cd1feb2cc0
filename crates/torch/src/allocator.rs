//! Host memory under CPU tensors.
//!
//! glibc's heap keeps what it has once taken: it moves the size from which a block is a mapping of
//! its own up to 32 MiB as such blocks are freed, and gives each thread a heap of its own.
//! Gradients and gathered weights then lie between activations, and a training rank of 53M
//! parameters holds 150 to 300 MB more than its tensors. So large tensors are mappings of their
//! own ([`keep_resident_memory_small`]). Mapping activations anew for every operation would cost a
//! page fault for every 4 KiB, so some are kept for the next layer, whose sizes are the same. The
//! vectors that a sharded model consists of are [`mapped_zeros`], which are never kept.
//! What a process then holds is tested in `tests/host_memory.rs`, in a process of its own.

use tch::{Device, Kind, Tensor};

use crate::TorchError;
use crate::error::check;
use crate::ffi;

/// From this size on a tensor is a mapping of its own.
const MAPPED_FROM_BYTES: usize = 1 << 20;
/// Larger blocks, such as logits, are given back at once.
const REUSED_UP_TO_BYTES: usize = 32 << 20;
/// Freed blocks that are kept for the next layer, together; more only as long as they and what is in
/// use are not above what was in use at once before.
const KEPT_BYTES: usize = 128 << 20;
/// A smaller vector of a model is not worth a mapping.
const VECTOR_MAPPED_FROM_BYTES: usize = 256 << 10;

/// Makes resident memory follow what tensors hold. To be called first thing in `main`, before
/// tensors are made and other threads started.
///
/// # Errors
/// When the C library's allocator, another one than glibc's, does not take its settings.
pub fn keep_resident_memory_small() -> Result<(), TorchError> {
    // SAFETY: takes numbers only; libtorch keeps the allocator of each block with the block.
    let answer =
        unsafe { ffi::plumb_allocator_install(MAPPED_FROM_BYTES, REUSED_UP_TO_BYTES, KEPT_BYTES) };
    check("allocator", answer)
}

/// Gives back what is kept above the bound; for the end of an update, when other roles of the node
/// work. Touching that memory again costs a page fault for every 4 KiB.
pub fn give_back() {
    // SAFETY: takes nothing and guards its state by a lock.
    unsafe { ffi::plumb_allocator_give_back() };
}

/// A vector of zeros `[elements]`. On the CPU, if it is large, in a mapping of its own: not
/// resident until it is written, given back when it is freed or its storage released.
pub fn mapped_zeros(elements: i64, kind: Kind, device: Device) -> Tensor {
    let bytes = usize::try_from(elements).unwrap_or(0) * kind.elt_size_in_bytes();
    if device == Device::Cpu && bytes >= VECTOR_MAPPED_FROM_BYTES {
        let like = Tensor::empty([0], (kind, device));
        let mut vector = std::ptr::null_mut();
        // SAFETY: `like` lives for the call; the out-parameter is a valid place for one pointer.
        let answer = unsafe { ffi::plumb_mapped_zeros(like.as_ptr(), elements, &mut vector) };
        if check("mapped vector", answer).is_ok() {
            // SAFETY: the shim gives ownership of the tensor that it returns.
            return unsafe { Tensor::from_ptr(vector) };
        }
    }
    // Where the system gives no mapping, libtorch says what it lacks.
    Tensor::zeros([elements], (kind, device))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn vectors_of_every_size_and_type_are_zero() {
        for (elements, kind) in [(0, Kind::Float), (3, Kind::BFloat16), (1 << 20, Kind::BFloat16)] {
            let vector = mapped_zeros(elements, kind, Device::Cpu);
            assert_eq!((vector.size(), vector.kind()), (vec![elements], kind));
            assert_eq!(vector.to_kind(Kind::Double).sum(Kind::Double).double_value(&[]), 0.0);
        }
    }
}
