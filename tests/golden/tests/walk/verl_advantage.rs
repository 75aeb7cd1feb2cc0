//! verl: advantages, masked statistics, masks and filters, overlong penalty.

use plumb_algo::advantage::{
    self, Gae, Gpg, Grpo, Opo, PassK, ReinforcePlusPlusBaseline, Rloo, Singleton,
};
use plumb_algo::group::Groups;
use plumb_algo::masked::{Moments, whiten};
use plumb_algo::overlong::Overlong;
use plumb_algo::{AlgoError, dynamic_sampling, response_mask};
use plumb_golden::{Case, Failure, encode, encode_all};
use serde_json::{Value, json};

use crate::{Check, Consumer};

pub(crate) const CONSUMERS: &[Consumer] = &[
    ("verl/compute_gae_advantage_return", Check::Result(gae)),
    ("verl/compute_gpg_outcome_advantage", Check::Result(gpg)),
    ("verl/compute_grpo_outcome_advantage", Check::Result(grpo)),
    ("verl/compute_grpo_passk_outcome_advantage", Check::Result(pass_k)),
    ("verl/compute_grpo_vectorized_outcome_advantage", Check::Result(grpo_vectorized)),
    ("verl/compute_opo_outcome_advantage", Check::Result(opo)),
    (
        "verl/compute_reinforce_plus_plus_baseline_outcome_advantage",
        Check::Result(reinforce_plus_plus_baseline),
    ),
    ("verl/compute_reinforce_plus_plus_outcome_advantage", Check::Result(reinforce_plus_plus)),
    ("verl/compute_remax_outcome_advantage", Check::Result(remax)),
    ("verl/compute_rloo_outcome_advantage", Check::Result(rloo)),
    ("verl/compute_rloo_vectorized_outcome_advantage", Check::Result(rloo_vectorized)),
    ("verl/dapo_dynamic_sampling_filter", Check::Result(dapo_filter)),
    ("verl/dapo_overlong_penalty", Check::Result(overlong)),
    ("verl/get_response_mask", Check::Result(mask_to_end)),
    ("verl/masked_stats", Check::Result(masked_stats)),
];

/// The samples' outcome scores, from their token rewards.
pub(crate) fn scores(case: &Case, key: &str) -> Result<Vec<f64>, Failure> {
    Ok(case.inputs.matrix(key)?.iter().map(|row| advantage::outcome_score(row)).collect())
}

/// Samples with equal ids form a group.
pub(crate) fn groups(case: &Case, key: &str) -> Result<Groups, Failure> {
    let keys: Vec<String> = case.inputs.list(key)?.iter().map(Value::to_string).collect();
    Ok(Groups::by_key(&keys))
}

/// Cuts flat figures into rows as long as those of `rows`.
pub(crate) fn rows_like<T>(rows: &[Vec<T>], flat: &[f64]) -> Value {
    let mut rest = flat;
    let cut = rows.iter().map(|row| {
        let (own, others) = rest.split_at(row.len());
        rest = others;
        encode_all(own)
    });
    Value::Array(cut.collect())
}

fn norm_by_std(case: &Case) -> Result<bool, Failure> {
    let key = "norm_adv_by_std_in_grpo";
    if case.params.has(key) { case.params.flag(key) } else { Ok(true) }
}

fn grpo(case: &Case) -> Result<Value, Failure> {
    let spec = Grpo {
        norm_by_std: norm_by_std(case)?,
        epsilon: case.params.number_or("epsilon", 1e-6)?,
        singleton: Singleton::Keep,
    };
    outcome(case, |scores, groups| advantage::grpo(&spec, scores, groups))
}

fn grpo_vectorized(case: &Case) -> Result<Value, Failure> {
    let (norm, epsilon) = (norm_by_std(case)?, case.params.number_or("epsilon", 1e-6)?);
    outcome(case, |scores, groups| advantage::compat_grpo_vectorized(norm, epsilon, scores, groups))
}

fn pass_k(case: &Case) -> Result<Value, Failure> {
    let spec =
        PassK { norm_by_std: norm_by_std(case)?, epsilon: case.params.number_or("epsilon", 1e-6)? };
    outcome(case, |scores, groups| advantage::pass_k(&spec, scores, groups))
}

fn gpg(case: &Case) -> Result<Value, Failure> {
    let spec = Gpg { norm: case.params.number_or("f_norm", 1.0)?, ..Gpg::default() };
    outcome(case, |scores, groups| advantage::gpg(&spec, scores, groups))
}

fn opo(case: &Case) -> Result<Value, Failure> {
    let mask = case.inputs.mask("response_mask")?;
    let lengths: Vec<usize> =
        mask.iter().map(|row| row.iter().filter(|keep| **keep).count()).collect();
    outcome(case, |scores, groups| advantage::opo(&Opo::default(), scores, &lengths, groups))
}

fn rloo(case: &Case) -> Result<Value, Failure> {
    let spec = Rloo { singleton: Singleton::Keep };
    outcome(case, |scores, groups| advantage::rloo(&spec, scores, groups))
}

fn rloo_vectorized(case: &Case) -> Result<Value, Failure> {
    let spec = Rloo { singleton: Singleton::Zero };
    outcome(case, |scores, groups| advantage::rloo(&spec, scores, groups))
}

/// An outcome advantage: sums of token rewards in, one figure a sample on its tokens out.
fn outcome(
    case: &Case,
    advantages: impl Fn(&[f64], &Groups) -> Result<Vec<f64>, AlgoError>,
) -> Result<Value, Failure> {
    let scores = scores(case, "token_level_rewards")?;
    let advantages = advantages(&scores, &groups(case, "index")?).map_err(Failure::refused)?;
    let mask = case.inputs.mask("response_mask")?;
    let rows: Vec<Value> = advantages
        .iter()
        .zip(&mask)
        .map(|(a, mask)| encode_all(&advantage::broadcast(*a, mask)))
        .collect();
    Ok(json!({ "advantages": rows, "returns": rows }))
}

fn reinforce_plus_plus_baseline(case: &Case) -> Result<Value, Failure> {
    let scores = scores(case, "token_level_rewards")?;
    let mask = case.inputs.mask("response_mask")?;
    let width = mask.first().map_or(0, Vec::len);
    let advantages = advantage::reinforce_plus_plus_baseline(
        &ReinforcePlusPlusBaseline::default(),
        &scores,
        &groups(case, "index")?,
        &mask.concat(),
        width,
    )
    .map_err(Failure::refused)?;
    let rows = rows_like(&mask, &advantages);
    Ok(json!({ "advantages": rows, "returns": rows }))
}

fn reinforce_plus_plus(case: &Case) -> Result<Value, Failure> {
    let rewards = case.inputs.matrix("token_level_rewards")?;
    let mask = case.inputs.mask("response_mask")?.concat();
    let flat = rewards.concat();
    let (mut advantages, mut returns) = (vec![0.0; flat.len()], vec![0.0; flat.len()]);
    advantage::reinforce_plus_plus(
        case.params.number_or("gamma", 1.0)?,
        &flat,
        &mask,
        rewards.first().map_or(0, Vec::len),
        &mut advantages,
        &mut returns,
    )
    .map_err(Failure::refused)?;
    let (advantages, returns) = (rows_like(&rewards, &advantages), rows_like(&rewards, &returns));
    Ok(json!({ "advantages": advantages, "returns": returns }))
}

fn remax(case: &Case) -> Result<Value, Failure> {
    let rewards = case.inputs.matrix("token_level_rewards")?;
    let mask = case.inputs.mask("response_mask")?;
    let baselines = case.inputs.vector("reward_baselines")?;
    let (mut advantages, mut returns) = (Vec::new(), Vec::new());
    for ((rewards, mask), baseline) in rewards.iter().zip(&mask).zip(baselines) {
        let (mut a, mut g) = (vec![0.0; rewards.len()], vec![0.0; rewards.len()]);
        advantage::remax(rewards, baseline, mask, &mut a, &mut g).map_err(Failure::refused)?;
        advantages.push(encode_all(&a));
        returns.push(encode_all(&g));
    }
    Ok(json!({ "advantages": advantages, "returns": returns }))
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
    Ok(json!({ "advantages": rows_like(&rewards, &advantages), "returns": returns }))
}

fn dapo_filter(case: &Case) -> Result<Value, Failure> {
    let uids = case.inputs.list("uid")?;
    let metrics = case.inputs.vector("metric")?;
    let groups = groups(case, "uid")?;
    let stays =
        dynamic_sampling::resample(dynamic_sampling::Spread::CompatRounded, &metrics, &groups)
            .map_err(Failure::refused)?;
    let kept: Vec<&[usize]> =
        groups.iter().zip(stays).filter(|(_, stays)| *stays).map(|(members, _)| members).collect();
    let prompts: Vec<&Value> = kept.iter().map(|members| &uids[members[0]]).collect();
    let mut samples = kept.concat();
    samples.sort_unstable();
    Ok(json!({ "kept_prompt_uids": prompts, "kept_traj_idxs": samples }))
}

fn mask_to_end(case: &Case) -> Result<Value, Failure> {
    let whole = |number: &f64| *number as i64;
    let ends = match case.params.get("eos_token") {
        Ok(Value::Array(_)) => case.params.vector("eos_token")?.iter().map(whole).collect(),
        Ok(_) => vec![whole(&case.params.number("eos_token")?)],
        // The reference's default.
        Err(_) => vec![2],
    };
    let rows = case.inputs.matrix("response_id")?.into_iter().map(|row| {
        let ids: Vec<i64> = row.iter().map(whole).collect();
        response_mask::response_mask(&ids, &ends).into_iter().map(u8::from).collect()
    });
    Ok(json!(rows.collect::<Vec<Vec<u8>>>()))
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
    let shift = !case.params.has("shift_mean") || case.params.flag("shift_mean")?;
    whiten(&mut flat, &flat_mask, shift).map_err(Failure::refused)?;
    Ok(json!({
        "masked_mean": whole.mean,
        "masked_mean_axis1": per_row,
        "masked_var": whole.unbiased_variance().map_err(Failure::refused)?,
        "masked_var_biased": whole.population_variance,
        "masked_whiten": rows_like(&rows, &flat),
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
