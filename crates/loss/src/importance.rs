//! Correction for samples drawn by another program than the one that learns.
//!
//! The sampler (quantised weights, other kernels) and the trainer give a token slightly different
//! log-probs. What is drawn from one and learnt by the other is biased; the weights here, with
//! which [`crate::policy::Batch::weight`] multiplies token losses, correct for that or leave out
//! what is too far off.
//!
//! Sources: "Your efficient RL framework secretly brings you off-policy RL training" (truncated
//! importance sampling, 2025); IcePop (Ring-1T, 2025); verl `rollout_corr_helper.py` (token and
//! sequence weights, geometric-mean rejection).

use tch::{Kind, Tensor};

use crate::aggregate::{Layout, Rows};
use crate::{LossError, check};

/// Log ratios are clamped to ± this before `exp` (verl's safety bound).
pub const LOG_RATIO_BOUND: f64 = 20.0;

/// Which correction. `w_t = exp(old_logp_t - rollout_logp_t)`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Correction {
    /// `min(w_t, cap)`: each token by its own ratio.
    TruncatedToken {
        /// Above 0; verl's usual value is 2.
        cap: f64,
    },
    /// `min(prod_t w_t, cap)` for every token of the sequence: unbiased up to the cap, high
    /// variance.
    TruncatedSequence {
        /// Above 0.
        cap: f64,
    },
    /// `w_t` within `[low, high]`, 0 outside: tokens on which the two disagree are left out.
    IcePop {
        /// Least ratio that is kept, at least 0. The paper's 0.5.
        low: f64,
        /// Largest ratio that is kept, above `low`. The paper's 5.
        high: f64,
    },
    /// 1 for a sequence whose geometric mean of `w_t` is within `[low, high]`, 0 for the others:
    /// whole sequences are left out.
    SequenceMask {
        /// Least mean that is kept, at least 0.
        low: f64,
        /// Largest mean that is kept, above `low`.
        high: f64,
    },
}

impl Correction {
    /// Whether the weight of a token hangs on the whole of its sequence.
    #[must_use]
    pub fn spans_sequences(&self) -> bool {
        matches!(self, Self::TruncatedSequence { .. } | Self::SequenceMask { .. })
    }

    /// Are the bounds of this correction possible?
    ///
    /// # Errors
    /// [`LossError::Parameter`].
    pub fn validate(&self) -> Result<(), LossError> {
        const F: &str = "importance_weights";
        match *self {
            Self::TruncatedToken { cap } | Self::TruncatedSequence { cap } => {
                check::parameter(F, "cap", cap, cap > 0.0, "above 0")
            }
            Self::IcePop { low, high } | Self::SequenceMask { low, high } => {
                check::parameter(F, "low", low, low >= 0.0, "at least 0")?;
                check::parameter(F, "high", high, high > low, "above low")
            }
        }
    }
}

/// Figures that add up over micro-batches and ranks.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct ImportanceSums {
    /// Masked-in tokens.
    pub tokens: f64,
    /// Sum of weights.
    pub weight: f64,
    /// Sum of squared weights.
    pub weight_squared: f64,
    /// Tokens whose weight the cap cut.
    pub truncated: f64,
    /// Tokens whose weight was set to 0.
    pub masked: f64,
    /// Sum of the k3 estimate of KL(rollout, old), of log ratios within [`LOG_RATIO_BOUND`].
    pub kl: f64,
}

impl ImportanceSums {
    /// Number of figures in [`ImportanceSums::as_array`].
    pub const FIGURES: usize = 6;

    /// The figures in a fixed order, for an all-reduce.
    #[must_use]
    pub fn as_array(&self) -> [f64; Self::FIGURES] {
        [self.tokens, self.weight, self.weight_squared, self.truncated, self.masked, self.kl]
    }

    /// Back from [`ImportanceSums::as_array`].
    #[must_use]
    pub fn from_array(figures: [f64; Self::FIGURES]) -> Self {
        let [tokens, weight, weight_squared, truncated, masked, kl] = figures;
        Self { tokens, weight, weight_squared, truncated, masked, kl }
    }

    /// Mean weight; 0 without tokens, as the others below.
    #[must_use]
    pub fn weight_mean(&self) -> f64 {
        self.per_token(self.weight)
    }

    /// Share of tokens whose weight the cap cut.
    #[must_use]
    pub fn truncated_fraction(&self) -> f64 {
        self.per_token(self.truncated)
    }

    /// Share of tokens that were left out.
    #[must_use]
    pub fn masked_fraction(&self) -> f64 {
        self.per_token(self.masked)
    }

    /// Mean KL(rollout, old) per token.
    #[must_use]
    pub fn kl_mean(&self) -> f64 {
        self.per_token(self.kl)
    }

    /// `(sum w)^2 / (n sum w^2)`: 1 when all weights are equal, near 0 when few tokens carry all.
    #[must_use]
    pub fn effective_sample_fraction(&self) -> f64 {
        if self.weight_squared > 0.0 {
            self.weight * self.weight / (self.tokens * self.weight_squared)
        } else {
            0.0
        }
    }

    fn per_token(&self, sum: f64) -> f64 {
        if self.tokens > 0.0 { sum / self.tokens } else { 0.0 }
    }
}

impl std::ops::AddAssign for ImportanceSums {
    fn add_assign(&mut self, other: Self) {
        let mut figures = self.as_array();
        for (figure, more) in figures.iter_mut().zip(other.as_array()) {
            *figure += more;
        }
        *self = Self::from_array(figures);
    }
}

/// The weight of each token, and what the correction did.
///
/// `old_logp` (the trainer's, before or during the update) and `rollout_logp` (the sampler's) are
/// `[B, T]` or `[N]` as `layout` says, `mask` of that shape. The weights have it too, without
/// gradient, 0 outside the mask. Denominators of the loss are not touched: a token that is left
/// out still counts in them.
///
/// # Errors
/// [`LossError::Parameter`] for bounds that are not possible, [`LossError::NonFinite`] for
/// log-probs inside the mask that are no numbers, [`LossError::Shape`], [`LossError::Kind`],
/// [`LossError::Rank`], [`LossError::Bounds`] for tensors that do not fit.
pub fn importance_weights(
    correction: &Correction,
    old_logp: &Tensor,
    rollout_logp: &Tensor,
    mask: &Tensor,
    layout: Layout<'_>,
) -> Result<(Tensor, ImportanceSums), LossError> {
    const F: &str = "importance_weights";
    correction.validate()?;
    check::float(F, "old_logp", old_logp)?;
    check::float(F, "rollout_logp", rollout_logp)?;
    check::shape(F, "rollout_logp", &old_logp.size(), rollout_logp)?;
    let mask = check::mask(F, &old_logp.size(), mask)?;
    let rows = Rows::new(F, &mask, layout)?;
    let outside = mask.logical_not();
    let kind = check::maths_kind(old_logp);
    let inside = |t: &Tensor| t.detach().to_kind(kind).masked_fill(&outside, 0.0);
    let difference = inside(old_logp) - inside(rollout_logp);
    let bound = |log: &Tensor| log.clamp(-LOG_RATIO_BOUND, LOG_RATIO_BOUND);
    let exp = |log: &Tensor| bound(log).exp();
    let none = mask.zeros_like();
    let cut = |ratio: Tensor, cap: f64| (ratio.clamp_max(cap), ratio.gt(cap), none.shallow_clone());
    let band = |ratio: &Tensor, low, high| ratio.lt(low).logical_or(&ratio.gt(high));
    let spread = |values: &Tensor| rows.spread(values).expand_as(&difference);
    let (weight, truncated, masked) = match *correction {
        Correction::TruncatedToken { cap } => cut(exp(&difference), cap),
        Correction::TruncatedSequence { cap } => cut(exp(&spread(&rows.sums(&difference))), cap),
        Correction::IcePop { low, high } => {
            let ratio = exp(&difference);
            let out = band(&ratio, low, high);
            (ratio.masked_fill(&out, 0.0), none.shallow_clone(), out)
        }
        Correction::SequenceMask { low, high } => {
            let mean = exp(&spread(&rows.means(&difference, &mask, 0.0)));
            let out = band(&mean, low, high);
            (mean.ones_like().masked_fill(&out, 0.0), none.shallow_clone(), out)
        }
    };
    let weight = weight.masked_fill(&outside, 0.0);
    let bounded = bound(&difference);
    let count = |t: &Tensor| t.logical_and(&mask).sum(Kind::Double).double_value(&[]);
    let sum = |t: &Tensor| t.sum(Kind::Double).double_value(&[]);
    check::finite(F, "old_logp - rollout_logp", sum(&difference))?;
    let sums = ImportanceSums {
        tokens: sum(&mask),
        weight: sum(&weight),
        weight_squared: sum(&weight.square()),
        truncated: count(&truncated),
        masked: count(&masked),
        // KL(rollout, old) by samples of rollout: r - 1 - ln r with r = old / rollout.
        kl: sum(&(bounded.expm1() - &bounded)),
    };
    Ok((weight, sums))
}
