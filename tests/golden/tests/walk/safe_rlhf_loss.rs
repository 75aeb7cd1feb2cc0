//! safe-rlhf: the value loss, masked means, log-probs of given tokens.

use plumb_golden::{Case, Failure};
use plumb_loss::aggregate::{Aggregation, Denominators, Layout, aggregate};
use plumb_loss::logprobs::log_probs;
use plumb_loss::value::{ValueLoss, value_loss};
use serde_json::{Value, json};
use tch::{Kind, Tensor};

use crate::tensors::{gradient, leaf, nested, tensor};

use crate::{Check, Consumer};

pub(crate) const CONSUMERS: &[Consumer] = &[
    ("safe_rlhf/critic_loss", Check::Result(critic)),
    ("safe_rlhf/gather_log_probabilities", Check::Result(gather)),
    ("safe_rlhf/masked_mean", Check::Result(masked_mean)),
];

/// Every row counts, also one without tokens (whose mean is 0/0 there, and 0 here).
fn all_rows(mask: &Tensor) -> Result<Denominators, Failure> {
    let rows = mask.size().first().map_or(0, |rows| *rows as usize);
    let counts = Denominators::from_mask(mask, Layout::Padded, 1.0).map_err(Failure::refused)?;
    Ok(counts.with_all_sequences(rows))
}

fn critic(case: &Case) -> Result<Value, Failure> {
    let clip = Some(case.params.number_or("clip_range_value", 5.0)?);
    let spec = ValueLoss { clip, aggregation: Aggregation::SeqMeanTokenMean };
    let values = leaf(&case.inputs, "values")?;
    let mask = tensor(&case.inputs, "mask")?;
    let ours = value_loss(
        &spec,
        &values,
        &tensor(&case.inputs, "old_values")?,
        &tensor(&case.inputs, "returns")?,
        &mask,
        Layout::Padded,
        &all_rows(&mask)?,
    )
    .map_err(Failure::refused)?;
    Ok(json!({
        "loss": nested(&ours.loss),
        "grad_values": nested(&gradient(&ours.loss, &values)),
    }))
}

fn gather(case: &Case) -> Result<Value, Failure> {
    let logits = tensor(&case.inputs, "logits")?;
    let ids = tensor(&case.inputs, "labels")?.to_kind(Kind::Int64);
    Ok(nested(&log_probs(&logits, &ids).map_err(Failure::refused)?))
}

/// Without a mask the mean over everything.
fn masked_mean(case: &Case) -> Result<Value, Failure> {
    let x = tensor(&case.inputs, "x")?;
    let mean = if case.inputs.has("mask") {
        let mask = tensor(&case.inputs, "mask")?;
        let row = |t: &Tensor| if t.dim() == 1 { t.unsqueeze(0) } else { t.shallow_clone() };
        let (x, mask) = (row(&x), row(&mask));
        let counts = all_rows(&mask)?;
        aggregate(Aggregation::SeqMeanTokenMean, &x, &mask, Layout::Padded, &counts)
    } else {
        let x = x.reshape([-1]);
        let bounds = [0, x.size()[0]];
        let layout = Layout::Packed { cu_seqlens: &bounds };
        let mask = x.ones_like();
        let counts = Denominators::from_mask(&mask, layout, 1.0).map_err(Failure::refused)?;
        aggregate(Aggregation::TokenMean, &x, &mask, layout, &counts)
    };
    Ok(nested(&mean.map_err(Failure::refused)?))
}
