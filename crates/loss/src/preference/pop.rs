//! HC-RLHF's paired-off-policy losses ("PoP"): the gap of a preferred pair is to exceed that of
//! an unpreferred pair of answers to the same prompt.

use std::f64::consts::LN_2;

use tch::{Kind, Tensor};

use crate::preference::values::{AnswerRewards, PairValues};
use crate::{LossError, check};

/// Settings of [`pop_fixed`].
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct PopFixed {
    /// Scale of the implicit reward, at least 0. Default 0.1.
    pub beta: f64,
    /// Least margin, before beta; may be infinite: no bound. Default 0 (HC-RLHF `--margin_min`).
    pub margin_min: f64,
    /// Greatest margin, before beta. Default 10 (HC-RLHF `--margin_max`). Where it is below
    /// `margin_min` it wins, as in torch.
    pub margin_max: f64,
}

impl Default for PopFixed {
    fn default() -> Self {
        Self { beta: 0.1, margin_min: 0.0, margin_max: 10.0 }
    }
}

/// Settings of [`pop`].
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Pop {
    /// Scale of the implicit reward, at least 0. Default 0.1.
    pub beta: f64,
    /// Weight of the constraint, at least 0. Dual ascent moves it between steps, as a Lagrange
    /// multiplier on the mean of [`PopTerms::constraint`] over a window of pairs (HC-RLHF's first
    /// two steps only collect that window). Default 1.
    pub lambda: f64,
}

impl Default for Pop {
    fn default() -> Self {
        Self { beta: 0.1, lambda: 1.0 }
    }
}

/// A loss on two kinds of pairs. Loss and counts add up over micro-batches.
#[derive(Debug)]
pub struct PopTerms {
    /// This batch's contribution, a scalar.
    pub loss: Tensor,
    /// Implicit rewards of the preferred pairs' answers.
    pub preferred: AnswerRewards,
    /// Implicit rewards of the unpreferred pairs' answers.
    pub unpreferred: AnswerRewards,
    /// `[P]` how far each pair of pairs is from the constraint:
    /// `-logsigmoid(beta (gap_pref - gap_unpref)) - ln 2`, at most 0 where the preferred pair's
    /// gap is the larger. Without gradients.
    pub constraint: Tensor,
    /// Pairs of pairs in this batch.
    pub pairs: usize,
    /// Preferred pairs whose better answer has the strictly higher reward.
    pub correct_preferred: usize,
    /// Unpreferred pairs whose better answer has the strictly higher reward.
    pub correct_unpreferred: usize,
    /// Pairs of pairs whose preferred gap is strictly the larger.
    pub correct_pop: usize,
}

impl PopTerms {
    /// `[P]` mean reward of the four answers.
    pub fn mean_reward(&self) -> Tensor {
        (self.preferred.sum() + self.unpreferred.sum()) / 4.0
    }

    /// `[P]` margin of the preferred pair less that of the unpreferred.
    pub fn margin(&self) -> Tensor {
        self.preferred.margin() - self.unpreferred.margin()
    }
}

/// `mean_p -logsigmoid(beta (gap_pref - clamp(sg(gap_unpref), min, max)))`.
///
/// Source: HC-RLHF `DPO_PoP_Fixed_Trainer.loss`; with the unpreferred pairs' values under a moving
/// average of the policy, `DPO_PoP_Fixed_EMA_Trainer.loss`; with [`PairValues::mean_log_probs`],
/// `SimPO_PoP_Fixed_EMA_Trainer.loss`. Note that beta scales the margin too, unlike that of
/// [`crate::preference::Margin`].
///
/// Values are `[p]`, pair by pair; `pairs` is P, counted over the whole batch. Gradients flow to
/// the preferred pairs only.
///
/// # Errors
/// As [`crate::preference::preference`]; [`LossError::Parameter`] for bounds that are no numbers.
pub fn pop_fixed(
    spec: &PopFixed,
    preferred: &PairValues,
    unpreferred: &PairValues,
    pairs: usize,
) -> Result<PopTerms, LossError> {
    const F: &str = "pop_fixed";
    check_values(F, spec.beta, preferred, unpreferred, pairs)?;
    for (name, bound) in [("margin_min", spec.margin_min), ("margin_max", spec.margin_max)] {
        if bound.is_nan() {
            let expected = "a number or an infinity";
            return Err(LossError::Parameter {
                function: F,
                parameter: name,
                value: bound,
                expected,
            });
        }
    }
    let gap = preferred.gap();
    let kind = gap.kind();
    let margin = unpreferred.gap().detach().to_kind(kind);
    // torch's clamp: where min is above max, max is the result.
    let margin = margin.clamp(spec.margin_min, spec.margin_max);
    let loss = -((gap - margin) * spec.beta).log_sigmoid().sum(kind) / pairs as f64;
    counted(F, loss, spec.beta, preferred, unpreferred)
}

/// `mean_p [1/2 (l(gap_pref) + l(gap_unpref)) + lambda (l(gap_pref - gap_unpref) - ln 2)]` with
/// `l(h) = -logsigmoid(beta h)`.
///
/// Source: HC-RLHF `DPO_PoP_Trainer.loss`. Values are `[p]`, pair by pair; `pairs` is P, counted
/// over the whole batch. Gradients flow to both kinds of pairs, not to lambda.
///
/// # Errors
/// As [`crate::preference::preference`]; [`LossError::Parameter`] for a negative lambda.
pub fn pop(
    spec: &Pop,
    preferred: &PairValues,
    unpreferred: &PairValues,
    pairs: usize,
) -> Result<PopTerms, LossError> {
    const F: &str = "pop";
    check_values(F, spec.beta, preferred, unpreferred, pairs)?;
    check::parameter(F, "lambda", spec.lambda, spec.lambda >= 0.0, "at least 0")?;
    let of = |gap: &Tensor| -(gap * spec.beta).log_sigmoid();
    let (gap, other) = (preferred.gap(), unpreferred.gap());
    let excess = of(&(&gap - &other)) - LN_2;
    let loss_p = (of(&gap) + of(&other)) * 0.5 + excess * spec.lambda;
    let kind = loss_p.kind();
    counted(F, loss_p.sum(kind) / pairs as f64, spec.beta, preferred, unpreferred)
}

fn check_values(
    function: &'static str,
    beta: f64,
    preferred: &PairValues,
    unpreferred: &PairValues,
    pairs: usize,
) -> Result<(), LossError> {
    preferred.check(function)?;
    unpreferred.check(function)?;
    check::shape(function, "unpreferred", &preferred.better.size(), &unpreferred.better)?;
    check::parameter(function, "beta", beta, beta >= 0.0, "at least 0")?;
    if pairs == 0 {
        return Err(LossError::Empty { function, what: "pairs" });
    }
    Ok(())
}

/// Reads the counts in one transfer from the device and refuses a loss that is no number.
fn counted(
    function: &'static str,
    loss: Tensor,
    beta: f64,
    preferred: &PairValues,
    unpreferred: &PairValues,
) -> Result<PopTerms, LossError> {
    let (preferred, unpreferred) = (preferred.rewards(beta), unpreferred.rewards(beta));
    let excess = preferred.margin() - unpreferred.margin();
    let constraint = -excess.log_sigmoid() - LN_2;
    let wider = preferred.margin().gt_tensor(&unpreferred.margin()).sum(Kind::Double);
    let figures = Tensor::stack(
        &[loss.detach().to_kind(Kind::Double), preferred.correct(), unpreferred.correct(), wider],
        0,
    );
    check::finite(function, "the loss", figures.double_value(&[0]))?;
    let count = |at: i64| figures.double_value(&[at]) as usize;
    Ok(PopTerms {
        loss,
        pairs: preferred.better.size()[0] as usize,
        preferred,
        unpreferred,
        constraint,
        correct_preferred: count(1),
        correct_unpreferred: count(2),
        correct_pop: count(3),
    })
}
