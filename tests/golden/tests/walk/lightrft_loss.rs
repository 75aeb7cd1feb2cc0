//! LightRFT: policy and value losses (the mean over each sequence, then over sequences).

use plumb_golden::{Case, Failure, encode};
use plumb_loss::aggregate::{Aggregation, Denominators, Layout};
use plumb_loss::policy::{Batch, Cpg, Objective, PolicyTerm, PpoClip, policy_loss};
use plumb_loss::value::{ValueLoss, value_loss};
use serde_json::{Value, json};

use crate::tensors::{gradient, leaf, nested, tensor};

use crate::{Check, Consumer};

pub(crate) const CONSUMERS: &[Consumer] = &[
    ("lightrft/policy_loss", Check::Result(policy)),
    ("lightrft/value_loss", Check::Result(value)),
];

fn policy(case: &Case) -> Result<Value, Failure> {
    let clip = case.params.number("clip_eps")?;
    let term = if case.params.flag("use_cpg_loss")? {
        PolicyTerm::Cpg(Cpg { clip })
    } else {
        PolicyTerm::PpoClip(PpoClip::lightrft(clip))
    };
    let objective = Objective {
        policy: term,
        aggregation: Aggregation::SeqMeanTokenMean,
        ..Objective::default()
    };
    let logp = leaf(&case.inputs, "log_probs")?;
    let mut mask = tensor(&case.inputs, "action_mask")?;
    if case.inputs.has("entropy_mask") {
        mask *= tensor(&case.inputs, "entropy_mask")?;
    }
    let batch = Batch {
        logp: &logp,
        old_logp: &tensor(&case.inputs, "old_log_probs")?,
        advantage: &tensor(&case.inputs, "advantages")?,
        ref_logp: None,
        entropy: None,
        mask: &mask,
        layout: Layout::Padded,
    };
    let counts = Denominators::from_mask(&mask, Layout::Padded, 1.0).map_err(Failure::refused)?;
    let ours = policy_loss(&objective, &batch, &counts).map_err(Failure::refused)?;
    Ok(json!({
        "loss": encode(ours.sums.loss),
        "grad_log_probs": nested(&gradient(&ours.loss, &logp)),
    }))
}

fn value(case: &Case) -> Result<Value, Failure> {
    let clip =
        if case.params.has("clip_eps") { Some(case.params.number("clip_eps")?) } else { None };
    let spec = ValueLoss { clip, aggregation: Aggregation::SeqMeanTokenMean };
    let mask = tensor(&case.inputs, "action_mask")?;
    let counts = Denominators::from_mask(&mask, Layout::Padded, 1.0).map_err(Failure::refused)?;
    let ours = value_loss(
        &spec,
        &tensor(&case.inputs, "values")?,
        &tensor(&case.inputs, "old_values")?,
        &tensor(&case.inputs, "returns")?,
        &mask,
        Layout::Padded,
        &counts,
    )
    .map_err(Failure::refused)?;
    Ok(nested(&ours.loss))
}
