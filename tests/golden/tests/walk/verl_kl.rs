//! verl: KL estimates, controllers, KL in the reward.

use plumb_algo::kl::{Clamps, Kind, of_tokens};
use plumb_algo::kl_controller::KlController;
use plumb_algo::masked::Moments;
use plumb_algo::token_reward::penalized_scores;
use plumb_golden::{Case, Failure, Fields, encode_all};
use plumb_loss::kl as tensor_kl;
use serde_json::{Value, json};

use crate::tensors::{gradient, leaf, nested, tensor};

use crate::{Check, Consumer};

pub(crate) const CONSUMERS: &[Consumer] = &[
    ("verl/apply_kl_penalty", Check::Result(apply_kl_penalty)),
    ("verl/kl_controllers", Check::Result(controllers)),
    ("verl/kl_penalty", Check::Result(kl_penalty)),
];

/// Both of our forms: the tensor one for value and gradient, the scalar one against it.
fn kl_penalty(case: &Case) -> Result<Value, Failure> {
    let name = case.params.text("kl_penalty")?;
    let kind: tensor_kl::Kind = name.parse().map_err(Failure::refused)?;
    let logp = leaf(&case.inputs, "logprob")?;
    let ref_logp = tensor(&case.inputs, "ref_logprob")?;
    let value = tensor_kl::kl_tokens(kind, tensor_kl::Clamps::Verl, &logp, &ref_logp)
        .map_err(Failure::refused)?;
    let scalar: Kind = name.parse().map_err(Failure::refused)?;
    let (logps, _) = case.inputs.flat("logprob")?;
    let (refs, _) = case.inputs.flat("ref_logprob")?;
    for (i, (logp, ref_logp)) in logps.iter().zip(&refs).enumerate() {
        let one = scalar.estimate(Clamps::Verl, *logp, *ref_logp);
        let other = value.reshape([-1]).double_value(&[i as i64]);
        let same = one == other || (one.is_nan() && other.is_nan());
        assert!(same || (one - other).abs() <= 1e-12 * (1.0 + one.abs()), "{one}, {other}");
    }
    let gradient = gradient(&value.sum(value.kind()), &logp);
    Ok(json!({ "value": nested(&value), "grad_logprob_of_sum": nested(&gradient) }))
}

fn controllers(case: &Case) -> Result<Value, Failure> {
    let mut controller = controller(&case.params)?;
    let mut values = vec![controller.coef()];
    for update in case.inputs.matrix("updates_kl_nsteps")? {
        controller.update(update[0], update[1] as usize).map_err(Failure::refused)?;
        values.push(controller.coef());
    }
    Ok(json!({ "values_after_each_update": encode_all(&values) }))
}

fn controller(params: &Fields) -> Result<KlController, Failure> {
    let coef = params.number("kl_coef")?;
    let controller = match params.text("type")? {
        "adaptive" => KlController::Adaptive {
            coef,
            target: params.number("target_kl")?,
            horizon: params.number("horizon")?,
        },
        _ => KlController::Fixed { coef },
    };
    controller.validate().map_err(Failure::refused)
}

fn apply_kl_penalty(case: &Case) -> Result<Value, Failure> {
    let kind: Kind = case.params.text("kl_penalty")?.parse().map_err(Failure::refused)?;
    let mut controller = controller(&case.params)?;
    let coef = controller.coef();
    let mask = case.inputs.mask("response_mask")?;
    let scores = case.inputs.matrix("token_level_scores")?;
    let logps = case.inputs.matrix("old_log_probs")?;
    let refs = case.inputs.matrix("ref_log_prob")?;
    let (mut rows, mut kl_mean) = (Vec::new(), 0.0);
    for b in 0..scores.len() {
        let kl = of_tokens(kind, Clamps::Verl, &logps[b], &refs[b], &mask[b])
            .map_err(Failure::refused)?;
        let tokens = penalized_scores(&scores[b], &kl, &mask[b], coef).map_err(Failure::refused)?;
        rows.push(encode_all(&tokens));
        let row = Moments::with_count_epsilon(&kl, &mask[b], Moments::VERL_COUNT_EPSILON)
            .map_err(Failure::refused)?;
        kl_mean += row.mean / scores.len() as f64;
    }
    controller.update(kl_mean, scores.len()).map_err(Failure::refused)?;
    Ok(json!({
        "token_level_rewards": rows,
        "metrics": {
            "actor/reward_kl_penalty": kl_mean,
            "actor/reward_kl_penalty_coeff": coef,
        },
        "kl_coef_after": controller.coef(),
    }))
}
