use std::borrow::Borrow;
use std::ffi::c_int;

use tch::Tensor;

use crate::TorchError;
use crate::error::check;
use crate::ffi::{self, C_tensor};

/// The raw pointers of a list of tensors, valid while the tensors live.
pub(crate) fn pointers<T: Borrow<Tensor>>(tensors: &[T]) -> Vec<*const C_tensor> {
    tensors.iter().map(|tensor| tensor.borrow().as_ptr()).collect()
}

/// Vector-Jacobian product: for each input, the gradient of `sum_i <outputs[i], grad_outputs[i]>`.
///
/// `grad_outputs[i]` has the shape of `outputs[i]`. An input on which no output depends gets
/// `None`. Nothing is accumulated into `.grad`. The graph of `outputs` is freed unless
/// `retain_graph`. The same as `torch.autograd.grad(..., allow_unused=True)`.
///
/// # Errors
/// When the lists differ in length, an output has no graph, or shapes do not match.
pub fn vjp<O, I, G>(
    outputs: &[O],
    inputs: &[I],
    grad_outputs: &[G],
    retain_graph: bool,
) -> Result<Vec<Option<Tensor>>, TorchError>
where
    O: Borrow<Tensor>,
    I: Borrow<Tensor>,
    G: Borrow<Tensor>,
{
    const OPERATION: &str = "vector-jacobian product";
    if outputs.len() != grad_outputs.len() {
        return Err(TorchError::new(
            OPERATION,
            format!("{} outputs but {} output gradients", outputs.len(), grad_outputs.len()),
        ));
    }
    for (output, grad) in outputs.iter().zip(grad_outputs) {
        // libtorch would silently sum a larger gradient to the output's shape.
        let (output, grad) = (output.borrow().size(), grad.borrow().size());
        if output != grad {
            return Err(TorchError::new(
                OPERATION,
                format!("an output of shape {output:?} with a gradient of shape {grad:?}"),
            ));
        }
    }
    let (outputs, grad_outputs, inputs) =
        (pointers(outputs), pointers(grad_outputs), pointers(inputs));
    let mut results = vec![std::ptr::null_mut::<C_tensor>(); inputs.len()];
    // SAFETY: every pointer comes from a live tensor borrowed for this call, the counts are the
    // lengths, and `results` has room for one pointer per input.
    let answer = unsafe {
        ffi::plumb_vjp(
            outputs.as_ptr(),
            grad_outputs.as_ptr(),
            outputs.len(),
            inputs.as_ptr(),
            inputs.len(),
            c_int::from(retain_graph),
            results.as_mut_ptr(),
        )
    };
    check(OPERATION, answer)?;
    Ok(results
        .into_iter()
        // SAFETY: the shim gives ownership of each non-null tensor it returns.
        .map(|result| (!result.is_null()).then(|| unsafe { Tensor::from_ptr(result) }))
        .collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn vjp_of_a_product_is_the_other_factor_times_the_incoming_gradient() {
        // y = a * b; dy = [1, 10]; da = dy * b, db = dy * a.
        let a = Tensor::from_slice(&[2.0f32, 3.0]).set_requires_grad(true);
        let b = Tensor::from_slice(&[5.0f32, 7.0]).set_requires_grad(true);
        let unused = Tensor::from_slice(&[1.0f32]).set_requires_grad(true);
        let y = &a * &b;
        let dy = Tensor::from_slice(&[1.0f32, 10.0]);
        let grads = vjp(&[&y], &[&a, &b, &unused], &[&dy], false).unwrap();
        let value = |i: usize| Vec::<f32>::try_from(grads[i].as_ref().unwrap()).unwrap();
        assert_eq!(value(0), [5.0, 70.0]);
        assert_eq!(value(1), [2.0, 30.0]);
        assert!(grads[2].is_none());
        assert!(!a.grad().defined(), "nothing may be accumulated");
    }

    #[test]
    fn a_retained_graph_serves_twice_and_a_freed_one_does_not() {
        let a = Tensor::from_slice(&[2.0f32]).set_requires_grad(true);
        let y = &a * &a;
        let dy = Tensor::from_slice(&[1.0f32]);
        vjp(&[&y], &[&a], &[&dy], true).unwrap();
        vjp(&[&y], &[&a], &[&dy], false).unwrap();
        let error = vjp(&[&y], &[&a], &[&dy], false).unwrap_err();
        assert!(error.message.contains("second time"), "{error}");
    }

    #[test]
    fn mistakes_are_errors_not_exceptions() {
        let a = Tensor::from_slice(&[2.0f32]).set_requires_grad(true);
        let no_graph = Tensor::from_slice(&[2.0f32]);
        let dy = Tensor::from_slice(&[1.0f32]);
        assert!(vjp(&[&no_graph], &[&a], &[&dy], false).is_err());
        let wrong_shape = Tensor::from_slice(&[1.0f32, 2.0]);
        assert!(vjp(&[&a * 2.0], &[&a], &[&wrong_shape], false).is_err());
        assert!(vjp(&[&a * 2.0], &[&a], &Vec::<Tensor>::new(), false).is_err());
    }
}
