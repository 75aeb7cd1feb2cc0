//! LightRFT: reward shaping, returns and advantages, KL in the reward, overlong penalty.

use plumb_algo::advantage::{
    self, Cpgd, CrossBatch, Estimator, Gae, Outcomes, Outside, ReinforceBaseline, Singleton,
};
use plumb_algo::group::Groups;
use plumb_algo::kl::Clamps;
use plumb_algo::kl_controller::KlController;
use plumb_algo::masked::standardize;
use plumb_algo::overlong::Overlong;
use plumb_algo::running_moments::RunningMoments;
use plumb_algo::token_reward::{TokenReward, token_rewards};
use plumb_algo::{dynamic_sampling, kl, returns};
use plumb_golden::{Case, Failure, Fields, encode, encode_all};
use plumb_loss::kl as tensor_kl;
use serde_json::{Value, json};

use crate::tensors::{nested, tensor};
use crate::verl_advantage::rows_like;
use crate::{Check, Consumer};

pub(crate) const CONSUMERS: &[Consumer] = &[
    ("lightrft/advantage_compute", Check::Result(compute)),
    ("lightrft/compute_approx_kl", Check::Result(approx_kl)),
    ("lightrft/compute_reward", Check::Result(token_reward)),
    ("lightrft/cpgd_advantages", Check::Result(cpgd)),
    ("lightrft/kl_controller", Check::Result(kl_controller)),
    ("lightrft/normalize_advantages_cross_batch", Check::Result(cross_batch)),
    ("lightrft/overlong_penalty", Check::Result(overlong)),
    ("lightrft/preprocess_rewards", Check::Result(preprocess_rewards)),
    ("lightrft/running_moments", Check::Result(running_moments)),
];

/// LightRFT's name of an estimator; `grpo` is its alias of group_norm, and gae and cpgd leave
/// rewards as they are.
fn estimator(name: &str) -> Result<Estimator, Failure> {
    match name {
        "group_norm" | "grpo" => Ok(Estimator::GroupNorm),
        "gae" | "cpgd" | "reinforce" => Ok(Estimator::Reinforce),
        "reinforce_baseline" => {
            Ok(Estimator::ReinforceBaseline(ReinforceBaseline { singleton: Singleton::Zero }))
        }
        "rloo" => "rloo".parse().map_err(Failure::refused),
        other => Err(Failure::refused(format!("LightRFT has no estimator {other:?}"))),
    }
}

fn preprocess_rewards(case: &Case) -> Result<Value, Failure> {
    let name = case.params.text("advantage_estimator")?;
    let rewards = case.inputs.vector("rewards")?;
    let estimator = estimator(name)?;
    // What does not compare within groups does not look at them either.
    let samples_per_prompt = case.params.count("n_samples_per_prompt")?;
    let size = if estimator.compares_within_group() { samples_per_prompt } else { 1 };
    let groups = Groups::adjacent(size, rewards.len()).map_err(Failure::refused)?;
    let outcomes = Outcomes::of(&rewards, &groups);
    let shaped = estimator.advantages(&outcomes).map_err(Failure::refused)?;
    let experiences = case.params.count("num_experiences")?.max(1);
    let rows = rewards.len().div_ceil(experiences).max(1);
    let filters = case.params.has("dynamic_sampling")
        && case.params.flag("dynamic_sampling")?
        && estimator == Estimator::GroupNorm;
    let kept = if filters {
        let micro = case.params.count("micro_train_batch_size")?;
        let chunks =
            dynamic_sampling::compat_chunks(samples_per_prompt, micro, rows, rewards.len())
                .map_err(Failure::refused)?;
        dynamic_sampling::keep(&rewards, &chunks).map_err(Failure::refused)?
    } else {
        vec![true; rewards.len()]
    };
    // The reference reports one flag for each experience, a run of rows of one group.
    let kept: Vec<bool> = kept.chunks(rows).map(|chunk| chunk.iter().all(|k| *k)).collect();
    Ok(json!({ "shaped_rewards": encode_all(&shaped), "row_mask_kept": kept }))
}

fn cpgd(case: &Case) -> Result<Value, Failure> {
    let spec = Cpgd {
        weight: match case.params.has("weight_factor") {
            true => case.params.text("weight_factor")?.parse().map_err(Failure::refused)?,
            false => Cpgd::default().weight,
        },
        epsilon: case.params.number_or("epsilon", Cpgd::default().epsilon)?,
    };
    on_tokens(&spec, &case.inputs.matrix("reward")?, &case.inputs.mask("action_mask")?)
}

/// CPGD's advantages, which are its returns, from rewards in any number of columns.
fn on_tokens(spec: &Cpgd, rewards: &[Vec<f64>], mask: &[Vec<bool>]) -> Result<Value, Failure> {
    let rewards: Vec<f64> = rewards.iter().map(|row| advantage::outcome_score(row)).collect();
    let scores = advantage::cpgd(spec, &rewards).map_err(Failure::refused)?;
    let rows: Vec<Value> = scores
        .iter()
        .zip(mask)
        .map(|(a, mask)| encode_all(&advantage::broadcast(*a, mask)))
        .collect();
    Ok(json!({ "advantages": rows, "returns": rows }))
}

fn cross_batch(case: &Case) -> Result<Value, Failure> {
    let name = case.params.text("advantage_estimator")?;
    let (mut rows, mut mask) = (Vec::new(), Vec::new());
    for experience in case.inputs.list("experiences")? {
        let experience = Fields(experience.clone());
        rows.push(experience.matrix("advantages")?);
        mask.push(experience.mask("action_mask")?);
    }
    let mut flat: Vec<f64> = rows.concat().concat();
    if matches!(name, "gae" | "reinforce" | "reinforce_baseline") {
        let key = "no_advantage_std_norm";
        let spec = CrossBatch { divide_by_std: !(case.params.has(key) && case.params.flag(key)?) };
        advantage::cross_batch(&spec, &mut flat, &mask.concat().concat())
            .map_err(Failure::refused)?;
    }
    let mut rest = flat.as_slice();
    let experiences = rows.iter().map(|rows| {
        let (own, others) = rest.split_at(rows.iter().map(Vec::len).sum());
        rest = others;
        rows_like(rows, own)
    });
    Ok(Value::Array(experiences.collect()))
}

fn running_moments(case: &Case) -> Result<Value, Failure> {
    let mut moments = RunningMoments::default();
    let updates = case.inputs.matrix("batches")?.into_iter().map(|batch| {
        // The reference's values are float32.
        let batch: Vec<f64> = batch.into_iter().map(|x| f64::from(x as f32)).collect();
        let own = moments.update(&batch).map_err(Failure::refused)?;
        Ok(json!({
            "batch_mean": encode(own.mean),
            "batch_std": encode(own.std),
            "mean": encode(moments.mean()),
            "std": encode(moments.std()),
            "var": encode(moments.population_variance()),
            "count": moments.count(),
        }))
    });
    Ok(Value::Array(updates.collect::<Result<_, Failure>>()?))
}

fn compute(case: &Case) -> Result<Value, Failure> {
    let name = case.params.text("advantage_estimator")?;
    let rewards = case.inputs.matrix("token_rewards")?;
    let mask = case.inputs.mask("action_mask")?;
    let flat_mask = mask.concat();
    estimator(name)?;
    let (mut advantages, returns) = if name == "gae" {
        with_critic(case, &rewards, &mask)?
    } else if name == "cpgd" {
        // It reads the raw rewards of the experience and ignores normalisation and clipping.
        let key = if case.inputs.has("reward") { "reward" } else { "token_rewards" };
        let mut got = on_tokens(&Cpgd::default(), &case.inputs.matrix(key)?, &mask)?;
        got["info"] = json!({});
        return Ok(got);
    } else {
        // reinforce_baseline forces gamma 1.
        let given = case.params.number("gamma")?;
        let gamma = if name == "reinforce_baseline" { 1.0 } else { given };
        let returns = rewards.iter().zip(&mask).map(|(rewards, mask)| {
            let mut out = vec![0.0; rewards.len()];
            returns::discounted(rewards, mask, gamma, &mut out).map_err(Failure::refused)?;
            Ok(out)
        });
        let returns: Vec<Vec<f64>> = returns.collect::<Result<_, Failure>>()?;
        (returns.concat(), returns)
    };
    let normalizes = case.params.has("advantages_norm") && case.params.flag("advantages_norm")?;
    if normalizes && !matches!(name, "group_norm" | "grpo") {
        let epsilon = if name == "gae" { 1e-9 } else { 1e-8 };
        standardize(&mut advantages, &flat_mask, epsilon).map_err(Failure::refused)?;
    }
    let clips = case.params.number_or("advantage_clip", 0.0)?;
    let mut info = json!({});
    if clips > 0.0 {
        let mut outside = advantage::clip(&mut advantages, clips).map_err(Failure::refused)?;
        if name == "gae" {
            // There the share is counted after clipping and so is always 0.
            outside = advantage::clip(&mut advantages, clips).map_err(Failure::refused)?;
        }
        // The reference holds the share as float32, once for each row.
        let outside = f64::from(outside as f32);
        info = json!({ "advantage_clip_frac": vec![outside; rewards.len()] });
    } else if name == "gae" {
        info = json!({ "advantage_clip_frac": 0.0 });
    }
    Ok(json!({
        "advantages": rows_like(&rewards, &advantages),
        "returns": returns.iter().map(|row| encode_all(row)).collect::<Vec<_>>(),
        "info": info,
    }))
}

type Flat = (Vec<f64>, Vec<Vec<f64>>);

fn with_critic(case: &Case, rewards: &[Vec<f64>], mask: &[Vec<bool>]) -> Result<Flat, Failure> {
    let spec = Gae {
        gamma: case.params.number("gamma")?,
        lambda: case.params.number("lambd")?,
        outside: Outside::Zero,
    };
    let values = case.inputs.matrix("values")?;
    let (mut advantages, mut returns) = (Vec::new(), Vec::new());
    for b in 0..rewards.len() {
        let (mut a, mut g) = (vec![0.0; rewards[b].len()], vec![0.0; rewards[b].len()]);
        advantage::gae(&spec, &rewards[b], &values[b], &mask[b], &mut a, &mut g)
            .map_err(Failure::refused)?;
        advantages.extend(a);
        returns.push(g);
    }
    Ok((advantages, returns))
}

/// The scalar form, checked against the tensor form.
fn approx_kl(case: &Case) -> Result<Value, Failure> {
    let name = case.params.text("kl_estimator")?;
    let kind: kl::Kind = name.parse().map_err(Failure::refused)?;
    let logps = case.inputs.matrix("log_probs")?;
    let bases = case.inputs.matrix("log_probs_base")?;
    let mask = case.inputs.mask("action_mask")?;
    let rows = logps.iter().zip(&bases).zip(&mask).map(|((logp, base), mask)| {
        let tokens = plumb_algo::kl::of_tokens(kind, Clamps::Off, logp, base, mask)
            .map_err(Failure::refused)?;
        Ok(encode_all(&tokens))
    });
    let rows: Vec<Value> = rows.collect::<Result<_, Failure>>()?;
    let tensors = tensor_kl::kl_tokens(
        name.parse().map_err(Failure::refused)?,
        tensor_kl::Clamps::Off,
        &tensor(&case.inputs, "log_probs")?,
        &tensor(&case.inputs, "log_probs_base")?,
    )
    .map_err(Failure::refused)?;
    let masked = tensors * tensor(&case.inputs, "action_mask")?;
    let loose = plumb_golden::Tolerance { rtol: 0.0, atol: 1e-12 };
    if let Err(mismatch) = plumb_golden::compare(&nested(&masked), &json!(rows), loose) {
        panic!("the scalar and the tensor form differ: {mismatch}");
    }
    Ok(json!(rows))
}

fn token_reward(case: &Case) -> Result<Value, Failure> {
    let clip = if case.params.has("reward_clip_range") {
        match case.params.vector("reward_clip_range")?[..] {
            [least, greatest] => Some((least, greatest)),
            _ => return Err(Failure::Malformed("reward_clip_range is not a pair".into())),
        }
    } else {
        None
    };
    let spec = TokenReward { kl_coef: case.params.number("kl_coef")?, reward_clip: clip };
    let rewards = case.inputs.vector("r")?;
    let kl = case.inputs.matrix("kl")?;
    let mask = if case.inputs.has("action_mask") {
        case.inputs.mask("action_mask")?
    } else {
        // Packed samples: how many of a row's tokens are actions.
        let lengths = case.inputs.vector("num_actions")?;
        let first = |(kl, n): (&Vec<f64>, f64)| (0..kl.len()).map(|t| t < n as usize).collect();
        kl.iter().zip(lengths).map(first).collect()
    };
    let rows = rewards.iter().zip(&kl).zip(&mask).map(|((r, kl), mask)| {
        Ok(encode_all(&token_rewards(&spec, *r, kl, mask).map_err(Failure::refused)?))
    });
    Ok(Value::Array(rows.collect::<Result<_, Failure>>()?))
}

fn kl_controller(case: &Case) -> Result<Value, Failure> {
    let coef_key = if case.params.has("init_kl_coef") { "init_kl_coef" } else { "kl_coef" };
    let coef = case.params.number(coef_key)?;
    let controller = if case.params.has("target") {
        let (target, horizon) = (case.params.number("target")?, case.params.number("horizon")?);
        KlController::Adaptive { coef, target, horizon }
    } else {
        KlController::Fixed { coef }
    };
    let mut controller = controller.validate().map_err(Failure::refused)?;
    let mut values = vec![controller.coef()];
    for update in case.inputs.matrix("updates")? {
        controller.update(update[0], update[1] as usize).map_err(Failure::refused)?;
        values.push(controller.coef());
    }
    Ok(encode_all(&values))
}

fn overlong(case: &Case) -> Result<Value, Failure> {
    let spec = Overlong {
        max_new_tokens: case.params.count("max_new_tokens")? as u32,
        buffer_tokens: case.params.count("overlong_buffer_len")? as u32,
        factor: case.params.number("overlong_buffer_penalty_factor")?,
    };
    let rewards = case.inputs.vector("rewards")?;
    let lengths = case.inputs.vector("response_lengths")?;
    let (mut penalties, mut sums) = (Vec::new(), Vec::new());
    for (reward, length) in rewards.iter().zip(lengths) {
        let penalty = spec.penalty(length as usize).map_err(Failure::refused)?;
        penalties.push(encode(penalty));
        sums.push(encode(reward + penalty));
    }
    Ok(json!({ "penalty": penalties, "rewards": sums }))
}
