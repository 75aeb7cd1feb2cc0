//! The clipped surrogate with the ratio of a token, an item of a list, or a whole sequence.

use tch::{Kind, Tensor, no_grad};

use super::{Masked, PolicyTokens, check_clip};
use crate::aggregate::Rows;
use crate::{LossError, check};

/// Over what the ratio is taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RatioLevel {
    /// Each token has its own.
    Token,
    /// The geometric mean over the tokens of a sequence.
    Sequence,
    /// The geometric mean over the tokens of an item. Ids are in [`super::Batch::items`]: item
    /// `0..items`; everything from `items` on shares one bin more (the overflow of a list that
    /// went on too long), and ids below 0 count as item 0.
    Item {
        /// Items of a list.
        items: i64,
    },
}

impl RatioLevel {
    /// From TRL's `importance_sampling_level`: `token`, `sequence`, or `item` of a list of `items`.
    ///
    /// # Errors
    /// [`LossError::UnknownName`].
    pub fn named(name: &str, items: i64) -> Result<Self, LossError> {
        match name {
            "token" => Ok(Self::Token),
            "sequence" => Ok(Self::Sequence),
            "item" => Ok(Self::Item { items }),
            other => Err(LossError::UnknownName {
                what: "ratio level",
                got: other.to_owned(),
                expected: "token, sequence, item",
            }),
        }
    }
}

/// Settings. The default is Rank-GRPO's, with 20 items.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct LevelClip {
    /// Over what the ratio is taken.
    pub level: RatioLevel,
    /// The ratio is clipped below at `1 - clip_low`. Default 0.2.
    pub clip_low: f64,
    /// The ratio is clipped above at `1 + clip_high`. Default 0.2.
    pub clip_high: f64,
    /// The unclipped ratio is at most this (TRL's `delta`, two-sided clipping). Default `None`.
    /// Where the cap is active the gradient is 0.
    pub ratio_cap: Option<f64>,
}

impl Default for LevelClip {
    fn default() -> Self {
        let level = RatioLevel::Item { items: 20 };
        Self { level, clip_low: 0.2, clip_high: 0.2, ratio_cap: None }
    }
}

/// `l = -min(min(r, cap) A, clip(r, 1 - low, 1 + high) A)` with `r = exp(mean of logp - old_logp
/// over the token, item or sequence)`. Unlike GSPO's, the gradient of a mean spreads over all its
/// tokens.
///
/// Source: Rank-GRPO `RankGRPOTrainer._compute_loss` (rank_grpo_trainer.py), after TRL's
/// `GRPOTrainer`. Its `loss_type` `bnpo` is the token mean, `grpo` the mean over each sequence,
/// then over sequences, and `dr_grpo` a constant divisor. `clipped` are the tokens whose ratio is
/// beyond the bound on the side of their advantage. `log_ratio` of the result is the token's own.
pub(super) fn level_clip(
    spec: &LevelClip,
    m: &Masked,
    rows: &Rows,
    items: Option<&Tensor>,
) -> Result<PolicyTokens, LossError> {
    const F: &str = "level_clip";
    check_clip(F, spec.clip_low, spec.clip_high)?;
    if let Some(cap) = spec.ratio_cap {
        check::parameter(F, "ratio_cap", cap, cap > 0.0, "above 0, or none")?;
    }
    let token = &m.logp - &m.old_logp;
    let log_ratio = match spec.level {
        RatioLevel::Token => token.shallow_clone(),
        RatioLevel::Sequence => rows.spread(&rows.means(&token, &m.mask, 0.0)).expand_as(&token),
        RatioLevel::Item { items: count } => item_means(&token, m, rows, items, count)?,
    };
    let (bound, free, clipped) = no_grad(|| {
        let ratio = log_ratio.exp();
        let capped = spec.ratio_cap.map_or(ratio.shallow_clone(), |cap| ratio.clamp_max(cap));
        let within = ratio.clamp(1.0 - spec.clip_low, 1.0 + spec.clip_high);
        let (first, second) = (&capped * &m.advantage, &within * &m.advantage);
        let free = capped
            .eq_tensor(&ratio)
            .where_self(&first.lt_tensor(&second), &within.eq_tensor(&ratio));
        let low = capped.lt(1.0 - spec.clip_low).logical_and(&m.advantage.lt(0.0));
        let high = capped.gt(1.0 + spec.clip_high).logical_and(&m.advantage.gt(0.0));
        (-first.minimum(&second), free, low.logical_or(&high).logical_and(&m.mask))
    });
    // A token at a bound gets no gradient at all: its ratio may be infinite.
    let stopped = free.logical_not();
    let plain = -&m.advantage * log_ratio.masked_fill(&stopped, 0.0).exp();
    let loss = bound.where_self(&stopped, &plain);
    Ok(PolicyTokens {
        loss: loss.masked_fill(&m.mask.logical_not(), 0.0),
        log_ratio: token.detach(),
        clipped,
        clipped_lower: m.mask.zeros_like(),
    })
}

/// The mean of each token's item.
fn item_means(
    token: &Tensor,
    m: &Masked,
    rows: &Rows,
    items: Option<&Tensor>,
    count: i64,
) -> Result<Tensor, LossError> {
    const F: &str = "level_clip";
    let Some(items) = items else {
        let because = "the ratio is taken over items";
        return Err(LossError::Missing { function: F, argument: "items", because });
    };
    check::shape(F, "items", &token.size(), items)?;
    if items.kind() != Kind::Int64 {
        let (expected, got) = ("Int64", items.kind());
        return Err(LossError::Kind { function: F, argument: "items", expected, got });
    }
    check::parameter(F, "items", count as f64, count > 0, "above 0")?;
    let bins = count + 1;
    let sequence = rows.sequence_of(token);
    let bin = (sequence * bins + items.clamp(0, count)).reshape([-1]);
    let flat = |values: &Tensor| values.reshape([-1]);
    let sequences = rows.sequences(token);
    let zeros = Tensor::zeros([sequences * bins], (token.kind(), token.device()));
    let sums = zeros.index_add(0, &bin, &flat(token));
    let counts = zeros.index_add(0, &bin, &flat(&m.mask.to_kind(token.kind())));
    let means = sums / counts.clamp_min(1.0);
    Ok(means.index_select(0, &bin).reshape(token.size()))
}
