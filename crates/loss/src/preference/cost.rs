//! The cost model's loss: ranking as in the reward model, and the sign of every answer's cost.

use std::str::FromStr;

use tch::{Kind, Tensor};

use crate::preference::pairwise::{TokenPairs, check_pairs};
use crate::preference::token_means::{TokenMeans, at_ends};
use crate::{LossError, check};

/// Settings of the cost model's loss.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Cost {
    /// Weight of the mean square of all costs, which keeps them near 0. Default 0 (safe-rlhf; its
    /// scripts use 0.001).
    pub regularization: f64,
    /// Are costs of safe answers pushed below 0 and of unsafe ones above? Default true. Without
    /// it only the ranking remains (HC-RLHF `sequence-wise-bt`).
    pub sign_terms: bool,
}

impl Default for Cost {
    fn default() -> Self {
        Self { regularization: 0.0, sign_terms: true }
    }
}

/// The references' names of the cost model's loss.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum CostLossType {
    /// `sequence-wise`: [`cost`], on end scores.
    #[default]
    SequenceWise,
    /// `token-wise`: [`cost_tokens`].
    TokenWise,
    /// HC-RLHF's `sequence-wise-bt`: [`cost`] without sign terms.
    SequenceWiseBt,
}

impl FromStr for CostLossType {
    type Err = LossError;

    fn from_str(name: &str) -> Result<Self, LossError> {
        match name {
            "sequence-wise" => Ok(Self::SequenceWise),
            "token-wise" => Ok(Self::TokenWise),
            "sequence-wise-bt" => Ok(Self::SequenceWiseBt),
            other => Err(LossError::UnknownName {
                what: "cost loss type",
                got: other.to_owned(),
                expected: "sequence-wise, token-wise, sequence-wise-bt",
            }),
        }
    }
}

/// Which answers of a micro-batch's pairs are safe; true means that the cost should be below 0.
#[derive(Debug, Clone, Copy)]
pub struct SafetyLabels<'a> {
    /// Of the safer answers.
    pub safer: &'a [bool],
    /// Of the less safe answers.
    pub unsafer: &'a [bool],
}

/// A cost loss with its counts; all of it adds up over micro-batches.
#[derive(Debug)]
pub struct CostTerms {
    /// This batch's contribution, a scalar with gradients to the costs.
    pub loss: Tensor,
    /// Pairs in this batch.
    pub pairs: usize,
    /// Pairs whose less safe answer has the strictly higher cost.
    pub correct_pairs: usize,
    /// Answers (two a pair) whose cost has the sign of their label; 0 is no sign.
    pub correct_signs: usize,
}

/// `mean_p [-logsigmoid(u - s) - logsigmoid(y_s s) - logsigmoid(y_u u)] + reg * mean square`, with
/// s the safer answer's end cost, u the less safe one's, and y = -1 for safe, +1 for unsafe.
///
/// Source: safe-rlhf `CostTrainer.loss`, sequence-wise; HC-RLHF's `sequence-wise-bt` without the
/// sign terms.
///
/// `safer` and `unsafer` are `[p]`, the end costs of this micro-batch's pairs; `pairs` is P, the
/// number of pairs of the whole batch, which the sums are divided by. Gradients flow to both.
///
/// # Errors
/// [`LossError::Shape`], [`LossError::Rank`], [`LossError::Kind`] for arguments that do not fit,
/// [`LossError::Empty`] for `pairs` = 0, [`LossError::Parameter`] for a negative regularisation,
/// [`LossError::NonFinite`] for a loss that is no number.
pub fn cost(
    spec: &Cost,
    safer: &Tensor,
    unsafer: &Tensor,
    labels: SafetyLabels<'_>,
    pairs: usize,
) -> Result<CostTerms, LossError> {
    const F: &str = "cost";
    check_pairs(F, spec.regularization, unsafer, safer, pairs)?;
    if safer.dim() != 1 {
        let got = safer.size();
        return Err(LossError::Rank { function: F, argument: "safer", expected: "[P]", got });
    }
    let kind = check::maths_kind(safer);
    let (safer, unsafer) = (safer.to_kind(kind), unsafer.to_kind(kind));
    let signs = Signs::new(F, labels, &safer)?;
    let mut pair = -(&unsafer - &safer).log_sigmoid();
    if spec.sign_terms {
        pair -= (&signs.safer * &safer).log_sigmoid() + (&signs.unsafer * &unsafer).log_sigmoid();
    }
    if spec.regularization > 0.0 {
        pair += (safer.square() + unsafer.square()) * (0.5 * spec.regularization);
    }
    counted(F, pair.sum(kind) / pairs as f64, &safer, &unsafer, &signs)
}

/// The same terms, each the mean over the tokens in which the answers differ; then the mean over
/// pairs.
///
/// Source: safe-rlhf `CostTrainer.loss`, token-wise. `scores.better` holds the safer answers'
/// costs, `scores.worse` the others'. Positions after the shorter answer's end take part.
/// Counts are those of the end costs. Gradients flow to the costs within the spans.
///
/// # Errors
/// As [`cost`]; [`LossError::Span`] for a span that is empty or leaves the row.
pub fn cost_tokens(
    spec: &Cost,
    scores: TokenPairs<'_>,
    labels: SafetyLabels<'_>,
    pairs: usize,
) -> Result<CostTerms, LossError> {
    const F: &str = "cost_tokens";
    let TokenPairs { better: safer, worse: unsafer, spans, better_end, worse_end } = scores;
    check_pairs(F, spec.regularization, unsafer, safer, pairs)?;
    let means = TokenMeans::new(F, safer, unsafer, spans)?;
    let (safer_end, unsafer_end) =
        (at_ends(F, safer, better_end)?, at_ends(F, unsafer, worse_end)?);
    let signs = Signs::new(F, labels, &safer_end)?;
    let mut pair = -means.of(&(&means.worse - &means.better).log_sigmoid());
    if spec.sign_terms {
        pair -= means.of(&(signs.safer.unsqueeze(-1) * &means.better).log_sigmoid());
        pair -= means.of(&(signs.unsafer.unsqueeze(-1) * &means.worse).log_sigmoid());
    }
    if spec.regularization > 0.0 {
        pair += means.square() * spec.regularization;
    }
    let kind = pair.kind();
    counted(F, pair.sum(kind) / pairs as f64, &safer_end, &unsafer_end, &signs)
}

/// `[P]` signs that costs should have: -1 for safe, +1 for unsafe.
struct Signs {
    safer: Tensor,
    unsafer: Tensor,
}

impl Signs {
    fn new(
        function: &'static str,
        labels: SafetyLabels<'_>,
        like: &Tensor,
    ) -> Result<Self, LossError> {
        let of = |safe: &[bool], argument| {
            let signs: Vec<f64> = safe.iter().map(|s| if *s { -1.0 } else { 1.0 }).collect();
            let signs = Tensor::from_slice(&signs);
            check::shape(function, argument, &like.size(), &signs)?;
            Ok(signs.to_device(like.device()).to_kind(like.kind()))
        };
        Ok(Self {
            safer: of(labels.safer, "labels.safer")?,
            unsafer: of(labels.unsafer, "labels.unsafer")?,
        })
    }
}

/// Reads the counts in one transfer from the device and refuses a loss that is no number.
fn counted(
    function: &'static str,
    loss: Tensor,
    safer: &Tensor,
    unsafer: &Tensor,
    signs: &Signs,
) -> Result<CostTerms, LossError> {
    let above = |t: &Tensor| t.gt(0.0).sum(Kind::Double);
    let figures = Tensor::stack(
        &[
            loss.detach().to_kind(Kind::Double),
            unsafer.gt_tensor(safer).sum(Kind::Double),
            above(&(&signs.safer * safer)) + above(&(&signs.unsafer * unsafer)),
        ],
        0,
    );
    check::finite(function, "the loss", figures.double_value(&[0]))?;
    Ok(CostTerms {
        loss,
        pairs: safer.size()[0] as usize,
        correct_pairs: figures.double_value(&[1]) as usize,
        correct_signs: figures.double_value(&[2]) as usize,
    })
}
