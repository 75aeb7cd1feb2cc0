//! Gradients that are not finite: the step is left out on every rank, or refused.

use plumb_model::Packed;
use tch::Tensor;

use super::support::*;
use crate::head::{ChosenTokens, TokenGradients, TokenValues};
use crate::{
    AdamWSettings, EmaSettings, EngineError, LoadPlan, OptimizerStep, Result, ShardedModel,
    TargetText, train_texts,
};

/// Three tokens of a text on every rank; the last rank's slope is infinite where `poisoned`.
fn step(model: &mut ShardedModel, poisoned: bool) -> Result<OptimizerStep> {
    let ids: Vec<u32> = (0..7).map(|at| (at * 5 + 3) % 29).collect();
    let packed = Packed::new(&[&ids]).unwrap();
    let chosen = ChosenTokens {
        rows_m: Tensor::from_slice(&[2i64, 3, 4]),
        targets_m: Tensor::from_slice(&[i64::from(ids[3]), i64::from(ids[4]), 9]),
    };
    let last = model.rank() + 1 == model.world_size();
    let slope = if poisoned && last { f64::INFINITY } else { -1.0 / model.world_size() as f64 };
    let mut loss = |values: &TokenValues, _: i64| {
        Ok(TokenGradients { logp_m: values.logp_m.full_like(slope), entropy_m: None })
    };
    model.train_on_tokens(&packed, &chosen, 1.0, &mut loss)?;
    model.optimizer_step_on(0.05)
}

fn plan_with(max_skipped_steps: u32) -> LoadPlan {
    LoadPlan {
        optimizer: Some(AdamWSettings { max_skipped_steps, ..adamw() }),
        ema: Some(EmaSettings { decay: 0.5, interval: 1 }),
        ..plan(settings())
    }
}

/// Weights, average and steps taken.
fn state(model: &mut ShardedModel) -> (Vec<f32>, Vec<f32>, u64) {
    let average = model.with_average(|model| Ok(weights(model))).unwrap();
    (weights(model), average, model.optimizer_step())
}

#[test]
fn a_skipped_step_leaves_no_trace_and_too_many_in_a_row_fail() {
    let tiny = TinyModel::new(true, 5);
    for world_size in [1, 2, 4] {
        ranks(world_size, |comm| {
            let mut model = tiny.load(plan_with(2), comm);
            let mut poisoned = Vec::new();
            for bad in [false, true, true, false, true] {
                let step = step(&mut model, bad).unwrap();
                poisoned.push(step == OptimizerStep::Skipped);
            }
            assert_eq!(poisoned, [false, true, true, false, true]);
            let with_skips = state(&mut model);
            let refused = [step(&mut model, true), step(&mut model, true)];
            assert!(matches!(refused[0], Ok(OptimizerStep::Skipped)), "{refused:?}");
            let Err(error) = &refused[1] else { panic!("a third in a row was skipped") };
            let message = error.to_string();
            assert!(
                message.contains("3 optimiser steps in a row")
                    && message.contains("max_skipped_steps allows 2"),
                "{message}"
            );
            assert_eq!(state(&mut model), with_skips, "a refused step changed something");

            let mut plain = tiny.load(plan_with(0), model.into_collective());
            step(&mut plain, false).unwrap();
            step(&mut plain, false).unwrap();
            assert_eq!(state(&mut plain), with_skips, "world size {world_size}");
            let error = step(&mut plain, true).unwrap_err();
            assert!(matches!(error, EngineError::NonFinite { step: 2, .. }), "{error}");
            assert_eq!(state(&mut plain), with_skips);
        });
    }
}

#[test]
fn trainers_count_skipped_steps_and_give_no_norm_for_them() {
    let tiny = TinyModel::new(true, 5);
    let targets = std::iter::once(1..4).collect();
    let text = TargetText { id: "t".to_owned(), ids: vec![3, 4, 5, 6], targets };
    let mut model = tiny.load(plan_with(1), Box::new(plumb_collective::solo()));
    let metrics = train_texts(&mut model, std::slice::from_ref(&text), 0.01).unwrap();
    assert_eq!(metrics["skipped_steps"], 0.0);
    assert!(metrics["grad_norm"] > 0.0);
    let mut metrics = crate::Metrics::new();
    step(&mut model, true).unwrap().report(&mut metrics);
    assert_eq!(metrics.into_iter().collect::<Vec<_>>(), [("skipped_steps".to_owned(), 1.0)]);
}
