//! Direct preference losses: DPO, its label-smoothed and IPO forms, SimPO, with margins.

use tch::{Kind, Tensor};

use crate::preference::values::{AnswerRewards, PairValues};
use crate::{LossError, check};

/// By how much `beta * gap` is to exceed 0 before the loss is small.
#[derive(Debug, Clone, Copy)]
pub enum Margin<'a> {
    /// The same for all pairs. HC-RLHF `--margin`, default 0.
    Scalar(f64),
    /// `[P]`, one a pair, e.g. the difference of two scores (HC-RLHF's adaptive margin). No
    /// gradient flows to it.
    PerPair(&'a Tensor),
    /// `[M]`: HC-RLHF subtracts the **whole** margin vector from every pair, so that its loss is
    /// the mean over all P x M combinations. For comparison with it only.
    CompatAllPairs(&'a Tensor),
}

/// What is asked of the gap `h` between better and worse.
#[derive(Debug, Clone, Copy)]
pub enum Objective<'a> {
    /// `-(1 - s) logsigmoid(beta h - m) - s logsigmoid(-(beta h - m))`: DPO and SimPO, with
    /// label smoothing s (conservative DPO) and margin m.
    Logistic {
        /// Assumed share of pairs that are labelled the wrong way round, in `[0, 1]`.
        label_smoothing: f64,
        /// The margin.
        margin: Margin<'a>,
    },
    /// `(h - 1 / (2 beta))^2`: IPO.
    Ipo,
}

/// Settings of a preference loss.
#[derive(Debug, Clone, Copy)]
pub struct Preference<'a> {
    /// Scale of the implicit reward. At least 0; above 0 for IPO. Default 0.1 (DPO paper;
    /// safe-rlhf 0.02; SimPO's paper about 2).
    pub beta: f64,
    /// Default logistic without smoothing or margin.
    pub objective: Objective<'a>,
}

impl Default for Preference<'_> {
    fn default() -> Self {
        let objective = Objective::Logistic { label_smoothing: 0.0, margin: Margin::Scalar(0.0) };
        Self { beta: 0.1, objective }
    }
}

impl<'a> Preference<'a> {
    /// The logistic objective with a margin and no smoothing.
    #[must_use]
    pub fn with_margin(beta: f64, margin: Margin<'a>) -> Self {
        Self { beta, objective: Objective::Logistic { label_smoothing: 0.0, margin } }
    }
}

/// A preference loss with what it was made of. Loss and counts add up over micro-batches.
#[derive(Debug)]
pub struct PreferenceTerms {
    /// This batch's contribution, a scalar with gradients to the policy's log-probs.
    pub loss: Tensor,
    /// Implicit rewards `beta * value`.
    pub rewards: AnswerRewards,
    /// Pairs in this batch.
    pub pairs: usize,
    /// Pairs whose better answer has the strictly higher reward.
    pub correct_pairs: usize,
}

/// `sum_p l(h_p) / P` of the gap `h = better - worse`, with l by [`Objective`].
///
/// Sources: Rafailov et al. 2023 eq. 7 (DPO); Mitchell 2023 eq. 3 (smoothing); Azar et al. 2023
/// eq. 17 (IPO); Meng et al. 2024 eq. 6 (SimPO); safe-rlhf and HC-RLHF `DPOTrainer.loss`,
/// `SimPOTrainer.loss`; LightRFT `DPOLoss`.
///
/// `values` are this micro-batch's, of [`PairValues::log_ratios`] for DPO and
/// [`PairValues::mean_log_probs`] for SimPO; `pairs` is P, the pairs of the whole batch. Gradients
/// flow to `values`.
///
/// # Errors
/// [`LossError::Shape`], [`LossError::Rank`], [`LossError::Kind`] for arguments that do not fit,
/// [`LossError::Empty`] for `pairs` = 0 or an empty margin, [`LossError::Parameter`] for beta or
/// smoothing out of range, [`LossError::NonFinite`] for a loss that is no number.
pub fn preference(
    spec: &Preference<'_>,
    values: &PairValues,
    pairs: usize,
) -> Result<PreferenceTerms, LossError> {
    const F: &str = "preference";
    let here = values.check(F)?;
    let beta = spec.beta;
    check::parameter(F, "beta", beta, beta >= 0.0, "at least 0")?;
    if pairs == 0 {
        return Err(LossError::Empty { function: F, what: "pairs" });
    }
    let gap = values.gap();
    let kind = gap.kind();
    let loss_p = match spec.objective {
        Objective::Ipo => {
            check::parameter(F, "beta", beta, beta > 0.0, "above 0 for IPO")?;
            (gap - 0.5 / beta).square()
        }
        Objective::Logistic { label_smoothing, margin } => {
            let logit = over_margin(F, gap * beta, margin)?;
            logistic(F, &logit, label_smoothing)?
        }
    };
    let loss = loss_p.sum(kind) / pairs as f64;
    let rewards = values.rewards(beta);
    let figures = Tensor::stack(&[loss.detach().to_kind(Kind::Double), rewards.correct()], 0);
    check::finite(F, "the loss", figures.double_value(&[0]))?;
    let correct_pairs = figures.double_value(&[1]) as usize;
    Ok(PreferenceTerms { loss, rewards, pairs: here, correct_pairs })
}

/// `[P]` logits less their margin, or `[P, M]` in the compat form.
fn over_margin(
    function: &'static str,
    logit_p: Tensor,
    margin: Margin<'_>,
) -> Result<Tensor, LossError> {
    match margin {
        Margin::Scalar(margin) => {
            check::parameter(function, "margin", margin, true, "a finite number")?;
            Ok(logit_p - margin)
        }
        Margin::PerPair(margin) => {
            check::float(function, "margin", margin)?;
            check::shape(function, "margin", &logit_p.size(), margin)?;
            Ok(&logit_p - margin.detach().to_kind(logit_p.kind()))
        }
        Margin::CompatAllPairs(margin) => {
            check::float(function, "margin", margin)?;
            if margin.numel() == 0 {
                return Err(LossError::Empty { function, what: "margins" });
            }
            let row = margin.detach().to_kind(logit_p.kind()).reshape([1, -1]);
            Ok(logit_p.unsqueeze(-1) - row)
        }
    }
}

/// `[P]` logistic losses; a second dimension, of the compat margins, is averaged over.
fn logistic(function: &'static str, logit: &Tensor, smoothing: f64) -> Result<Tensor, LossError> {
    let holds = (0.0..=1.0).contains(&smoothing);
    check::parameter(function, "label_smoothing", smoothing, holds, "in [0, 1]")?;
    let mut loss = -logit.log_sigmoid() * (1.0 - smoothing);
    if smoothing > 0.0 {
        loss -= (-logit).log_sigmoid() * smoothing;
    }
    if loss.dim() == 2 {
        let kind = loss.kind();
        loss = loss.mean_dim([-1i64].as_slice(), false, kind);
    }
    Ok(loss)
}
