use tch::{Device, Kind, Tensor};

use crate::TorchError;
use crate::error::check;
use crate::ffi;

const OPERATION: &str = "variable-length attention";

/// Widest head that libtorch's flash kernel takes.
const MAX_HEAD_DIM: i64 = 256;

/// Causal attention of several sequences laid end to end, without padding and without a mask in
/// memory: libtorch's flash kernel (Dao 2023, FlashAttention-2), which runs on CUDA in half
/// precision only.
#[derive(Debug)]
pub struct VarlenAttention {
    cu_seqlens: Tensor,
    longest: i64,
}

impl VarlenAttention {
    /// Whether the kernel takes such heads: CUDA, bf16 or fp16, a head width that is a multiple of
    /// 8 and at most 256.
    #[must_use]
    pub fn takes(device: Device, kind: Kind, head_dim: i64) -> bool {
        device.is_cuda()
            && matches!(kind, Kind::BFloat16 | Kind::Half)
            && head_dim % 8 == 0
            && head_dim <= MAX_HEAD_DIM
    }

    /// For sequences of these lengths, in order, on `device`.
    #[must_use]
    pub fn new(lengths: &[i64], device: Device) -> Self {
        let ends = lengths.iter().scan(0, |end, length| {
            *end += length;
            Some(*end)
        });
        let borders: Vec<i64> = std::iter::once(0).chain(ends).collect();
        Self {
            cu_seqlens: Tensor::from_slice(&borders).to_kind(Kind::Int).to_device(device),
            longest: lengths.iter().copied().max().unwrap_or(0),
        }
    }

    /// Each token's attention to its own sequence up to itself: `[N, Q, D]` from queries
    /// `[N, Q, D]`, keys and values `[N, K, D]`, where K divides Q. With `window`, a token sees
    /// that many tokens, itself included. Differentiable in all three.
    ///
    /// # Errors
    /// On another device than CUDA or in another dtype than bf16 and fp16; what libtorch refuses.
    pub fn attend(
        &self,
        q_nqd: &Tensor,
        k_nkd: &Tensor,
        v_nkd: &Tensor,
        window: Option<i64>,
    ) -> Result<Tensor, TorchError> {
        let head_dim = q_nqd.size().last().copied().unwrap_or(0);
        if !Self::takes(q_nqd.device(), q_nqd.kind(), head_dim) {
            return Err(TorchError::new(
                OPERATION,
                format!(
                    "queries of {:?} on {:?} with heads {head_dim} wide; the kernel takes bf16 or \
                     fp16 on cuda, heads of a multiple of 8 up to {MAX_HEAD_DIM}",
                    q_nqd.kind(),
                    q_nqd.device()
                ),
            ));
        }
        let before_itself = window.map_or(-1, |window| window - 1);
        let mut result = std::ptr::null_mut();
        // SAFETY: the four tensors are borrowed for the call; `result` has room for one pointer.
        let answer = unsafe {
            ffi::plumb_varlen_attention(
                q_nqd.as_ptr(),
                k_nkd.as_ptr(),
                v_nkd.as_ptr(),
                self.cu_seqlens.as_ptr(),
                self.longest,
                before_itself,
                &raw mut result,
            )
        };
        check(OPERATION, answer)?;
        // SAFETY: on success the shim gives ownership of the tensor it returns.
        Ok(unsafe { Tensor::from_ptr(result) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cpu_is_refused_with_what_would_do() {
        let heads = Tensor::zeros([5, 2, 8], (Kind::BFloat16, Device::Cpu));
        let attention = VarlenAttention::new(&[2, 3], Device::Cpu);
        assert_eq!(Vec::<i64>::try_from(&attention.cu_seqlens).unwrap(), [0, 2, 5]);
        assert_eq!(attention.longest, 3);
        let error = attention.attend(&heads, &heads, &heads, None).unwrap_err().to_string();
        assert!(error.contains("Cpu") && error.contains("bf16 or fp16 on cuda"), "{error}");
    }

    #[test]
    fn heads_that_the_kernel_does_not_take_are_known_beforehand() {
        let cuda = Device::Cuda(0);
        assert!(VarlenAttention::takes(cuda, Kind::BFloat16, 64));
        assert!(!VarlenAttention::takes(cuda, Kind::Float, 64));
        assert!(!VarlenAttention::takes(cuda, Kind::BFloat16, 63));
        assert!(!VarlenAttention::takes(cuda, Kind::BFloat16, 512));
        assert!(!VarlenAttention::takes(Device::Cpu, Kind::BFloat16, 64));
    }
}
