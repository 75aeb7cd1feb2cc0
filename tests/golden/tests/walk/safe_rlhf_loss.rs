//! safe-rlhf and HC-RLHF: actor and value losses, masked means, log-probs of given tokens.

use plumb_algo::constraint::{Mixing, penalized_rewards};
use plumb_golden::{Case, Failure, encode};
use plumb_loss::aggregate::{Aggregation, Denominators, Layout, aggregate};
use plumb_loss::logprobs::log_probs;
use plumb_loss::policy::{Baseline, Batch, Objective, PolicyTerm, PpoClip, policy_loss, reinforce};
use plumb_loss::value::{ValueLoss, value_loss};
use serde_json::{Value, json};
use tch::{Kind, Tensor};

use crate::tensors::{gradient, leaf, nested, tensor};

use crate::{Check, Consumer};

pub(crate) const CONSUMERS: &[Consumer] = &[
    ("hc_rlhf/reinforce_actor_loss", Check::Result(reinforce_actor)),
    ("safe_rlhf/actor_loss", Check::Result(actor)),
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

/// PPO on the reward's advantages, and PPO-Lag on those of reward and cost together.
fn actor(case: &Case) -> Result<Value, Failure> {
    let (ppo_loss, ppo_grad) = ppo(case, &tensor(&case.inputs, "reward_advantages")?)?;
    let (rewards, shape) = case.inputs.flat("reward_advantages")?;
    let (costs, _) = case.inputs.flat("cost_advantages")?;
    let mixed = Mixing::Divided
        .mix(&rewards, &costs, case.params.number("lambda")?)
        .map_err(Failure::refused)?;
    let (lag_loss, lag_grad) = ppo(case, &Tensor::from_slice(&mixed).reshape(&shape))?;
    Ok(json!({
        "ppo_loss": ppo_loss,
        "ppo_grad": ppo_grad,
        "ppo_lag_loss": lag_loss,
        "ppo_lag_grad": lag_grad,
    }))
}

fn ppo(case: &Case, advantage: &Tensor) -> Result<(Value, Value), Failure> {
    let clip = case.params.number_or("clip_range_ratio", 0.2)?;
    let objective = Objective {
        policy: PolicyTerm::PpoClip(PpoClip::lightrft(clip)),
        aggregation: Aggregation::SeqMeanTokenMean,
        ..Objective::default()
    };
    let logp = leaf(&case.inputs, "log_probs")?;
    let old_logp = tensor(&case.inputs, "old_log_probs")?;
    let mask = tensor(&case.inputs, "mask")?;
    let batch = Batch::new(&logp, &old_logp, advantage, &mask, Layout::Padded);
    let ours = policy_loss(&objective, &batch, &all_rows(&mask)?).map_err(Failure::refused)?;
    Ok((encode(ours.sums.loss), nested(&gradient(&ours.loss, &logp))))
}

/// Leave-one-out where it is asked for and there is another sample, else the running mean.
fn reinforce_actor(case: &Case) -> Result<Value, Failure> {
    let samples_per_prompt = case.params.count("num_samples_per_prompt")?;
    let baseline = if case.params.flag("rloo")? && samples_per_prompt > 1 {
        Baseline::LeaveOneOut { samples_per_prompt }
    } else {
        Baseline::Fixed(case.params.number("reinforce_mean_obj")?)
    };
    let lambda = case.params.number("lambda")?;
    let (rewards, costs) = (case.inputs.vector("rewards")?, case.inputs.vector("costs")?);
    let returns = penalized_rewards(&rewards, &costs, lambda).map_err(Failure::refused)?;
    let logp = leaf(&case.inputs, "log_probs")?;
    let mask = tensor(&case.inputs, "mask")?;
    let returns_b = Tensor::from_slice(&returns);
    let ours = reinforce(baseline, &logp, &returns_b, &mask, Layout::Padded, returns.len())
        .map_err(Failure::refused)?;
    Ok(json!({
        "loss": nested(&ours),
        "grad_log_probs": nested(&gradient(&ours, &logp)),
    }))
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
    let mut logits = tensor(&case.inputs, "logits")?;
    let ids = tensor(&case.inputs, "labels")?.to_kind(Kind::Int64);
    if ids.numel() == 0 {
        // A list without entries does not say how wide they would be.
        logits = logits.reshape([ids.size(), vec![1]].concat());
    }
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
