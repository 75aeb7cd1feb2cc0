use tch::Tensor;

use crate::TorchError;
use crate::error::check;
use crate::ffi;

/// Size in bytes of the storage under a tensor: 0 after it was released.
///
/// # Errors
/// When the tensor has no storage (sparse, undefined).
pub fn storage_bytes(tensor: &Tensor) -> Result<usize, TorchError> {
    let mut bytes = 0;
    // SAFETY: the tensor lives for the call; `bytes` is a valid place for one number.
    let answer = unsafe { ffi::plumb_storage_bytes(tensor.as_ptr(), &mut bytes) };
    check("storage size", answer)?;
    Ok(bytes)
}

/// Releases the memory under a tensor and all its views (`bytes` 0), or allocates it again.
///
/// Shapes, strides and autograd's saved references stay. This frees what `resize_(0)` does not:
/// memory that saved views still hold. The content after allocating is undefined; reading a tensor
/// whose storage is released is an error in libtorch or, in a kernel that does not check, undefined
/// behaviour, so callers allocate before they compute.
///
/// # Errors
/// When the storage is foreign memory, or is neither released nor asked to be.
pub fn storage_resize(tensor: &Tensor, bytes: usize) -> Result<(), TorchError> {
    // SAFETY: the tensor lives for the call.
    let answer = unsafe { ffi::plumb_storage_resize(tensor.as_ptr(), bytes) };
    check("storage resize", answer)
}

#[cfg(test)]
mod tests {
    use super::*;
    use tch::{Device, Kind};

    #[test]
    fn releasing_frees_views_too_and_content_can_be_written_again() {
        let flat = Tensor::zeros([1024], (Kind::Float, Device::Cpu));
        let view = flat.narrow(0, 512, 512).view([16, 32]);
        assert_eq!(storage_bytes(&view).unwrap(), 4096);
        storage_resize(&flat, 0).unwrap();
        assert_eq!(storage_bytes(&view).unwrap(), 0);
        assert_eq!(view.size(), [16, 32]);
        storage_resize(&flat, 4096).unwrap();
        let _ = flat.shallow_clone().fill_(3.0);
        assert_eq!(view.sum(Kind::Float).double_value(&[]), 3.0 * 512.0);
        assert!(storage_resize(&flat, 8).is_err(), "a live storage is only released whole");
    }

    #[test]
    fn a_parameter_refilled_between_forward_and_backward_gives_the_right_gradient() {
        // y = w * x with w released after the forward: dx must use the refilled w.
        let w = Tensor::from_slice(&[2.0f32, 3.0]).set_requires_grad(true);
        let x = Tensor::from_slice(&[1.0f32, 1.0]).set_requires_grad(true);
        let y = &w * &x;
        let kept = w.detach().copy();
        storage_resize(&w, 0).unwrap();
        storage_resize(&w, 8).unwrap();
        tch::no_grad(|| w.data().copy_(&kept));
        let dy = Tensor::from_slice(&[1.0f32, 1.0]);
        let grads = crate::vjp(&[&y], &[&x], &[&dy], false).unwrap();
        assert_eq!(Vec::<f32>::try_from(grads[0].as_ref().unwrap()).unwrap(), [2.0, 3.0]);
    }
}
