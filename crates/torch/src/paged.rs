//! A layer's keys and values in blocks of [`BLOCK_TOKENS`] tokens, on the CPU.
//!
//! A sequence is a list of blocks, its table; blocks may be shared. Keys lie as `[B, K, D, 16]`,
//! values as `[B, K, 16, D]` (B blocks, K heads, D dimensions). Each row of a batch attends to its
//! own sequence up to its own position: no padding to the longest one, no copy of the cache, and
//! a result that does not hang on the rows beside it.

use tch::Tensor;

use crate::TorchError;
use crate::error::check;
use crate::ffi;

/// Tokens of a block.
pub const BLOCK_TOKENS: usize = 16;

/// One layer's cache, f32 or bf16, dense, on the CPU.
#[derive(Debug, Clone, Copy)]
pub struct PagedLayer<'a> {
    /// `[B, K, D, 16]`.
    pub keys: &'a Tensor,
    /// `[B, K, 16, D]`.
    pub values: &'a Tensor,
}

/// Where the rows of a batch stand. All i32, dense, on the CPU.
#[derive(Debug)]
pub struct PagedRows {
    /// Blocks of each sequence in order, `[S, W]`; what lies behind a sequence's end is not read.
    pub tables_sw: Tensor,
    /// Row -> sequence, `[N]`; -1 for a row that is only there to fill the batch.
    pub sequence_n: Tensor,
    /// Row -> position in its sequence, `[N]`.
    pub position_n: Tensor,
}

/// Stores the rows' new keys and values, both `[N, K, D]` with dense heads.
///
/// # Errors
/// When shapes, types or places do not fit; nothing is written then.
pub fn write(
    layer: PagedLayer<'_>,
    rows: &PagedRows,
    k_nkd: &Tensor,
    v_nkd: &Tensor,
) -> Result<(), TorchError> {
    // SAFETY: all tensors live for the call; the shim checks shapes, types and every block number
    // before it writes. The cache is written through a shared handle, as all of libtorch's
    // in-place operations do; a tensor is not `Sync`, so nobody reads it meanwhile.
    let answer = unsafe {
        ffi::plumb_paged_write(
            layer.keys.as_ptr(),
            layer.values.as_ptr(),
            rows.tables_sw.as_ptr(),
            rows.sequence_n.as_ptr(),
            rows.position_n.as_ptr(),
            k_nkd.as_ptr(),
            v_nkd.as_ptr(),
        )
    };
    check("writing to the paged cache", answer)
}

/// Attention of each row's queries `[N, Q, D]` (dense heads) to the tokens of its sequence up to
/// its own, the last `window` of them if given; `[N, Q * D]`. Rows of sequence -1 give zeros.
///
/// # Errors
/// When shapes, types or places do not fit.
pub fn attend(
    layer: PagedLayer<'_>,
    rows: &PagedRows,
    q_nqd: &Tensor,
    window: Option<i64>,
    scale: f64,
) -> Result<Tensor, TorchError> {
    let failed = |error: tch::TchError| TorchError::new("paged attention", error.to_string());
    let shape = q_nqd.size();
    let out_nqd = Tensor::f_empty(&shape, (q_nqd.kind(), q_nqd.device())).map_err(failed)?;
    // SAFETY: all tensors live for the call; the shim checks shapes, types and every block number
    // before it reads, and writes only `out_nqd`, which is new.
    let answer = unsafe {
        ffi::plumb_paged_attend(
            layer.keys.as_ptr(),
            layer.values.as_ptr(),
            rows.tables_sw.as_ptr(),
            rows.sequence_n.as_ptr(),
            rows.position_n.as_ptr(),
            q_nqd.as_ptr(),
            out_nqd.as_ptr(),
            window.unwrap_or(0),
            scale,
        )
    };
    check("paged attention", answer)?;
    out_nqd.f_flatten(1, 2).map_err(failed)
}

#[cfg(test)]
#[path = "paged_tests.rs"]
mod tests;
