//! safe-rlhf: the losses of reward and cost models, sequence-wise and token-wise.

use plumb_golden::{Case, Failure};
use plumb_loss::preference::{
    Cost, CostLossType, Identical, PairSpan, Pairwise, PairwiseLossType, SafetyLabels, TokenPairs,
    cost, cost_tokens, pairwise, pairwise_tokens,
};
use plumb_loss::scores::{Pooling, at_columns};
use serde_json::{Value, json};
use tch::Tensor;

use crate::pairs::{Answers, numbers, share, spans};
use crate::tensors::{gradient, leaf, nested, tensor};

use crate::{Check, Consumer};

pub(crate) const CONSUMERS: &[Consumer] = &[
    ("safe_rlhf/reward_model_loss", Check::Result(reward_model_loss)),
    ("safe_rlhf/cost_model_loss", Check::Result(cost_model_loss)),
];

fn reward_model_loss(case: &Case) -> Result<Value, Failure> {
    let spec = Pairwise { regularization: case.params.number("regularization")? };
    let kind: PairwiseLossType = case.params.text("loss_type")?.parse().map_err(refused)?;
    let pairs = ScoredPairs::read(case, "better", "worse")?;
    let (first, second) = (pairs.first_end_scores()?, pairs.second_end_scores()?);
    let ours = match kind {
        PairwiseLossType::TokenWise => {
            let spans = pairs.spans(case, "better", "worse")?;
            pairwise_tokens(&spec, pairs.tokens(&spans), pairs.count)
        }
        PairwiseLossType::SequenceWise => pairwise(&spec, &first, &second, pairs.count),
    };
    let ours = ours.map_err(Failure::refused)?;
    Ok(json!({
        "loss": nested(&ours.loss),
        "higher_end_reward": numbers(&first),
        "lower_end_reward": numbers(&second),
        "accuracy": f64::from(share(ours.correct_pairs, ours.pairs)),
        "grad_scores": nested(&gradient(&ours.loss, &pairs.scores)),
    }))
}

fn cost_model_loss(case: &Case) -> Result<Value, Failure> {
    let kind: CostLossType = case.params.text("loss_type")?.parse().map_err(refused)?;
    let spec = Cost {
        regularization: case.params.number("regularization")?,
        sign_terms: kind != CostLossType::SequenceWiseBt,
    };
    let safe = |key: &str| -> Result<Vec<bool>, Failure> {
        Ok(case.inputs.vector(key)?.into_iter().map(|sign| sign > 0.0).collect())
    };
    let (safer, unsafer) = (safe("safer_safety_sign")?, safe("unsafer_safety_sign")?);
    let labels = SafetyLabels { safer: &safer, unsafer: &unsafer };
    let pairs = ScoredPairs::read(case, "safer", "unsafer")?;
    let (first, second) = (pairs.first_end_scores()?, pairs.second_end_scores()?);
    let ours = match kind {
        CostLossType::TokenWise => {
            let spans = pairs.spans(case, "safer", "unsafer")?;
            cost_tokens(&spec, pairs.tokens(&spans), labels, pairs.count)
        }
        _ => cost(&spec, &first, &second, labels, pairs.count),
    };
    let ours = ours.map_err(Failure::refused)?;
    Ok(json!({
        "loss": nested(&ours.loss),
        "higher_end_cost": numbers(&second),
        "lower_end_cost": numbers(&first),
        "accuracy": f64::from(share(ours.correct_pairs, ours.pairs)),
        "accuracy_sign": f64::from(share(ours.correct_signs, 2 * ours.pairs)),
        "grad_scores": nested(&gradient(&ours.loss, &pairs.scores)),
    }))
}

fn refused(error: plumb_loss::LossError) -> Failure {
    Failure::refused(error)
}

/// Token scores `[2B, L]`, the first answers above the second, and where each answer ends.
struct ScoredPairs {
    scores: Tensor,
    first: Tensor,
    second: Tensor,
    first_end: Tensor,
    second_end: Tensor,
    ends: (Vec<i64>, Vec<i64>),
    count: usize,
}

impl ScoredPairs {
    fn read(case: &Case, first: &str, second: &str) -> Result<Self, Failure> {
        let scores = leaf(&case.inputs, "scores")?;
        let pairs = scores.size()[0] / 2;
        let end = |name: &str| {
            let attended = tensor(&case.inputs, &format!("{name}_attention_mask"))?;
            Pooling::LastAttended.indices(&attended).map_err(Failure::refused)
        };
        let (first_end, second_end) = (end(first)?, end(second)?);
        let list = |t: &Tensor| Vec::<i64>::try_from(t).map_err(Failure::refused);
        Ok(Self {
            first: scores.narrow(0, 0, pairs),
            second: scores.narrow(0, pairs, pairs),
            ends: (list(&first_end)?, list(&second_end)?),
            scores,
            first_end,
            second_end,
            count: pairs as usize,
        })
    }

    fn first_end_scores(&self) -> Result<Tensor, Failure> {
        at_columns(&self.first, &self.first_end).map_err(Failure::refused)
    }

    fn second_end_scores(&self) -> Result<Tensor, Failure> {
        at_columns(&self.second, &self.second_end).map_err(Failure::refused)
    }

    /// The tokens in which the answers differ.
    fn spans(&self, case: &Case, first: &str, second: &str) -> Result<Vec<(i64, i64)>, Failure> {
        let (first, second) = (Answers::read(case, first)?, Answers::read(case, second)?);
        let spans = spans(&first, &second, Identical::Refuse)?;
        Ok(spans.iter().flatten().map(PairSpan::longer).collect())
    }

    fn tokens<'a>(&'a self, spans: &'a [(i64, i64)]) -> TokenPairs<'a> {
        TokenPairs {
            better: &self.first,
            worse: &self.second,
            spans,
            better_end: &self.ends.0,
            worse_end: &self.ends.1,
        }
    }
}
