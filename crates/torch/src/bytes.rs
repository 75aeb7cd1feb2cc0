use tch::Tensor;

use crate::TorchError;
use crate::error::check;
use crate::ffi;

/// Address and length of a contiguous CPU tensor's elements.
fn extent(tensor: &Tensor) -> Result<(*mut u8, usize), TorchError> {
    let (mut data, mut bytes) = (std::ptr::null_mut(), 0);
    // SAFETY: the tensor lives for the call; both out-parameters are valid places.
    let answer = unsafe { ffi::plumb_contiguous_bytes(tensor.as_ptr(), &mut data, &mut bytes) };
    check("view of a tensor's bytes", answer)?;
    Ok((data, bytes))
}

/// Calls `read` with the memory of a contiguous CPU tensor (native byte order), without a copy.
///
/// `read` must not write the tensor through another handle to the same storage.
///
/// # Errors
/// When the tensor is not dense, contiguous and on the CPU.
pub fn with_bytes<R>(tensor: &Tensor, read: impl FnOnce(&[u8]) -> R) -> Result<R, TorchError> {
    let (data, bytes) = extent(tensor)?;
    if bytes == 0 {
        return Ok(read(&[]));
    }
    // SAFETY: libtorch vouches for `bytes` bytes at `data`; the borrowed tensor keeps the storage
    // alive until `read` returns, and u8 has no alignment or validity demands.
    Ok(read(unsafe { std::slice::from_raw_parts(data, bytes) }))
}

/// A copy of the elements' bytes in row-major order, of a tensor on any device.
///
/// # Errors
/// When the tensor cannot be brought to the CPU.
pub fn bytes(tensor: &Tensor) -> Result<Vec<u8>, TorchError> {
    let failed = |error: tch::TchError| TorchError::new("copy to the cpu", error.to_string());
    let tensor = tensor.f_to_device(tch::Device::Cpu).and_then(|t| t.f_contiguous());
    with_bytes(&tensor.map_err(failed)?, <[u8]>::to_vec)
}

/// Overwrites a contiguous CPU tensor's elements with `source` (row-major, native byte order).
///
/// # Errors
/// When the tensor is not dense, contiguous and on the CPU, or the lengths differ.
pub fn copy_from_bytes(tensor: &mut Tensor, source: &[u8]) -> Result<(), TorchError> {
    let (data, bytes) = extent(tensor)?;
    if bytes != source.len() {
        return Err(TorchError::new(
            "copy into a tensor",
            format!("the tensor holds {bytes} bytes, the source {}", source.len()),
        ));
    }
    if bytes > 0 {
        // SAFETY: `data` is valid for `bytes` writes while the tensor is borrowed, and a Rust slice
        // cannot overlap memory that libtorch owns unless lent by `with_bytes`, which forbids it.
        unsafe { std::ptr::copy(source.as_ptr(), data, bytes) };
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use tch::{Device, Kind};

    #[test]
    fn bytes_are_little_endian_row_major_and_round_trip() {
        let tensor = Tensor::from_slice(&[1.0f32, -2.0, 0.5, 4.0]).view([2, 2]);
        let expected: Vec<u8> =
            [1.0f32, -2.0, 0.5, 4.0].iter().flat_map(|v| v.to_le_bytes()).collect();
        assert_eq!(bytes(&tensor).unwrap(), expected);
        let transposed: Vec<u8> =
            [1.0f32, 0.5, -2.0, 4.0].iter().flat_map(|v| v.to_le_bytes()).collect();
        assert_eq!(bytes(&tensor.tr()).unwrap(), transposed);
        let mut copy = Tensor::zeros([2, 2], (Kind::Float, Device::Cpu));
        copy_from_bytes(&mut copy, &expected).unwrap();
        assert!(copy.equal(&tensor));
    }

    #[test]
    fn strided_views_and_wrong_lengths_are_refused() {
        let mut tensor = Tensor::zeros([2, 3], (Kind::BFloat16, Device::Cpu));
        assert!(with_bytes(&tensor.tr(), |_| ()).is_err());
        assert_eq!(with_bytes(&tensor, <[u8]>::len).unwrap(), 12);
        let error = copy_from_bytes(&mut tensor, &[0; 11]).unwrap_err();
        assert!(error.message.contains("12 bytes, the source 11"), "{error}");
        let mut empty = Tensor::zeros([0], (Kind::Float, Device::Cpu));
        copy_from_bytes(&mut empty, &[]).unwrap();
        assert_eq!(bytes(&empty).unwrap(), Vec::<u8>::new());
    }
}
