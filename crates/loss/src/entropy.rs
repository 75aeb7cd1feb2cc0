//! Entropy of the next-token distribution, and the tokens where it is high.

use tch::Tensor;

use crate::aggregate::{Layout, Rows};
use crate::{LossError, check};

/// `H = logsumexp(z) - sum_v softmax(z)_v z_v`, in nats.
///
/// Source: verl `entropy_from_logits` (torch_functional.py).
///
/// `logits` is `[.., V]`, the result `[..]`, in double if the logits are double, else float.
/// Gradients flow to `logits`. A logit of `-inf` (a token that cannot be sampled) counts 0, where
/// verl gets `0 * inf`. Entropy enters the loss with a minus sign and its coefficient
/// ([`crate::policy::Objective::entropy_coef`]), aggregated like the policy term.
///
/// # Errors
/// [`LossError::Rank`] for logits without a vocabulary dimension, [`LossError::Kind`] for logits
/// that are not floats.
pub fn entropy(logits: &Tensor) -> Result<Tensor, LossError> {
    const F: &str = "entropy";
    check::float(F, "logits", logits)?;
    check::vocabulary(F, logits)?;
    let kind = check::maths_kind(logits);
    let logits = logits.to_kind(kind);
    let finite = logits.masked_fill(&logits.isneginf(), 0.0);
    let mean = (logits.softmax(-1, kind) * finite).sum_dim_intlist(-1, false, kind);
    Ok(logits.logsumexp([-1], false) - mean)
}

/// What tokens outside the mask count as where the highest entropies are looked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum MaskedEntropy {
    /// Nothing: only masked-in tokens are chosen.
    #[default]
    Excluded,
    /// LightRFT's: their entropy times 0, so that padding can be chosen before a token whose
    /// entropy is 0, and the result is then no subset of the mask.
    CompatZero,
}

/// The tokens of each sequence whose entropy is highest: `max(1, floor(n ratio))` of its n
/// masked-in tokens. A sequence without tokens keeps none.
///
/// Source: "Beyond the 80/20 Rule" (2025); LightRFT `create_high_entropy_mask` (models/utils.py).
/// There a ratio outside `(0, 1)` means "all of them", and so it does here: the mask comes back
/// as it is.
///
/// `entropy` is `[B, T]` or `[N]` as `layout` says, `mask` of the same shape; the result is
/// boolean of that shape, without gradient, and a subset of the mask. Entropies outside the mask
/// do not matter (but see [`MaskedEntropy`]). Among equal entropies at the border, which ones are kept is torch's `topk`'s
/// choice.
///
/// # Errors
/// [`LossError::Parameter`] for a ratio that is NaN, [`LossError::Rank`], [`LossError::Bounds`],
/// [`LossError::Shape`] for tensors that do not fit.
pub fn high_entropy_mask(
    entropy: &Tensor,
    mask: &Tensor,
    layout: Layout<'_>,
    ratio: f64,
    masked: MaskedEntropy,
) -> Result<Tensor, LossError> {
    const F: &str = "high_entropy_mask";
    check::parameter(F, "ratio", ratio, true, "a finite number")?;
    let mask = check::mask(F, &entropy.size(), mask)?;
    if ratio <= 0.0 || ratio >= 1.0 {
        return Ok(mask);
    }
    check::float(F, "entropy", entropy)?;
    let rows = Rows::new(F, &mask, layout)?;
    let entropy = entropy.detach();
    let ranked = match masked {
        MaskedEntropy::Excluded => entropy.masked_fill(&mask.logical_not(), f64::NEG_INFINITY),
        MaskedEntropy::CompatZero => &entropy * mask.to_kind(entropy.kind()),
    };
    let counts = rows.token_counts(&mask);
    let high = mask.zeros_like();
    let pairs = rows.views(&ranked).into_iter().zip(rows.views(&high));
    for (b, (row, mut high)) in pairs.enumerate() {
        let tokens = counts.double_value(&[b as i64]);
        if tokens > 0.0 {
            let kept = ((tokens * ratio) as i64).max(1);
            let (_, top) = row.topk(kept, -1, true, true);
            let _ = high.index_fill_(0, &top, 1i64);
        }
    }
    Ok(high)
}
