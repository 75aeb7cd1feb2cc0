//! From per-token losses to one number: how tokens and sequences are weighted.
//!
//! Source: verl `agg_loss` (core_algos.py), DAPO section 3.3 for the token mean, Dr. GRPO for the
//! constant normaliser.

use std::str::FromStr;

use tch::{Kind, Tensor};

use crate::{LossError, check};

/// How per-token losses `l` under mask `m` become one loss. `n_b` is the number of masked-in
/// tokens of sequence b.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Aggregation {
    /// `sum(m l) / sum(m)`: every token weighs the same.
    #[default]
    TokenMean,
    /// `sum_b sum_t(m l) / B'`, B' the number of sequences with a token.
    SeqMeanTokenSum,
    /// `sum_b (sum_t(m l) / n_b) / B'`: every sequence weighs the same.
    SeqMeanTokenMean,
    /// `sum(m l) / norm_tokens`: a constant divisor, so the length of a response has no effect
    /// on the weight of its tokens.
    SeqMeanTokenSumNorm,
}

impl FromStr for Aggregation {
    type Err = LossError;

    fn from_str(name: &str) -> Result<Self, LossError> {
        match name {
            "token-mean" => Ok(Self::TokenMean),
            "seq-mean-token-sum" => Ok(Self::SeqMeanTokenSum),
            "seq-mean-token-mean" => Ok(Self::SeqMeanTokenMean),
            "seq-mean-token-sum-norm" => Ok(Self::SeqMeanTokenSumNorm),
            other => Err(LossError::UnknownName {
                what: "aggregation",
                got: other.to_owned(),
                expected: "token-mean, seq-mean-token-sum, seq-mean-token-mean, \
                           seq-mean-token-sum-norm",
            }),
        }
    }
}

impl Aggregation {
    /// From TRL's `loss_type`: `bnpo` (the token mean), `grpo` (the mean over each sequence, then
    /// over all sequences) and `dr_grpo` (a constant divisor: sequences times the longest
    /// completion).
    ///
    /// # Errors
    /// [`LossError::UnknownName`].
    pub fn from_trl(loss_type: &str) -> Result<Self, LossError> {
        match loss_type {
            "bnpo" => Ok(Self::TokenMean),
            "grpo" => Ok(Self::SeqMeanTokenMean),
            "dr_grpo" => Ok(Self::SeqMeanTokenSumNorm),
            other => Err(LossError::UnknownName {
                what: "loss type",
                got: other.to_owned(),
                expected: "bnpo, grpo, dr_grpo",
            }),
        }
    }
}

/// How the tokens of a batch are laid out.
#[derive(Debug, Clone, Copy)]
pub enum Layout<'a> {
    /// Tensors are `[B, T]`, one row a sequence.
    Padded,
    /// Tensors are `[N]`; sequence b holds the tokens `cu_seqlens[b] .. cu_seqlens[b + 1]`
    /// (`B + 1` bounds, the first 0, the last N).
    Packed {
        /// The bounds.
        cu_seqlens: &'a [i64],
    },
}

/// What the losses of a batch are divided by, counted over the **whole** batch (all
/// micro-batches, all ranks), so that contributions add up.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Denominators {
    /// Masked-in tokens.
    pub tokens: f64,
    /// Sequences with at least one masked-in token.
    pub sequences: f64,
    /// Divisor of [`Aggregation::SeqMeanTokenSumNorm`]; verl's default is the padded width T.
    pub norm_tokens: f64,
    /// Added to each sequence's token count in [`Aggregation::SeqMeanTokenMean`]. 0 (the
    /// default) is exact; verl adds 1e-8. A sequence without tokens counts nothing either way.
    pub row_epsilon: f64,
}

impl Denominators {
    /// What verl adds to the token count of a row.
    pub const VERL_ROW_EPSILON: f64 = 1e-8;

    /// From the number of masked-in tokens of each sequence of the whole batch.
    #[must_use]
    pub fn from_token_counts(counts: impl IntoIterator<Item = usize>, norm_tokens: f64) -> Self {
        let mut tokens = 0usize;
        let mut sequences = 0usize;
        for count in counts {
            tokens += count;
            sequences += usize::from(count > 0);
        }
        Self { tokens: tokens as f64, sequences: sequences as f64, norm_tokens, row_epsilon: 0.0 }
    }

    /// From a mask that covers the whole batch.
    ///
    /// # Errors
    /// [`LossError::Rank`] or [`LossError::Bounds`] where mask and layout disagree.
    pub fn from_mask(
        mask: &Tensor,
        layout: Layout<'_>,
        norm_tokens: f64,
    ) -> Result<Self, LossError> {
        let mask = check::mask("Denominators::from_mask", &mask.size(), mask)?;
        let per_sequence = Rows::new("Denominators::from_mask", &mask, layout)?.token_counts(&mask);
        let tokens = per_sequence.sum(Kind::Double).double_value(&[]);
        let sequences = per_sequence.gt(0.0).sum(Kind::Double).double_value(&[]);
        Ok(Self { tokens, sequences, norm_tokens, row_epsilon: 0.0 })
    }

    /// The same with tokens and sequences at least `floor`, so that a batch with nothing to
    /// average over contributes 0 instead of [`LossError::Empty`] (TRL: 1; LightRFT: 1e-6).
    #[must_use]
    pub fn with_floor(self, floor: f64) -> Self {
        Self { tokens: self.tokens.max(floor), sequences: self.sequences.max(floor), ..self }
    }

    /// The same with sequences counted whether or not they have a token (LightRFT, TRL, GMPO).
    #[must_use]
    pub fn with_all_sequences(self, sequences: usize) -> Self {
        Self { sequences: sequences as f64, ..self }
    }

    /// The same with `row_epsilon` set.
    #[must_use]
    pub fn with_row_epsilon(self, row_epsilon: f64) -> Self {
        Self { row_epsilon, ..self }
    }
}

/// The weight of each token's loss, same shape as `mask`, 0 outside it, no gradient:
/// `loss = sum(weights * l)`.
///
/// `mask` is `[B, T]` or `[N]` as `layout` says, of any kind (non-zero means "in"). The result is
/// of kind `kind`.
///
/// # Errors
/// [`LossError::Empty`] when the divisor that `aggregation` needs is 0 over the whole batch,
/// [`LossError::Parameter`] for a `norm_tokens` that is needed and not above 0,
/// [`LossError::Rank`], [`LossError::Bounds`] for a layout that does not fit.
pub fn token_weights(
    aggregation: Aggregation,
    mask: &Tensor,
    layout: Layout<'_>,
    denominators: &Denominators,
    kind: Kind,
) -> Result<Tensor, LossError> {
    const F: &str = "token_weights";
    let mask = check::mask(F, &mask.size(), mask)?;
    let rows = Rows::new(F, &mask, layout)?;
    let nonzero = |what, value: f64| {
        if value > 0.0 { Ok(value) } else { Err(LossError::Empty { function: F, what }) }
    };
    let ones = mask.to_kind(kind);
    match aggregation {
        Aggregation::TokenMean => Ok(ones / nonzero("tokens", denominators.tokens)?),
        Aggregation::SeqMeanTokenSum => Ok(ones / nonzero("sequences", denominators.sequences)?),
        Aggregation::SeqMeanTokenMean => {
            let sequences = nonzero("sequences", denominators.sequences)?;
            // A row without tokens has only zeros to divide, so any divisor above 0 does.
            let counts = rows.token_counts(&mask).to_kind(kind).clamp_min(1.0);
            let divisor = rows.spread(&(counts + denominators.row_epsilon)) * sequences;
            Ok(ones / divisor)
        }
        Aggregation::SeqMeanTokenSumNorm => {
            let norm = denominators.norm_tokens;
            check::parameter(F, "norm_tokens", norm, norm > 0.0, "above 0")?;
            Ok(ones / norm)
        }
    }
}

/// `sum(weights * l)` with [`token_weights`]: this batch's contribution to the loss, a scalar
/// that carries gradients to `loss`. Values of `loss` outside the mask do not matter, NaN
/// included.
///
/// # Errors
/// As [`token_weights`], and [`LossError::Shape`] when `mask` differs from `loss` in shape.
pub fn aggregate(
    aggregation: Aggregation,
    loss: &Tensor,
    mask: &Tensor,
    layout: Layout<'_>,
    denominators: &Denominators,
) -> Result<Tensor, LossError> {
    check::float("aggregate", "loss", loss)?;
    let mask = check::mask("aggregate", &loss.size(), mask)?;
    let kind = check::maths_kind(loss);
    let weights = token_weights(aggregation, &mask, layout, denominators, kind)?;
    let inside = loss.to_kind(kind).masked_fill(&mask.logical_not(), 0.0);
    Ok((inside * weights).sum(kind))
}

/// Sums over sequences and back, in either layout.
pub(crate) enum Rows {
    Padded,
    /// `[N]` index of each token's sequence, and the B + 1 bounds.
    Packed(Tensor, Vec<i64>),
}

impl Rows {
    /// Checks `layout` against a tensor of the tokens' shape.
    pub(crate) fn new(
        function: &'static str,
        tokens: &Tensor,
        layout: Layout<'_>,
    ) -> Result<Self, LossError> {
        let got = tokens.size();
        let rank =
            |expected| LossError::Rank { function, argument: "mask", expected, got: got.clone() };
        match layout {
            Layout::Padded if got.len() == 2 => Ok(Self::Padded),
            Layout::Padded => Err(rank("[B, T]")),
            Layout::Packed { .. } if got.len() != 1 => Err(rank("[N]")),
            Layout::Packed { cu_seqlens } => {
                let rises = cu_seqlens.windows(2).all(|w| w[0] <= w[1]);
                if !rises || cu_seqlens.first() != Some(&0) || cu_seqlens.last() != Some(&got[0]) {
                    let bounds = cu_seqlens.to_vec();
                    return Err(LossError::Bounds { function, got: bounds, tokens: got[0] });
                }
                let mut index = Vec::with_capacity(got[0] as usize);
                for (b, w) in cu_seqlens.windows(2).enumerate() {
                    index.resize(w[1] as usize, b as i64);
                }
                let index = Tensor::from_slice(&index).to_device(tokens.device());
                Ok(Self::Packed(index, cu_seqlens.to_vec()))
            }
        }
    }

    /// Sum of `values` over each sequence, `[B]`, in the kind of `values`.
    pub(crate) fn sums(&self, values: &Tensor) -> Tensor {
        match self {
            Self::Padded => values.sum_dim_intlist(-1, false, values.kind()),
            Self::Packed(index, bounds) => {
                Tensor::zeros([bounds.len() as i64 - 1], (values.kind(), values.device()))
                    .index_add(0, index, values)
            }
        }
    }

    /// Masked-in tokens of each sequence, `[B]`, double (exact far beyond any batch).
    pub(crate) fn token_counts(&self, mask: &Tensor) -> Tensor {
        self.sums(&mask.to_kind(Kind::Double))
    }

    /// `[B]` values to the shape of the tokens (broadcast rows, or one value a packed token).
    pub(crate) fn spread(&self, per_sequence: &Tensor) -> Tensor {
        match self {
            Self::Padded => per_sequence.unsqueeze(-1),
            Self::Packed(index, _) => per_sequence.index_select(0, index),
        }
    }

    /// Mean of `values` over the masked-in tokens of each sequence, `[B]`; 0 without tokens.
    /// `values` is 0 outside the mask; `epsilon` is added to the count.
    pub(crate) fn means(&self, values: &Tensor, mask: &Tensor, epsilon: f64) -> Tensor {
        let counts = self.token_counts(mask).to_kind(values.kind());
        // A sequence without tokens has only zeros to divide, so any divisor above 0 does.
        let divisor = if epsilon > 0.0 { counts + epsilon } else { counts.clamp_min(1.0) };
        self.sums(values) / divisor
    }

    /// B, given a tensor of the tokens' shape.
    pub(crate) fn sequences(&self, tokens: &Tensor) -> i64 {
        match self {
            Self::Padded => tokens.size()[0],
            Self::Packed(_, bounds) => bounds.len() as i64 - 1,
        }
    }

    /// Each token's sequence, i64 of the tokens' shape.
    pub(crate) fn sequence_of(&self, tokens: &Tensor) -> Tensor {
        match self {
            Self::Padded => {
                let rows = Tensor::arange(tokens.size()[0], (Kind::Int64, tokens.device()));
                rows.unsqueeze(-1).expand_as(tokens)
            }
            Self::Packed(index, _) => index.shallow_clone(),
        }
    }

    /// The tokens of each sequence of a tensor `[B, T]` or `[N]`: B views.
    pub(crate) fn views(&self, tokens: &Tensor) -> Vec<Tensor> {
        match self {
            Self::Padded => (0..tokens.size()[0]).map(|b| tokens.get(b)).collect(),
            Self::Packed(_, bounds) => {
                bounds.windows(2).map(|w| tokens.narrow(0, w[0], w[1] - w[0])).collect()
            }
        }
    }
}
