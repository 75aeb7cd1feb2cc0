//! LightRFT: policy and value losses, the mask of high entropy, the share of clipped values.

use plumb_algo::statistics::fraction_outside;
use plumb_golden::{Case, Failure, Fields, encode};
use plumb_loss::aggregate::{Aggregation, Denominators, Layout};
use plumb_loss::entropy::{self, MaskedEntropy};
use plumb_loss::policy::{
    Batch, Cpg, GeoMean, Gspo, Objective, PolicyTerm, PpoClip, policy_loss, standardized_advantages,
};
use plumb_loss::value::{ValueLoss, value_loss};
use serde_json::{Value, json};
use tch::Tensor;

use crate::tensors::{gradient, leaf, nested, tensor};

use crate::{Check, Consumer};

pub(crate) const CONSUMERS: &[Consumer] = &[
    ("lightrft/clip_fraction", Check::Result(clip_fraction)),
    ("lightrft/high_entropy_mask", Check::Result(high_entropy_mask)),
    ("lightrft/policy_loss", Check::Result(policy)),
    ("lightrft/policy_loss_agg_modes", Check::Result(policy_with_mode)),
    ("lightrft/value_loss", Check::Result(value)),
];

/// LightRFT's bound on the log ratio, where it has one.
const LOG_RATIO_BOUND: f64 = 20.0;

/// What it adds to the standard deviation, and its least one.
const ADVANTAGE_EPSILON: f64 = 1e-8;

/// The mask under `key`, or all tokens where there is none.
fn mask_or_all(inputs: &Fields, key: &str, like: &Tensor) -> Result<Tensor, Failure> {
    if inputs.has(key) { tensor(inputs, key) } else { Ok(like.ones_like()) }
}

/// Every row counts, also one without tokens (whose mean is 0/0 there, and 0 here).
fn all_rows(mask: &Tensor, norm_tokens: f64) -> Result<Denominators, Failure> {
    let rows = mask.size().first().map_or(0, |rows| *rows as usize);
    let counts = Denominators::from_mask(mask, Layout::Padded, norm_tokens);
    Ok(counts.map_err(Failure::refused)?.with_all_sequences(rows))
}

fn policy(case: &Case) -> Result<Value, Failure> {
    let clip = case.params.number_or("clip_eps", 0.2)?;
    let term = if case.params.has("use_cpg_loss") && case.params.flag("use_cpg_loss")? {
        PolicyTerm::Cpg(Cpg { clip })
    } else {
        PolicyTerm::PpoClip(PpoClip::lightrft(clip))
    };
    let logp = leaf(&case.inputs, "log_probs")?;
    let mut mask = mask_or_all(&case.inputs, "action_mask", &logp)?;
    mask *= mask_or_all(&case.inputs, "entropy_mask", &logp)?;
    let advantage = tensor(&case.inputs, "advantages")?;
    let loss = Loss { term, aggregation: Aggregation::SeqMeanTokenMean, advantage, mask };
    let counts = all_rows(&loss.mask, 1.0)?;
    loss.of(case, &logp, &counts)
}

fn policy_with_mode(case: &Case) -> Result<Value, Failure> {
    let clip = case.params.number_or("clip_eps", 0.2)?;
    let mode = case.params.text("loss_agg_mode")?.parse().map_err(Failure::refused)?;
    let logp = leaf(&case.inputs, "log_probs")?;
    let mask = mask_or_all(&case.inputs, "action_mask", &logp)?;
    let counts = all_rows(&mask, case.params.number_or("max_tokens", 4096.0)?)?;
    let mut advantage = tensor(&case.inputs, "advantages")?;
    if advantage.dim() == 1 && logp.dim() == 2 {
        advantage = advantage.unsqueeze(-1).expand_as(&logp);
    }
    // What it divides by is at least 1e-6.
    let floor = counts.with_floor(1e-6);
    let (term, aggregation, counts) = match case.params.text("algo")? {
        "gspo" => {
            let normalize = !case.params.has("normalize_advantages")
                || case.params.flag("normalize_advantages")?;
            if normalize {
                advantage = standardized_advantages(&advantage, &mask, ADVANTAGE_EPSILON)
                    .map_err(Failure::refused)?;
            }
            let log_ratio_cap = Some(LOG_RATIO_BOUND);
            let spec = Gspo { clip_low: clip, clip_high: clip, log_ratio_cap };
            (PolicyTerm::Gspo(spec), mode, floor)
        }
        "gmpo" => {
            let zero_is_positive = true;
            let spec =
                GeoMean { clip_low: clip, clip_high: clip, zero_is_positive, ..GeoMean::default() };
            // The mean over rows, whatever the mode.
            (PolicyTerm::GeoMean(spec), Aggregation::SeqMeanTokenMean, floor)
        }
        "cpg" => (PolicyTerm::Cpg(Cpg { clip }), Aggregation::TokenMean, counts),
        _ => {
            let log_ratio_bound = Some(LOG_RATIO_BOUND);
            let spec = PpoClip { log_ratio_bound, ..PpoClip::lightrft(clip) };
            (PolicyTerm::PpoClip(spec), mode, floor)
        }
    };
    Loss { term, aggregation, advantage, mask }.of(case, &logp, &counts)
}

/// What a case asks for.
struct Loss {
    term: PolicyTerm,
    aggregation: Aggregation,
    advantage: Tensor,
    mask: Tensor,
}

impl Loss {
    fn of(&self, case: &Case, logp: &Tensor, counts: &Denominators) -> Result<Value, Failure> {
        let objective =
            Objective { policy: self.term, aggregation: self.aggregation, ..Objective::default() };
        let old_logp = tensor(&case.inputs, "old_log_probs")?;
        let batch = Batch::new(logp, &old_logp, &self.advantage, &self.mask, Layout::Padded);
        let ours = policy_loss(&objective, &batch, counts).map_err(Failure::refused)?;
        Ok(json!({
            "loss": encode(ours.sums.loss),
            "grad_log_probs": nested(&gradient(&ours.loss, logp)),
        }))
    }
}

fn value(case: &Case) -> Result<Value, Failure> {
    let clip =
        if case.params.has("clip_eps") { Some(case.params.number("clip_eps")?) } else { None };
    let spec = ValueLoss { clip, aggregation: Aggregation::SeqMeanTokenMean };
    let values = tensor(&case.inputs, "values")?;
    let mask = mask_or_all(&case.inputs, "action_mask", &values)?;
    let ours = value_loss(
        &spec,
        &values,
        &tensor(&case.inputs, "old_values")?,
        &tensor(&case.inputs, "returns")?,
        &mask,
        Layout::Padded,
        &all_rows(&mask, 1.0)?,
    )
    .map_err(Failure::refused)?;
    Ok(nested(&ours.loss))
}

fn high_entropy_mask(case: &Case) -> Result<Value, Failure> {
    let entropies = tensor(&case.inputs, "entropy")?;
    let mask = mask_or_all(&case.inputs, "action_mask", &entropies)?;
    let ratio = case.params.number_or("high_entropy_ratio", 0.2)?;
    let high = entropy::high_entropy_mask(
        &entropies,
        &mask,
        Layout::Padded,
        ratio,
        MaskedEntropy::CompatZero,
    );
    Ok(nested(&high.map_err(Failure::refused)?))
}

/// The reference repeats the batch's share for every row, as float32.
fn clip_fraction(case: &Case) -> Result<Value, Failure> {
    let (values, shape) = case.inputs.flat("values")?;
    let (low, high) = (case.params.number("clip_min")?, case.params.number("clip_max")?);
    let share = fraction_outside(&values, low, high) as f32;
    let rows = shape.first().map_or(0, |rows| *rows as usize);
    Ok(json!(vec![share; rows]))
}
