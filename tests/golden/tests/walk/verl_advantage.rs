//! verl: advantages, masked statistics, overlong penalty.

use plumb_algo::advantage::{self, Gae, Grpo, Rloo, Singleton};
use plumb_algo::group::Groups;
use plumb_algo::masked::{Moments, whiten};
use plumb_algo::overlong::Overlong;
use plumb_golden::{Case, Failure, encode, encode_all};
use serde_json::{Value, json};

use crate::{Check, Consumer};

pub(crate) const CONSUMERS: &[Consumer] = &[
    ("verl/compute_gae_advantage_return", Check::Result(gae)),
    ("verl/compute_grpo_outcome_advantage", Check::Result(grpo)),
    ("verl/compute_grpo_vectorized_outcome_advantage", Check::Result(grpo)),
    ("verl/compute_rloo_outcome_advantage", Check::Result(rloo)),
    ("verl/compute_rloo_vectorized_outcome_advantage", Check::Result(rloo_vectorized)),
    ("verl/dapo_overlong_penalty", Check::Result(overlong)),
    ("verl/masked_stats", Check::Result(masked_stats)),
];

fn grpo(case: &Case) -> Result<Value, Failure> {
    let spec = Grpo {
        norm_by_std: case.params.flag("norm_adv_by_std_in_grpo")?,
        epsilon: case.params.number_or("epsilon", 1e-6)?,
        singleton: Singleton::Keep,
    };
    outcome(case, |scores, groups| advantage::grpo(&spec, scores, groups).map_err(Failure::refused))
}

fn rloo(case: &Case) -> Result<Value, Failure> {
    let spec = Rloo { singleton: Singleton::Keep };
    outcome(case, |scores, groups| advantage::rloo(&spec, scores, groups).map_err(Failure::refused))
}

fn rloo_vectorized(case: &Case) -> Result<Value, Failure> {
    let spec = Rloo { singleton: Singleton::Zero };
    outcome(case, |scores, groups| advantage::rloo(&spec, scores, groups).map_err(Failure::refused))
}

/// An outcome advantage: sums of token rewards in, one figure a sample on its tokens out.
fn outcome(
    case: &Case,
    advantages: impl Fn(&[f64], &Groups) -> Result<Vec<f64>, Failure>,
) -> Result<Value, Failure> {
    let scores: Vec<f64> =
        case.inputs.matrix("token_level_rewards")?.iter().map(|row| row.iter().sum()).collect();
    let keys: Vec<String> = case.inputs.list("index")?.iter().map(Value::to_string).collect();
    let advantages = advantages(&scores, &Groups::by_key(&keys))?;
    let mask = case.inputs.mask("response_mask")?;
    let rows: Vec<Value> = advantages
        .iter()
        .zip(&mask)
        .map(|(a, mask)| encode_all(&advantage::broadcast(*a, mask)))
        .collect();
    Ok(json!({ "advantages": rows, "returns": rows }))
}

fn gae(case: &Case) -> Result<Value, Failure> {
    let spec = Gae {
        gamma: case.params.number("gamma")?,
        lambda: case.params.number("lam")?,
        ..Gae::default()
    };
    let rewards = case.inputs.matrix("token_level_rewards")?;
    let values = case.inputs.matrix("values")?;
    let mask = case.inputs.mask("response_mask")?;
    let (mut advantages, mut returns) = (Vec::new(), Vec::new());
    for ((rewards, values), mask) in rewards.iter().zip(&values).zip(&mask) {
        let (mut a, mut g) = (vec![0.0; rewards.len()], vec![0.0; rewards.len()]);
        advantage::gae(&spec, rewards, values, mask, &mut a, &mut g).map_err(Failure::refused)?;
        advantages.extend(a);
        returns.push(encode_all(&g));
    }
    whiten(&mut advantages, &mask.concat(), true).map_err(Failure::refused)?;
    let width = mask.first().map_or(1, Vec::len);
    let advantages: Vec<Value> = advantages.chunks(width).map(encode_all).collect();
    Ok(json!({ "advantages": advantages, "returns": returns }))
}

fn masked_stats(case: &Case) -> Result<Value, Failure> {
    let rows = case.inputs.matrix("values")?;
    let mask = case.inputs.mask("mask")?;
    let moments = |values: &[f64], mask: &[bool]| {
        Moments::with_count_epsilon(values, mask, Moments::VERL_COUNT_EPSILON)
            .map_err(Failure::refused)
    };
    let per_row: Vec<Value> = rows
        .iter()
        .zip(&mask)
        .map(|(row, mask)| Ok(encode(moments(row, mask)?.mean)))
        .collect::<Result<_, Failure>>()?;
    let (mut flat, flat_mask) = (rows.concat(), mask.concat());
    let whole = moments(&flat, &flat_mask)?;
    let shift = case.params.flag("shift_mean")?;
    whiten(&mut flat, &flat_mask, shift).map_err(Failure::refused)?;
    let width = rows.first().map_or(1, Vec::len);
    Ok(json!({
        "masked_mean": whole.mean,
        "masked_mean_axis1": per_row,
        "masked_var": whole.unbiased_variance().map_err(Failure::refused)?,
        "masked_var_biased": whole.population_variance,
        "masked_whiten": flat.chunks(width).map(encode_all).collect::<Vec<_>>(),
    }))
}

fn overlong(case: &Case) -> Result<Value, Failure> {
    let spec = Overlong {
        max_new_tokens: case.params.count("max_resp_len")? as u32,
        buffer_tokens: case.params.count("overlong_buffer_len")? as u32,
        factor: case.params.number("penalty_factor")?,
    };
    let length = case.inputs.count("valid_response_length")?;
    let penalty = spec.penalty(length).map_err(Failure::refused)?;
    let reward = case.inputs.number("reward")? + penalty;
    Ok(json!({ "overlong_reward": penalty, "reward": reward }))
}
