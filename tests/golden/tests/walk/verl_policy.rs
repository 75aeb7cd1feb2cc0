//! verl: the policy losses.

use plumb_golden::{Case, Failure, encode};
use plumb_loss::aggregate::{Aggregation, Denominators, Layout};
use plumb_loss::policy::{
    Batch, Cispo, GeoMean, Gspo, Objective, PolicyTerm, PolicyTerms, PpoClip, Sapo, policy_loss,
};
use serde_json::{Value, json};
use tch::Tensor;

use crate::tensors::{gradient, leaf, nested, tensor};
use crate::verl_loss::{COUNT_EPSILON, aggregation, denominators};

use crate::{Check, Consumer};

pub(crate) const CONSUMERS: &[Consumer] = &[
    ("verl/compute_policy_loss_cispo", Check::Result(cispo)),
    ("verl/compute_policy_loss_geo_mean", Check::Result(geo_mean)),
    ("verl/compute_policy_loss_gpg", Check::Result(gpg)),
    ("verl/compute_policy_loss_gspo", Check::Result(gspo)),
    ("verl/compute_policy_loss_sapo", Check::Result(sapo)),
    ("verl/compute_policy_loss_vanilla", Check::Result(vanilla)),
];

/// The clip bounds: either may be left to `clip_ratio`.
fn clip(case: &Case) -> Result<(f64, f64), Failure> {
    let both = case.params.number_or("clip_ratio", 0.2)?;
    let low = case.params.number_or("clip_ratio_low", both)?;
    Ok((low, case.params.number_or("clip_ratio_high", both)?))
}

fn vanilla(case: &Case) -> Result<Value, Failure> {
    let (clip_low, clip_high) = clip(case)?;
    let dual_clip = Some(case.params.number_or("clip_ratio_c", 3.0)?);
    let spec = PpoClip { clip_low, clip_high, dual_clip, ..PpoClip::default() };
    with_metrics(Loss::of(case, PolicyTerm::PpoClip(spec), aggregation(case)?)?)
}

fn gspo(case: &Case) -> Result<Value, Failure> {
    let (clip_low, clip_high) = clip(case)?;
    let spec = Gspo { clip_low, clip_high, ..Gspo::default() };
    // Whatever the case's aggregation says.
    with_metrics(Loss::of(case, PolicyTerm::Gspo(spec), Aggregation::SeqMeanTokenMean)?)
}

fn cispo(case: &Case) -> Result<Value, Failure> {
    let (clip_low, clip_high) = clip(case)?;
    let spec = Cispo { clip_low, clip_high, ..Cispo::default() };
    with_metrics(Loss::of(case, PolicyTerm::Cispo(spec), aggregation(case)?)?)
}

fn sapo(case: &Case) -> Result<Value, Failure> {
    let usual = Sapo::default();
    let spec = Sapo {
        tau_pos: case.params.number_or("tau_pos", usual.tau_pos)?,
        tau_neg: case.params.number_or("tau_neg", usual.tau_neg)?,
        ..usual
    };
    with_metrics(Loss::of(case, PolicyTerm::Sapo(spec), Aggregation::SeqMeanTokenMean)?)
}

fn gpg(case: &Case) -> Result<Value, Failure> {
    let ours = Loss::of(case, PolicyTerm::Gpg, aggregation(case)?)?;
    Ok(ours.json(json!({})))
}

fn geo_mean(case: &Case) -> Result<Value, Failure> {
    let (clip_low, clip_high) = clip(case)?;
    let row_epsilon = Denominators::VERL_ROW_EPSILON;
    let spec = GeoMean { clip_low, clip_high, row_epsilon, ..GeoMean::default() };
    let mask = tensor(&case.inputs, "response_mask")?;
    let rows = mask.size().first().map_or(0, |rows| *rows as usize);
    let counts = Denominators::from_mask(&mask, Layout::Padded, 1.0)
        .map_err(Failure::refused)?
        .with_all_sequences(rows);
    let term = PolicyTerm::GeoMean(spec);
    with_metrics(Loss::with(case, term, Aggregation::SeqMeanTokenMean, &counts)?)
}

/// A loss with its gradient.
struct Loss {
    terms: PolicyTerms,
    gradient: Tensor,
}

impl Loss {
    fn of(case: &Case, term: PolicyTerm, aggregation: Aggregation) -> Result<Self, Failure> {
        let counts = denominators(case, &tensor(&case.inputs, "response_mask")?)?;
        Self::with(case, term, aggregation, &counts)
    }

    fn with(
        case: &Case,
        policy: PolicyTerm,
        aggregation: Aggregation,
        counts: &Denominators,
    ) -> Result<Self, Failure> {
        let logp = leaf(&case.inputs, "log_prob")?;
        let old_logp = tensor(&case.inputs, "old_log_prob")?;
        let advantage = tensor(&case.inputs, "advantages")?;
        let mask = tensor(&case.inputs, "response_mask")?;
        let weight = case.inputs.has("rollout_is_weights");
        let weight = weight.then(|| tensor(&case.inputs, "rollout_is_weights")).transpose()?;
        let batch = Batch {
            weight: weight.as_ref(),
            ..Batch::new(&logp, &old_logp, &advantage, &mask, Layout::Padded)
        };
        let objective = Objective { policy, aggregation, ..Objective::default() };
        let terms = policy_loss(&objective, &batch, counts).map_err(Failure::refused)?;
        Ok(Self { gradient: gradient(&terms.loss, &logp), terms })
    }

    fn json(&self, metrics: Value) -> Value {
        json!({
            "loss": encode(self.terms.sums.loss),
            "metrics": metrics,
            "grad_log_prob": nested(&self.gradient),
        })
    }
}

fn with_metrics(ours: Loss) -> Result<Value, Failure> {
    let sums = ours.terms.sums;
    let mean = |sum: f64| encode(sum / (sums.tokens + COUNT_EPSILON));
    Ok(ours.json(json!({
        "actor/pg_clipfrac": mean(sums.clipped),
        "actor/ppo_kl": mean(sums.approx_kl),
        "actor/pg_clipfrac_lower": mean(sums.clipped_lower),
    })))
}
