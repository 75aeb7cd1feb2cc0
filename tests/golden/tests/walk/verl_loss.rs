//! verl: policy loss, aggregation, value loss, entropy, log-probs.

use plumb_golden::{Case, Failure, encode};
use plumb_loss::aggregate::{Aggregation, Denominators, Layout, aggregate};
use plumb_loss::policy::{Batch, Objective, PolicyTerm, PpoClip, policy_loss};
use plumb_loss::value::{ValueLoss, value_loss};
use plumb_loss::{entropy, logprobs};
use serde_json::{Value, json};
use tch::{Kind, Tensor};

use crate::tensors::{gradient, leaf, nested, tensor};

use crate::{Check, Consumer};

pub(crate) const CONSUMERS: &[Consumer] = &[
    ("verl/agg_loss", Check::Result(agg_loss)),
    ("verl/compute_policy_loss_vanilla", Check::Result(policy_vanilla)),
    ("verl/compute_value_loss", Check::Result(value)),
    ("verl/entropy", Check::Result(entropy)),
    ("verl/logprobs_from_logits", Check::Result(log_probs)),
];

/// What verl adds to the number of tokens that its metrics divide by.
const COUNT_EPSILON: f64 = 1e-8;

fn aggregation(case: &Case) -> Result<Aggregation, Failure> {
    case.params.text("loss_agg_mode")?.parse().map_err(Failure::refused)
}

/// Denominators of a batch that is whole, as verl takes them: rows with 1e-8, norm by the width.
fn denominators(mask: &Tensor) -> Result<Denominators, Failure> {
    let width = mask.size()[1] as f64;
    let whole = Denominators::from_mask(mask, Layout::Padded, width).map_err(Failure::refused)?;
    Ok(whole.with_row_epsilon(Denominators::VERL_ROW_EPSILON))
}

fn agg_loss(case: &Case) -> Result<Value, Failure> {
    let mode = aggregation(case)?;
    let loss = tensor(&case.inputs, "loss_mat")?;
    let mask = tensor(&case.inputs, "loss_mask")?;
    let whole = denominators(&mask)?;
    let counts = Denominators {
        tokens: case.params.number_or("batch_num_tokens", whole.tokens)?,
        sequences: case.params.number_or("global_batch_size", whole.sequences)?,
        norm_tokens: case.params.number_or("loss_scale_factor", whole.norm_tokens)?,
        ..whole
    };
    let ours = aggregate(mode, &loss, &mask, Layout::Padded, &counts).map_err(Failure::refused)?;
    // verl multiplies by the number of ranks, because DDP then averages over them; our ranks add
    // up instead. The constant norm is left alone there.
    let ranks = case.params.number_or("dp_size", 1.0)?;
    let ranks = if mode == Aggregation::SeqMeanTokenSumNorm { 1.0 } else { ranks };
    Ok(encode(ours.double_value(&[]) * ranks))
}

fn policy_vanilla(case: &Case) -> Result<Value, Failure> {
    let clip = case.params.number("clip_ratio")?;
    let spec = PpoClip {
        clip_low: case.params.number_or("clip_ratio_low", clip)?,
        clip_high: case.params.number_or("clip_ratio_high", clip)?,
        dual_clip: Some(case.params.number_or("clip_ratio_c", 3.0)?),
        log_ratio_bound: Some(20.0),
    };
    let objective = Objective {
        policy: PolicyTerm::PpoClip(spec),
        aggregation: aggregation(case)?,
        ..Objective::default()
    };
    let logp = leaf(&case.inputs, "log_prob")?;
    let mask = tensor(&case.inputs, "response_mask")?;
    let batch = Batch {
        logp: &logp,
        old_logp: &tensor(&case.inputs, "old_log_prob")?,
        advantage: &tensor(&case.inputs, "advantages")?,
        ref_logp: None,
        entropy: None,
        mask: &mask,
        layout: Layout::Padded,
    };
    let ours = policy_loss(&objective, &batch, &denominators(&mask)?).map_err(Failure::refused)?;
    let mean = |sum: f64| encode(sum / (ours.sums.tokens + COUNT_EPSILON));
    Ok(json!({
        "loss": encode(ours.sums.loss),
        "metrics": {
            "actor/pg_clipfrac": mean(ours.sums.clipped),
            "actor/ppo_kl": mean(ours.sums.approx_kl),
            "actor/pg_clipfrac_lower": mean(ours.sums.clipped_lower),
        },
        "grad_log_prob": nested(&gradient(&ours.loss, &logp)),
    }))
}

fn value(case: &Case) -> Result<Value, Failure> {
    let spec = ValueLoss {
        clip: Some(case.params.number("cliprange_value")?),
        aggregation: aggregation(case)?,
    };
    let mask = tensor(&case.inputs, "response_mask")?;
    let counts = denominators(&mask)?;
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
    let loss = aggregate(aggregation(case)?, &tokens, &mask, Layout::Padded, &denominators(&mask)?)
        .map_err(Failure::refused)?;
    Ok(json!({ "entropy": nested(&tokens), "entropy_loss": nested(&loss) }))
}

fn log_probs(case: &Case) -> Result<Value, Failure> {
    let logits = tensor(&case.inputs, "logits")?;
    let ids = tensor(&case.inputs, "labels")?.to_kind(Kind::Int64);
    Ok(nested(&logprobs::log_probs(&logits, &ids).map_err(Failure::refused)?))
}
