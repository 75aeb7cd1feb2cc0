//! The language-model loss, and moving averages of parameters.

use plumb_algo::parameter_average::{ParameterAverage, moving_average};
use plumb_golden::{Case, Failure, Fields};
use plumb_loss::supervised::{CausalLm, causal_lm};
use serde_json::{Value, json};
use tch::{Kind, Tensor};

use crate::tensors::{gradient, leaf, nested, tensor};

use crate::{Check, Consumer};

pub(crate) const CONSUMERS: &[Consumer] = &[
    ("safe_rlhf/sft_causal_lm_loss", Check::Result(sft)),
    ("hc_rlhf/ema_moving_average", Check::Result(hc_average)),
    ("lightrft/ema_update", Check::Result(lightrft_average)),
];

fn sft(case: &Case) -> Result<Value, Failure> {
    let ignore_index = case.params.number_or("ignore_index", -100.0)? as i64;
    let spec = CausalLm { ignore_index };
    let logits = leaf(&case.inputs, "logits")?;
    let labels = tensor(&case.inputs, "labels")?.to_kind(Kind::Int64);
    let rows = case.inputs.matrix("labels")?;
    let rows: Vec<Vec<i64>> =
        rows.iter().map(|row| row.iter().map(|label| *label as i64).collect()).collect();
    let own = spec.target_count(rows.iter().map(Vec::as_slice));
    let targets = case.params.number_or("num_items_in_batch", own as f64)? as usize;
    let ours = causal_lm(&spec, &logits, &labels, targets).map_err(Failure::refused)?;
    Ok(json!({
        "loss": nested(&ours.loss),
        "grad_logits": nested(&gradient(&ours.loss, &logits)),
    }))
}

/// A parameter: its numbers and shape.
type Shaped = (Vec<f64>, Vec<i64>);

fn parameters(case: &Case, key: &str) -> Result<Vec<Shaped>, Failure> {
    let each = case.inputs.list(key)?.iter();
    each.map(|value| Fields(json!({ "parameter": value })).flat("parameter")).collect()
}

fn shaped(parameters: &[Shaped]) -> Value {
    let each = parameters.iter();
    each.map(|(numbers, shape)| nested(&Tensor::from_slice(numbers).reshape(shape))).collect()
}

fn hc_average(case: &Case) -> Result<Value, Failure> {
    let beta = case.params.number_or("beta", ParameterAverage::HC_RLHF_BETA)?;
    let mut ema = parameters(case, "ema")?;
    for ((parameter, _), (ema, _)) in parameters(case, "param")?.iter().zip(&mut ema) {
        moving_average(beta, parameter, ema).map_err(Failure::refused)?;
    }
    Ok(shaped(&ema))
}

fn lightrft_average(case: &Case) -> Result<Value, Failure> {
    let beta = case.params.number_or("beta", ParameterAverage::LIGHTRFT_BETA)?;
    let interval = case.params.number_or("accumulated_gradient", 1.0)? as u64;
    let mut average = ParameterAverage::new(beta, interval).map_err(Failure::refused)?;
    let trainable = case.inputs.vector("param_requires_grad")?;
    let current = parameters(case, "param")?;
    let mut ema = parameters(case, "ema")?;
    for _ in 0..case.params.count("num_calls")? {
        if !average.step() {
            continue;
        }
        for (((parameter, _), (ema, _)), trainable) in current.iter().zip(&mut ema).zip(&trainable)
        {
            if *trainable != 0.0 {
                average.follow(parameter, ema).map_err(Failure::refused)?;
            }
        }
    }
    Ok(shaped(&ema))
}
