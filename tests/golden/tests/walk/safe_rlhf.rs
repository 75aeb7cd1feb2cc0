//! safe-rlhf: the reward model's loss, sequence-wise and token-wise.

use plumb_golden::{Case, Failure, encode_all};
use plumb_loss::preference::{Pairwise, TokenPairs, pairwise, pairwise_tokens};
use serde_json::{Value, json};
use tch::{Kind, Tensor};

use crate::tensors::{gradient, leaf, nested};

use crate::{Check, Consumer};

pub(crate) const CONSUMERS: &[Consumer] =
    &[("safe_rlhf/reward_model_loss", Check::Result(reward_model_loss))];

fn reward_model_loss(case: &Case) -> Result<Value, Failure> {
    let spec = Pairwise { regularization: case.params.number("regularization")? };
    let scores = leaf(&case.inputs, "scores")?;
    let pairs = scores.size()[0] / 2;
    let (better, worse) = (scores.narrow(0, 0, pairs), scores.narrow(0, pairs, pairs));
    let better_end = ends(case, "better_attention_mask")?;
    let worse_end = ends(case, "worse_attention_mask")?;
    let (b, w) = (at(&better, &better_end), at(&worse, &worse_end));
    let spans: Vec<(i64, i64)> = case
        .inputs
        .matrix("better_input_ids")?
        .iter()
        .zip(case.inputs.matrix("worse_input_ids")?)
        .zip(better_end.iter().zip(&worse_end))
        .map(|((better, worse), (b_end, w_end))| {
            let first = better.iter().zip(&worse).position(|(b, w)| b != w);
            (first.map_or(i64::MAX, |i| i as i64), *b_end.max(w_end))
        })
        .collect();
    let ours = match case.params.text("loss_type")? {
        "token-wise" => {
            let scores = TokenPairs {
                better: &better,
                worse: &worse,
                spans: &spans,
                better_end: &better_end,
                worse_end: &worse_end,
            };
            pairwise_tokens(&spec, scores, pairs as usize)
        }
        _ => pairwise(&spec, &b, &w, pairs as usize),
    };
    let ours = ours.map_err(Failure::refused)?;
    // The reference holds the accuracy as float32.
    let accuracy = ours.correct_pairs as f32 / ours.pairs as f32;
    Ok(json!({
        "loss": nested(&ours.loss),
        "higher_end_reward": numbers(&b),
        "lower_end_reward": numbers(&w),
        "accuracy": f64::from(accuracy),
        "grad_scores": nested(&gradient(&ours.loss, &scores)),
    }))
}

/// Index of each row's last attended token.
fn ends(case: &Case, key: &str) -> Result<Vec<i64>, Failure> {
    let rows = case.inputs.mask(key)?;
    let last = |row: &Vec<bool>| row.iter().rposition(|m| *m).map(|i| i as i64);
    let none = || Failure::Malformed(format!("{key:?} has an empty row"));
    rows.iter().map(|row| last(row).ok_or_else(none)).collect()
}

fn at(scores: &Tensor, index: &[i64]) -> Tensor {
    scores.gather(1, &Tensor::from_slice(index).unsqueeze(-1), false).squeeze_dim(-1)
}

fn numbers(tensor: &Tensor) -> Value {
    let flat = tensor.detach().to_kind(Kind::Double);
    encode_all(&(0..flat.size()[0]).map(|i| flat.double_value(&[i])).collect::<Vec<_>>())
}
