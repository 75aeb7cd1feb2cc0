//! Score models: heads, pooling, normalisation, placement of scores; safe-rlhf and UPS-RM.

use plumb_algo::metric::BatchScore;
use plumb_algo::model_score::{ScoredRow, place_score, safe_score};
use plumb_algo::normalizer::{Follow, ScoreNormalizer, ScoreType};
use plumb_golden::{Case, Failure, Fields, encode, encode_all};
use plumb_loss::scores::{Pooling, at_columns};
use plumb_model::ScoreHead;
use serde_json::{Value, json};
use tch::{Kind, Tensor};

use crate::tensors::{nested, tensor};

use crate::{Check, Consumer};

pub(crate) const CONSUMERS: &[Consumer] = &[
    ("safe_rlhf/normalizers", Check::Result(normalizers)),
    ("safe_rlhf/get_scores", Check::Result(get_scores)),
    ("ups_rm/rm_mlp_head", Check::Result(mlp_head)),
    ("ups_rm/rm_scores_token_placement", Check::Result(placed_scores)),
];

fn algo(error: plumb_algo::AlgoError) -> Failure {
    Failure::refused(error)
}

fn follow(case: &Case) -> Result<Follow, Failure> {
    let name = case.params.get("normalizer_type")?.as_str();
    let momentum = case.params.number_or("momentum", 0.9)?;
    Follow::compat_named(name, momentum).map_err(Failure::refused)
}

/// Rows of one or more scores each, by column.
fn columns(rows: &Value) -> Result<Vec<Vec<f64>>, Failure> {
    let rows = Fields(json!({ "rows": rows })).matrix("rows")?;
    let width = rows.first().map_or(1, Vec::len);
    Ok((0..width).map(|d| rows.iter().map(|row| row[d]).collect()).collect())
}

fn normalizers(case: &Case) -> Result<Value, Failure> {
    let function = case.params.text("normalize_function")?.parse().map_err(algo)?;
    let mut data = columns(case.inputs.get("data")?)?;
    let mut normalizers = vec![ScoreNormalizer::new(follow(case)?, function); data.len()];
    let mut states = Vec::new();
    for batch in case.inputs.list("batches")? {
        for (normalizer, scores) in normalizers.iter_mut().zip(columns(batch)?) {
            normalizer.update(&scores).map_err(Failure::refused)?;
        }
        states.push(json!({
            "mean": moments(&normalizers, |n| n.mean),
            "var": moments(&normalizers, |n| n.variance),
            "count": [normalizers.first().map_or(0, |n| n.count)],
        }));
    }
    let epsilon = case.params.number_or("epsilon", ScoreNormalizer::EPSILON)?;
    for (normalizer, scores) in normalizers.iter().zip(&mut data) {
        normalizer.normalize(scores, epsilon).map_err(Failure::refused)?;
    }
    let rows = (0..data[0].len())
        .map(|row| encode_all(&data.iter().map(|column| column[row]).collect::<Vec<_>>()));
    Ok(json!({ "state_after_each": states, "normalized": rows.collect::<Vec<_>>() }))
}

fn moments(normalizers: &[ScoreNormalizer], of: fn(&ScoreNormalizer) -> f64) -> Value {
    encode_all(&normalizers.iter().map(of).collect::<Vec<_>>())
}

fn get_scores(case: &Case) -> Result<Value, Failure> {
    let kind: ScoreType = case.params.text("score_type")?.parse().map_err(algo)?;
    let hidden = tensor(&case.inputs, "last_hidden_state")?;
    let [rows, width, size] = *hidden.size().as_slice() else {
        return Err(Failure::Malformed("last_hidden_state is not [B, L, E]".to_owned()));
    };
    let attended = if case.inputs.has("attention_mask") || rows > 1 {
        tensor(&case.inputs, "attention_mask").map_err(|missing| match rows {
            2.. => Failure::Refused(missing.to_string()),
            _ => missing,
        })?
    } else {
        Tensor::ones([rows, width], (Kind::Double, tch::Device::Cpu))
    };
    let end = Pooling::LastAttended.indices(&attended).map_err(Failure::refused)?;
    let normalizer = ScoreNormalizer::new(follow(case)?, kind.normalize_function())
        .with_moments(
            case.params.number_or("init_mean", 0.0)?,
            case.params.number_or("init_var", 1.0)?,
        )
        .map_err(Failure::refused)?;
    let mut dims = Vec::new();
    for head in heads(case)? {
        let flat = hidden.reshape([-1, size]);
        let scores = head.0.score(&head.1, &flat).map_err(Failure::refused)?;
        dims.push(dimension(case, normalizer, &scores.reshape([rows, width]), &end)?);
    }
    let stacked = |of: fn(&Dimension) -> &Tensor| {
        nested(&Tensor::stack(&dims.iter().map(of).collect::<Vec<_>>(), -1))
    };
    let after: Vec<ScoreNormalizer> = dims.iter().map(|d| d.normalizer).collect();
    Ok(json!({
        "scores": stacked(|d| &d.scores),
        "end_scores": stacked(|d| &d.end_scores),
        "end_index": Vec::<i64>::try_from(end).map_err(Failure::refused)?,
        "mean_after": moments(&after, |n| n.mean),
        "var_after": moments(&after, |n| n.variance),
    }))
}

/// A linear head for each score dimension: one row of the weight, one entry of the bias.
fn heads(case: &Case) -> Result<Vec<(ScoreHead, Vec<Tensor>)>, Failure> {
    let weight = tensor(&case.inputs, "weight")?;
    let bias = case.inputs.has("bias").then(|| tensor(&case.inputs, "bias")).transpose()?;
    let of = |d: i64| match &bias {
        None => (ScoreHead::Linear, vec![weight.narrow(0, d, 1)]),
        Some(bias) => {
            let head = ScoreHead::Mlp { hidden_dims: Vec::new() };
            (head, vec![weight.narrow(0, d, 1), bias.narrow(0, d, 1)])
        }
    };
    Ok((0..weight.size()[0]).map(of).collect())
}

/// One score dimension after normalisation.
struct Dimension {
    scores: Tensor,
    end_scores: Tensor,
    normalizer: ScoreNormalizer,
}

fn dimension(
    case: &Case,
    mut normalizer: ScoreNormalizer,
    scores: &Tensor,
    end: &Tensor,
) -> Result<Dimension, Failure> {
    let end_scores = at_columns(scores, end).map_err(Failure::refused)?;
    if case.params.flag("training")? {
        let batch = Vec::<f64>::try_from(&end_scores).map_err(Failure::refused)?;
        normalizer.update(&batch).map_err(Failure::refused)?;
    }
    let normalize = case.params.flag("do_normalize")?;
    let normalized = |t: &Tensor| -> Result<Tensor, Failure> {
        let mut flat = Vec::<f64>::try_from(t.reshape([-1])).map_err(Failure::refused)?;
        if normalize {
            let epsilon = ScoreNormalizer::EPSILON;
            normalizer.normalize(&mut flat, epsilon).map_err(Failure::refused)?;
        }
        Ok(Tensor::from_slice(&flat).reshape(t.size()))
    };
    let (scores, end_scores) = (normalized(scores)?, normalized(&end_scores)?);
    Ok(Dimension { scores, end_scores, normalizer })
}

fn mlp_head(case: &Case) -> Result<Value, Failure> {
    if case.params.number_or("negative_slope", 0.01)? != 0.01 {
        return Err(Failure::Malformed("the head's slope is 0.01".to_owned()));
    }
    let head = ScoreHead::from_hidden_dim_str(case.params.text("hidden_dim_str")?)
        .map_err(Failure::refused)?;
    let mut params = Vec::new();
    for layer in case.inputs.list("layers")?.iter().chain([case.inputs.get("output_layer")?]) {
        let layer = Fields(layer.clone());
        params.extend([tensor(&layer, "weight")?, tensor(&layer, "bias")?]);
    }
    let hidden = tensor(&case.inputs, "last_hidden_state")?;
    let attended = tensor(&case.inputs, "attention_mask")?;
    let column = Pooling::CompatTokenCount.indices(&attended).map_err(Failure::refused)?;
    let pooled = at_columns(&hidden, &column).map_err(Failure::refused)?;
    let logits = head.score(&params, &pooled).map_err(Failure::refused)?;
    let each = Vec::<f64>::try_from(&logits).map_err(Failure::refused)?;
    Ok(json!({
        "logits": nested(&logits.unsqueeze(-1)),
        "safe_scores": encode_all(&each.into_iter().map(safe_score).collect::<Vec<_>>()),
    }))
}

fn placed_scores(case: &Case) -> Result<Value, Failure> {
    let logits = case.inputs.vector("rm_logits")?;
    let attended = case.inputs.mask("attention_mask")?;
    let positions = case.inputs.matrix("position_ids")?;
    let response = case.params.count("response_len")?;
    let mut rows = Vec::new();
    for ((logit, attended), positions) in logits.into_iter().zip(&attended).zip(&positions) {
        let position_ids: Vec<i64> = positions.iter().map(|at| *at as i64).collect();
        let row = ScoredRow { score: safe_score(logit), position_ids: &position_ids, attended };
        // Python's slice `[-0:]` is the whole row.
        let tokens = if response == 0 { attended.len() } else { response };
        rows.push(place_score(row, tokens).map_err(algo)?);
    }
    let tokens: Vec<&[f64]> = rows.iter().map(Vec::as_slice).collect();
    // The figures are those of all rows; a batch's metrics would leave out empty responses.
    let batch = BatchScore::of(&tokens, &vec![1; tokens.len()]).map_err(algo)?;
    let each = tokens.iter().map(|row| BatchScore::of(&[row], &[1]).map(|one| one.mean));
    let each = each.collect::<Result<Vec<_>, _>>().map_err(algo)?;
    Ok(json!({
        "rm_scores": rows.iter().map(|row| encode_all(row)).collect::<Vec<_>>(),
        "sequence_score": encode_all(&each),
        "critic/score/mean": encode(batch.mean),
        "critic/score/max": encode(batch.max),
        "critic/score/min": encode(batch.min),
    }))
}
