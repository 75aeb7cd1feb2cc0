//! verl: aggregation, value loss, entropy, log-probs.

use plumb_golden::{Case, Failure, encode};
use plumb_loss::aggregate::{Aggregation, Denominators, Layout, aggregate};
use plumb_loss::value::{ValueLoss, value_loss};
use plumb_loss::{entropy, logprobs};
use serde_json::{Value, json};
use tch::{Kind, Tensor};

use crate::tensors::{nested, tensor};

use crate::{Check, Consumer};

pub(crate) const CONSUMERS: &[Consumer] = &[
    ("verl/agg_loss", Check::Result(agg_loss)),
    ("verl/compute_value_loss", Check::Result(value)),
    ("verl/entropy", Check::Result(entropy)),
    ("verl/logprobs_from_logits", Check::Result(log_probs)),
];

/// What verl adds to the number of tokens that its metrics divide by.
pub(crate) const COUNT_EPSILON: f64 = 1e-8;

pub(crate) fn aggregation(case: &Case) -> Result<Aggregation, Failure> {
    case.params.text("loss_agg_mode")?.parse().map_err(Failure::refused)
}

/// Denominators as verl takes them: rows with 1e-8, norm by the width, and what the case knows of
/// the batch beyond its own tensors.
///
/// verl multiplies by the number of ranks, because DDP then averages over them; our ranks add up
/// instead, so the divisors are that much smaller. The constant norm is left alone there.
pub(crate) fn denominators(case: &Case, mask: &Tensor) -> Result<Denominators, Failure> {
    let width = mask.size().last().map_or(0.0, |width| *width as f64);
    let whole = Denominators::from_mask(mask, Layout::Padded, width).map_err(Failure::refused)?;
    let ranks = case.params.number_or("dp_size", 1.0)?;
    Ok(Denominators {
        tokens: case.params.number_or("batch_num_tokens", whole.tokens)? / ranks,
        sequences: case.params.number_or("global_batch_size", whole.sequences)? / ranks,
        norm_tokens: case.params.number_or("loss_scale_factor", whole.norm_tokens)?,
        row_epsilon: Denominators::VERL_ROW_EPSILON,
    })
}

fn agg_loss(case: &Case) -> Result<Value, Failure> {
    let loss = tensor(&case.inputs, "loss_mat")?;
    let mask = tensor(&case.inputs, "loss_mask")?;
    let counts = denominators(case, &mask)?;
    let ours = aggregate(aggregation(case)?, &loss, &mask, Layout::Padded, &counts);
    Ok(nested(&ours.map_err(Failure::refused)?))
}

fn value(case: &Case) -> Result<Value, Failure> {
    let spec = ValueLoss {
        clip: Some(case.params.number("cliprange_value")?),
        aggregation: aggregation(case)?,
    };
    let mask = tensor(&case.inputs, "response_mask")?;
    let counts = denominators(case, &mask)?;
    let ours = value_loss(
        &spec,
        &tensor(&case.inputs, "vpreds")?,
        &tensor(&case.inputs, "values")?,
        &tensor(&case.inputs, "returns")?,
        &mask,
        Layout::Padded,
        &counts,
    )
    .map_err(Failure::refused)?;
    Ok(json!({
        "vf_loss": nested(&ours.loss),
        "vf_clipfrac": encode(ours.clipped_tokens / (counts.tokens + COUNT_EPSILON)),
    }))
}

fn entropy(case: &Case) -> Result<Value, Failure> {
    let tokens = entropy::entropy(&tensor(&case.inputs, "logits")?).map_err(Failure::refused)?;
    let mask = tensor(&case.inputs, "response_mask")?;
    let loss =
        aggregate(aggregation(case)?, &tokens, &mask, Layout::Padded, &denominators(case, &mask)?)
            .map_err(Failure::refused)?;
    Ok(json!({ "entropy": nested(&tokens), "entropy_loss": nested(&loss) }))
}

fn log_probs(case: &Case) -> Result<Value, Failure> {
    let mut logits = tensor(&case.inputs, "logits")?;
    let ids = tensor(&case.inputs, "labels")?.to_kind(Kind::Int64);
    if ids.numel() == 0 {
        // A list without entries does not say how wide they would be.
        logits = logits.reshape([ids.size(), vec![1]].concat());
    }
    Ok(nested(&logprobs::log_probs(&logits, &ids).map_err(Failure::refused)?))
}
