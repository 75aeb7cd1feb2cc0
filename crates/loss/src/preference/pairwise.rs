//! The reward model's ranking loss (Bradley-Terry).

use std::str::FromStr;

use tch::{Kind, Tensor};

use crate::preference::token_means::{TokenMeans, at_ends};
use crate::{LossError, check};

/// Settings of the reward-model loss.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Pairwise {
    /// Weight of the mean square of all scores, which keeps them near 0. Default 0.
    pub regularization: f64,
}

/// A ranking loss with its counts; all of it adds up over micro-batches.
#[derive(Debug)]
pub struct PairwiseTerms {
    /// This batch's contribution, a scalar with gradients to the scores.
    pub loss: Tensor,
    /// Pairs in this batch.
    pub pairs: usize,
    /// Pairs whose better answer has the strictly higher score.
    pub correct_pairs: usize,
    /// Sum over pairs of better score - worse score.
    pub margin_sum: f64,
}

/// safe-rlhf's names of the reward model's loss.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum PairwiseLossType {
    /// `sequence-wise`: [`pairwise`], on end scores.
    #[default]
    SequenceWise,
    /// `token-wise`: [`pairwise_tokens`].
    TokenWise,
}

impl FromStr for PairwiseLossType {
    type Err = LossError;

    fn from_str(name: &str) -> Result<Self, LossError> {
        match name {
            "sequence-wise" => Ok(Self::SequenceWise),
            "token-wise" => Ok(Self::TokenWise),
            other => Err(LossError::UnknownName {
                what: "reward loss type",
                got: other.to_owned(),
                expected: "sequence-wise, token-wise",
            }),
        }
    }
}

/// `sum_p -logsigmoid(b_p - w_p) / P + reg * sum_p (b_p^2 + w_p^2) / (2 P)`.
///
/// Source: safe-rlhf `RewardTrainer.loss`, sequence-wise.
///
/// `better` and `worse` are `[p]`, the end scores of this micro-batch's pairs; `pairs` is P, the
/// number of pairs of the whole batch. Gradients flow to both.
///
/// # Errors
/// [`LossError::Shape`], [`LossError::Kind`] for arguments that do not fit,
/// [`LossError::Empty`] for `pairs` = 0, [`LossError::Parameter`] for a negative regularisation,
/// [`LossError::NonFinite`] for a loss that is no number.
pub fn pairwise(
    spec: &Pairwise,
    better: &Tensor,
    worse: &Tensor,
    pairs: usize,
) -> Result<PairwiseTerms, LossError> {
    ranked("pairwise", spec, better, worse, None, pairs)
}

/// [`pairwise`] with `-logsigmoid(b_p - w_p - m_p)`: the better answer is to win by a margin.
///
/// Source: LightRFT `PairWiseLoss` (models/loss.py); Llama 2, section 3.2.2. `margin` is `[p]`;
/// no gradient flows to it. Accuracy and margin sum are those of the plain difference.
///
/// # Errors
/// As [`pairwise`].
pub fn pairwise_with_margin(
    spec: &Pairwise,
    better: &Tensor,
    worse: &Tensor,
    margin: &Tensor,
    pairs: usize,
) -> Result<PairwiseTerms, LossError> {
    ranked("pairwise_with_margin", spec, better, worse, Some(margin), pairs)
}

fn ranked(
    function: &'static str,
    spec: &Pairwise,
    better: &Tensor,
    worse: &Tensor,
    margin: Option<&Tensor>,
    pairs: usize,
) -> Result<PairwiseTerms, LossError> {
    check_pairs(function, spec.regularization, better, worse, pairs)?;
    if better.dim() != 1 {
        let got = better.size();
        return Err(LossError::Rank { function, argument: "better", expected: "[P]", got });
    }
    let kind = check::maths_kind(better);
    let (better, worse) = (better.to_kind(kind), worse.to_kind(kind));
    let whole = pairs as f64;
    let mut difference = &better - &worse;
    if let Some(margin) = margin {
        check::float(function, "margin", margin)?;
        check::shape(function, "margin", &better.size(), margin)?;
        difference -= margin.detach().to_kind(kind);
    }
    let mut loss = -difference.log_sigmoid().sum(kind) / whole;
    if spec.regularization > 0.0 {
        let squares = better.square().sum(kind) + worse.square().sum(kind);
        loss += squares * (spec.regularization / (2.0 * whole));
    }
    counted(function, loss, &better, &worse)
}

/// Per-token scores of pairs, for the token-wise loss.
#[derive(Debug, Clone, Copy)]
pub struct TokenPairs<'a> {
    /// Scores of the better answers, `[P, T]`.
    pub better: &'a Tensor,
    /// Scores of the worse answers, `[P, T]`.
    pub worse: &'a Tensor,
    /// For each pair the first token at which the answers differ and the last token of the longer
    /// one, both within `0..T`.
    pub spans: &'a [(i64, i64)],
    /// Index of each better answer's last token.
    pub better_end: &'a [i64],
    /// Index of each worse answer's last token.
    pub worse_end: &'a [i64],
}

/// Per pair the mean over its span of `-logsigmoid(b_t - w_t)`, plus `reg` times the mean square
/// of the span's scores; then the mean over pairs.
///
/// Source: safe-rlhf `RewardTrainer.loss`, token-wise. Positions after the shorter answer's end
/// take part, with whatever score the model gave the padding, as in the reference.
///
/// Gradients flow to the scores. Accuracy and margin are those of the end scores.
///
/// # Errors
/// As [`pairwise`]; [`LossError::Span`] for a span that is empty or leaves the row.
pub fn pairwise_tokens(
    spec: &Pairwise,
    scores: TokenPairs<'_>,
    pairs: usize,
) -> Result<PairwiseTerms, LossError> {
    const F: &str = "pairwise_tokens";
    let TokenPairs { better, worse, spans, better_end, worse_end } = scores;
    check_pairs(F, spec.regularization, better, worse, pairs)?;
    let means = TokenMeans::new(F, better, worse, spans)?;
    let mut pair = -means.of(&(&means.better - &means.worse).log_sigmoid());
    if spec.regularization > 0.0 {
        pair += means.square() * spec.regularization;
    }
    let kind = pair.kind();
    let loss = pair.sum(kind) / pairs as f64;
    counted(F, loss, &at_ends(F, better, better_end)?, &at_ends(F, worse, worse_end)?)
}

pub(super) fn check_pairs(
    function: &'static str,
    regularization: f64,
    better: &Tensor,
    worse: &Tensor,
    pairs: usize,
) -> Result<(), LossError> {
    check::float(function, "better", better)?;
    check::float(function, "worse", worse)?;
    check::shape(function, "worse", &better.size(), worse)?;
    let weight = regularization;
    check::parameter(function, "regularization", weight, weight >= 0.0, "at least 0")?;
    if pairs == 0 {
        return Err(LossError::Empty { function, what: "pairs" });
    }
    Ok(())
}

/// Reads the counts in one transfer from the device and refuses a loss that is no number.
fn counted(
    function: &'static str,
    loss: Tensor,
    better_p: &Tensor,
    worse_p: &Tensor,
) -> Result<PairwiseTerms, LossError> {
    let margin = (better_p - worse_p).detach().to_kind(Kind::Double);
    let figures = Tensor::stack(
        &[
            loss.detach().to_kind(Kind::Double),
            margin.gt(0.0).sum(Kind::Double),
            margin.sum(Kind::Double),
        ],
        0,
    );
    check::finite(function, "the loss", figures.double_value(&[0]))?;
    Ok(PairwiseTerms {
        loss,
        pairs: better_p.size()[0] as usize,
        correct_pairs: figures.double_value(&[1]) as usize,
        margin_sum: figures.double_value(&[2]),
    })
}
