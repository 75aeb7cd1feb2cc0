use std::borrow::Borrow;

use tch::Tensor;

use crate::TorchError;
use crate::autograd::pointers;
use crate::error::check;
use crate::ffi;

/// AdamW with decoupled weight decay (Loshchilov and Hutter, 2019, algorithm 2), as computed by
/// libtorch's fused kernel.
///
/// `theta <- theta (1 - lr wd)`, then `theta <- theta - lr m^ / (sqrt(v^) + eps)` with the
/// bias-corrected moments `m^`, `v^`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AdamW {
    /// Step size.
    pub lr: f64,
    /// Decay of the first moment.
    pub beta1: f64,
    /// Decay of the second moment.
    pub beta2: f64,
    /// Added to the denominator.
    pub eps: f64,
    /// Decoupled weight decay.
    pub weight_decay: f64,
}

impl AdamW {
    /// Takes one step in place on `params` and both moments.
    ///
    /// All lists have one tensor per parameter; the four tensors of a parameter have one shape,
    /// dtype and device. `steps` are one-element f32 tensors with the number of steps taken so far
    /// (0 at the start); they are incremented here, before the kernel needs them (with step 0 the
    /// bias correction divides by zero and the result is NaN).
    ///
    /// # Errors
    /// When the lists differ in length or libtorch refuses the tensors.
    pub fn step<P, G, M, V, S>(
        &self,
        params: &[P],
        grads: &[G],
        exp_avgs: &[M],
        exp_avg_sqs: &[V],
        steps: &[S],
    ) -> Result<(), TorchError>
    where
        P: Borrow<Tensor>,
        G: Borrow<Tensor>,
        M: Borrow<Tensor>,
        V: Borrow<Tensor>,
        S: Borrow<Tensor>,
    {
        const OPERATION: &str = "adamw step";
        let count = params.len();
        let lengths = [grads.len(), exp_avgs.len(), exp_avg_sqs.len(), steps.len()];
        if lengths.iter().any(|&length| length != count) {
            return Err(TorchError::new(
                OPERATION,
                format!("{count} parameters, but {lengths:?} gradients, moments and steps"),
            ));
        }
        // The fused kernel refuses an empty list.
        if count == 0 {
            return Ok(());
        }
        let _no_grad = tch::no_grad_guard();
        for step in steps {
            let mut step = step.borrow().shallow_clone();
            let _ = step
                .f_add_scalar_(1)
                .map_err(|error| TorchError::new(OPERATION, error.to_string()))?;
        }
        // SAFETY: every pointer comes from a live tensor borrowed for this call; all lists have
        // `count` entries. The kernel writes only elements, behind libtorch's own handles.
        let answer = unsafe {
            ffi::plumb_fused_adamw(
                pointers(params).as_ptr(),
                pointers(grads).as_ptr(),
                pointers(exp_avgs).as_ptr(),
                pointers(exp_avg_sqs).as_ptr(),
                pointers(steps).as_ptr(),
                count,
                self.lr,
                self.beta1,
                self.beta2,
                self.weight_decay,
                self.eps,
            )
        };
        check(OPERATION, answer)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tch::{Device, Kind};

    #[test]
    fn two_steps_match_the_formula_in_double_precision() {
        let adamw = AdamW { lr: 0.1, beta1: 0.9, beta2: 0.99, eps: 1e-8, weight_decay: 0.01 };
        let options = (Kind::Float, Device::Cpu);
        let param = Tensor::from_slice(&[1.0f32, -2.0]);
        let (m, v) = (Tensor::zeros([2], options), Tensor::zeros([2], options));
        let step = Tensor::zeros([], options);
        let mut theta = [1.0f64, -2.0];
        let (mut first, mut second) = ([0.0f64; 2], [0.0f64; 2]);
        for (t, grad) in [[0.5f64, -0.25], [0.125, 1.0]].into_iter().enumerate() {
            let t = t as i32 + 1;
            let grad_tensor = Tensor::from_slice(&grad.map(|g| g as f32));
            adamw.step(&[&param], &[&grad_tensor], &[&m], &[&v], &[&step]).unwrap();
            for i in [0, 1] {
                theta[i] *= 1.0 - adamw.lr * adamw.weight_decay;
                first[i] = adamw.beta1 * first[i] + (1.0 - adamw.beta1) * grad[i];
                second[i] = adamw.beta2 * second[i] + (1.0 - adamw.beta2) * grad[i] * grad[i];
                let m_hat = first[i] / (1.0 - adamw.beta1.powi(t));
                let v_hat = second[i] / (1.0 - adamw.beta2.powi(t));
                theta[i] -= adamw.lr * m_hat / (v_hat.sqrt() + adamw.eps);
            }
        }
        assert_eq!(step.double_value(&[]), 2.0);
        for (i, expected) in theta.into_iter().enumerate() {
            let got = param.double_value(&[i as i64]);
            assert!((got - expected).abs() < 1e-6, "{got} against {expected}");
        }
    }

    #[test]
    fn lists_of_unequal_length_are_refused() {
        let adamw = AdamW { lr: 0.1, beta1: 0.9, beta2: 0.99, eps: 1e-8, weight_decay: 0.0 };
        let t = Tensor::from_slice(&[1.0f32]);
        let none: [&Tensor; 0] = [];
        assert!(adamw.step(&[&t], &none, &[&t], &[&t], &[&t]).is_err());
        assert!(adamw.step(&none, &none, &none, &none, &none).is_ok());
    }
}
