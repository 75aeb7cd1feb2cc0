//! safe-rlhf and HC-RLHF: multipliers, confidence bounds, token rewards and advantages.

use plumb_algo::advantage::{Gae, Outside, response_gae};
use plumb_algo::clamped_reward::{ClampedReward, Score};
use plumb_algo::constraint::{
    AugmentedCost, ConfidenceBound, CostWindow, Mixing, Multiplier, MultiplierSpec, NoSpread,
    RunningBaseline, SafetyTest, Verdict, penalized_rewards, student_t_quantile,
};
use plumb_golden::{Case, Failure, Fields, encode, encode_all};
use serde_json::{Value, json};

use crate::{Check, Consumer};

pub(crate) const CONSUMERS: &[Consumer] = &[
    ("hc_rlhf/augmented_cost", Check::Result(augmented_cost)),
    ("hc_rlhf/ci_lambda_update", Check::Result(ci_lambda_update)),
    ("hc_rlhf/kl_regularized_sequence_reward", Check::Result(sequence_reward)),
    ("hc_rlhf/running_baseline", Check::Result(running_baseline)),
    ("hc_rlhf/safety_test_ucb", Check::Result(safety_test)),
    ("hc_rlhf/student_t_ppf", Check::Result(student_t)),
    ("safe_rlhf/get_advantages_and_returns", Check::Result(advantages_and_returns)),
    ("safe_rlhf/kl_regularized_rewards", Check::Result(token_rewards)),
    ("safe_rlhf/lagrange_lambda_update", Check::Result(lambda_update)),
    ("safe_rlhf/reward_shaping", Check::Result(reward_shaping)),
];

fn student_t(case: &Case) -> Result<Value, Failure> {
    let (p, df) = (case.inputs.number("p")?, case.inputs.number("df")?);
    Ok(encode(student_t_quantile(p, df).map_err(Failure::refused)?))
}

/// The multiplier's settings. A `lambda_max` of null or 0 is none.
fn multiplier(case: &Case) -> Result<Multiplier, Failure> {
    let max = case.params.number_or("lambda_max", 0.0)?;
    let delay = if case.params.has("lambda_update_delay_steps") {
        case.params.count("lambda_update_delay_steps")? as u64
    } else {
        0
    };
    let spec = MultiplierSpec {
        initial: case.params.number("lambda_init")?,
        learning_rate: case.params.number("lambda_lr")?,
        max: (max != 0.0).then_some(max),
        delay_steps: delay,
        threshold: case.params.number("threshold")?,
    };
    Multiplier::new(spec).map_err(Failure::refused)
}

fn bound(case: &Case) -> Result<ConfidenceBound, Failure> {
    Ok(ConfidenceBound {
        fail_probability: case.params.number("fail_prob")?,
        safety_samples: case.params.count("safety_dataset_size")?,
        training_weight: case.params.number("students_c1")?,
        safety_weight: case.params.number("students_c2")?,
    })
}

fn lambda_update(case: &Case) -> Result<Value, Failure> {
    let size = if case.params.has("episode_cost_window_size") {
        case.params.count("episode_cost_window_size")?
    } else {
        usize::MAX
    };
    let mut window = CostWindow::new(size).map_err(Failure::refused)?;
    let mut multiplier = multiplier(case)?;
    let mut steps = Vec::new();
    for (step, costs) in case.inputs.matrix("costs_per_step")?.iter().enumerate() {
        window.extend(costs).map_err(Failure::refused)?;
        let cost = window.mean().map_err(Failure::refused)?;
        multiplier.update(step as u64, cost).map_err(Failure::refused)?;
        steps.push(json!({
            "episode_cost": encode(cost),
            "log_lambda": encode(multiplier.log_lambda()),
            "lambda": encode(multiplier.lambda()),
        }));
    }
    Ok(Value::Array(steps))
}

fn ci_lambda_update(case: &Case) -> Result<Value, Failure> {
    let costs = case.inputs.vector("all_costs")?;
    let (upper, coefficient) = bound(case)?.bound(&costs).map_err(Failure::refused)?;
    let mut multiplier = multiplier(case)?;
    let loss = multiplier.loss(upper);
    multiplier.update(0, upper).map_err(Failure::refused)?;
    Ok(json!({
        "t_value_in": encode(coefficient.t_training),
        "t_value_out": encode(coefficient.t_safety),
        "students_coeff": encode(coefficient.value),
        "ucb": encode(upper),
        "lambda_loss": encode(loss),
        "log_lambda": encode(multiplier.log_lambda()),
        "lambda": encode(multiplier.lambda()),
    }))
}

fn augmented_cost(case: &Case) -> Result<Value, Failure> {
    let spec = AugmentedCost { bound: bound(case)?, no_spread: NoSpread::CompatDivide };
    let batch = case.params.count("per_device_train_batch_size")?
        * case.params.count("num_samples_per_prompt")?;
    let (augmented, k) = spec
        .of(batch, &case.inputs.vector("all_costs")?, &case.inputs.vector("cost")?)
        .map_err(Failure::refused)?;
    Ok(json!({ "scale_coeff": encode(k), "augmented_cost": encode_all(&augmented) }))
}

fn running_baseline(case: &Case) -> Result<Value, Failure> {
    let lambda = case.params.number("lambda")?;
    let mut baseline = RunningBaseline::default();
    let mut steps = Vec::new();
    for step in case.inputs.list("steps")? {
        let step = Fields(step.clone());
        let (rewards, costs) = (step.vector("rewards")?, step.vector("augmented_costs")?);
        let net = Mixing::Undivided.mix(&rewards, &costs, lambda).map_err(Failure::refused)?;
        baseline.update(&net).map_err(Failure::refused)?;
        steps.push(json!({ "mean": baseline.mean(), "count": baseline.count() }));
    }
    Ok(Value::Array(steps))
}

fn safety_test(case: &Case) -> Result<Value, Failure> {
    let test = SafetyTest {
        fail_probability: case.params.number("fail_prob")?,
        threshold: case.params.number("threshold")?,
        ..SafetyTest::default()
    };
    let verdict = test.decide(&case.inputs.vector("costs")?).map_err(Failure::refused)?;
    let (figures, passes) = match verdict {
        Verdict::Pass(figures) => (figures, true),
        Verdict::Fail(figures) => (figures, false),
        Verdict::NotEnoughData { .. } => return Err(Failure::refused(verdict)),
    };
    Ok(json!({
        "C": encode(figures.coefficient),
        "safety_ucb": encode(figures.upper_bound),
        "passes": passes,
        "cost_success_rate": figures.success_rate,
    }))
}

fn clamped(case: &Case) -> Result<ClampedReward, Failure> {
    Ok(ClampedReward {
        kl_coef: case.params.number("kl_coeff")?,
        clip: case.params.number("clip_range_score")?,
    })
}

fn sequence_reward(case: &Case) -> Result<Value, Failure> {
    let spec = clamped(case)?;
    let Some(start) = case.params.count("prompt_len")?.checked_sub(1) else {
        return Err(Failure::Malformed("\"prompt_len\" is 0".to_owned()));
    };
    let logps = case.inputs.matrix("log_probs")?;
    let bases = case.inputs.matrix("ref_log_probs")?;
    let masks = case.inputs.mask("sequence_mask")?;
    let rewards = case.inputs.vector("reward")?;
    let rows = rewards.iter().zip(&logps).zip(&bases).zip(&masks);
    let sums = rows.map(|(((reward, logp), base), mask)| {
        spec.sequence(*reward, logp, base, mask, start).map_err(Failure::refused)
    });
    Ok(encode_all(&sums.collect::<Result<Vec<_>, _>>()?))
}

fn token_rewards(case: &Case) -> Result<Value, Failure> {
    let spec = clamped(case)?;
    let logps = case.inputs.matrix("log_probs")?;
    let bases = case.inputs.matrix("ref_log_probs")?;
    let masks = case.inputs.mask("sequence_mask")?;
    let tokens = |kind: Score, key: &str| -> Result<Value, Failure> {
        let scores = case.inputs.vector(key)?;
        let rows = scores.iter().zip(&logps).zip(&bases).zip(&masks);
        let rows = rows.map(|(((score, logp), base), mask)| {
            let row = spec.tokens(kind, *score, logp, base, mask).map_err(Failure::refused)?;
            Ok(encode_all(&row))
        });
        Ok(Value::Array(rows.collect::<Result<_, Failure>>()?))
    };
    let rewards = tokens(Score::Reward, "reward")?;
    Ok(json!({
        "ppo_rewards": rewards,
        "ppo_lag_rewards": rewards,
        "ppo_lag_costs": tokens(Score::Cost, "cost")?,
    }))
}

fn advantages_and_returns(case: &Case) -> Result<Value, Failure> {
    let spec = Gae {
        gamma: case.params.number("gamma")?,
        lambda: case.params.number("gae_lambda")?,
        outside: Outside::Zero,
    };
    let start = case.params.count("start")?;
    let rewards = case.inputs.matrix("rewards")?;
    let values = case.inputs.matrix("values")?;
    let masks = case.inputs.mask("sequence_mask")?;
    let (mut advantages, mut returns) = (Vec::new(), Vec::new());
    for ((rewards, values), mask) in rewards.iter().zip(&values).zip(&masks) {
        let row = response_gae(&spec, rewards, values, mask, start).map_err(Failure::refused)?;
        advantages.push(encode_all(&row.advantages));
        returns.push(encode_all(&row.returns));
    }
    Ok(json!({ "advantages": advantages, "returns": returns }))
}

fn reward_shaping(case: &Case) -> Result<Value, Failure> {
    let lambda = case.params.number("lambda_init")?;
    let (rewards, costs) = (case.inputs.vector("reward")?, case.inputs.vector("cost")?);
    let shaped = penalized_rewards(&rewards, &costs, lambda).map_err(Failure::refused)?;
    Ok(encode_all(&shaped))
}
