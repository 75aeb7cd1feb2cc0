//! The language-model term that keeps the policy near its pre-training or instruction data.

use tch::Tensor;

use crate::aggregate::{Aggregation, Denominators, Layout, aggregate};
use crate::{LossError, check};

/// `coef * mean over tokens of -logp`, to be added to the policy's loss or stepped on its own.
///
/// Source: InstructGPT (Ouyang et al. 2022, eq. 2); safe-rlhf `ptx_step` (rl_trainer.py) and
/// HC-RLHF: `ptx_coeff` times the causal language-model loss, in a backward pass of its own
/// (defaults: 0; the scripts 16 and 8). LightRFT's `ptx_coef` is 0.05.
///
/// `logp` holds the log-prob of each target token of the text, `[B, T]` or `[N]` as `layout` says,
/// `mask` those that count. A contribution, like all losses here; gradients flow to `logp`. A
/// coefficient of 0 gives 0.
///
/// # Errors
/// [`LossError::Parameter`] for a coefficient below 0, [`LossError::NonFinite`] when the result is
/// no number; else as [`aggregate`].
pub fn ptx(
    coef: f64,
    logp: &Tensor,
    mask: &Tensor,
    layout: Layout<'_>,
    denominators: &Denominators,
) -> Result<Tensor, LossError> {
    const F: &str = "ptx";
    check::parameter(F, "coef", coef, coef >= 0.0, "at least 0")?;
    let loss = aggregate(Aggregation::TokenMean, &-logp, mask, layout, denominators)? * coef;
    check::finite(F, "the loss", loss.double_value(&[]))?;
    Ok(loss)
}
