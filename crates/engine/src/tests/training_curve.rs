//! Twenty optimiser steps of supervised training against PyTorch's (tests/parity/data/training.json,
//! made by tests/parity/make_training_vectors.py).

use std::path::{Path, PathBuf};

use plumb_collective::Collective;
use plumb_model::{HeadSpec, LoraConfig, LoraTarget, Packed};
use serde::Deserialize;
use tch::{Device, Kind, Tensor};

use super::support::{ranks, settings};
use crate::head::{ChosenTokens, TokenGradients, TokenValues};
use crate::micro_batch::Plan;
use crate::{
    AdamWSettings, EmaSettings, EngineSettings, LoadPlan, LoraPlan, OptimizerStep, ParameterGroup,
    Precision, ShardedModel,
};

#[derive(Deserialize)]
pub(super) struct Curves {
    pub(super) settings: Settings,
    pub(super) steps: Vec<Vec<Row>>,
    pub(super) cases: Cases,
}

#[derive(Deserialize)]
pub(super) struct Settings {
    lr: f64,
    beta1: f64,
    beta2: f64,
    eps: f64,
    weight_decay: f64,
    max_grad_norm: f64,
    warmup_steps: usize,
    steps: usize,
}

#[derive(Deserialize)]
pub(super) struct Row {
    ids: Vec<u32>,
    prompt_tokens: usize,
}

#[derive(Deserialize)]
pub(super) struct Cases {
    pub(super) fp32: Curve,
    bf16: Curve,
    lora: Curve,
    ema: AveragedLoss,
    groups: GroupedCurve,
}

#[derive(Deserialize)]
pub(super) struct GroupedCurve {
    #[serde(flatten)]
    curve: Curve,
    freeze: Vec<String>,
    groups: Vec<Group>,
}

#[derive(Deserialize)]
pub(super) struct Group {
    pattern: String,
    #[serde(default)]
    learning_rate_scale: Option<f64>,
    weight_decay: f64,
}

#[derive(Deserialize)]
pub(super) struct AveragedLoss {
    decay: f64,
    last_batch_loss: f64,
}

#[derive(Deserialize)]
pub(super) struct Curve {
    pub(super) losses: Vec<f64>,
    pub(super) grad_norms: Vec<f64>,
}

pub(super) fn data() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/parity/data")
}

pub(super) fn curves() -> Curves {
    let text = std::fs::read_to_string(data().join("training.json")).unwrap();
    serde_json::from_str(&text).unwrap()
}

impl Settings {
    pub(super) fn adamw(&self) -> AdamWSettings {
        let Self { beta1, beta2, eps, weight_decay, max_grad_norm, .. } = *self;
        let base = AdamWSettings::default();
        AdamWSettings { beta1, beta2, eps, weight_decay, max_grad_norm, ..base }
    }

    /// transformers' `get_cosine_schedule_with_warmup`.
    pub(super) fn learning_rate(&self, step: usize) -> f64 {
        if step < self.warmup_steps {
            return self.lr * step as f64 / self.warmup_steps as f64;
        }
        let done = (step - self.warmup_steps) as f64 / (self.steps - self.warmup_steps) as f64;
        self.lr * 0.5 * (1.0 + (std::f64::consts::PI * done).cos())
    }
}

/// Rows laid end to end; every response token is predicted.
fn batch(rows: &[&Row], device: Device) -> (Packed, ChosenTokens) {
    let (mut predictors, mut targets, mut first) = (Vec::new(), Vec::new(), 0);
    for row in rows {
        for at in row.prompt_tokens..row.ids.len() {
            predictors.push((first + at - 1) as i64);
            targets.push(i64::from(row.ids[at]));
        }
        first += row.ids.len();
    }
    let ids: Vec<&[u32]> = rows.iter().map(|row| row.ids.as_slice()).collect();
    let ids = if ids.is_empty() { vec![&[0][..]] } else { ids };
    let chosen = ChosenTokens {
        rows_m: Tensor::from_slice(&predictors).to_device(device),
        targets_m: Tensor::from_slice(&targets).to_device(device),
    };
    (Packed::new(&ids).unwrap().to_device(device), chosen)
}

/// This rank's part of the loss, and the gradient norm.
pub(super) fn step(model: &mut ShardedModel, rows: &[Row], learning_rate: f64) -> (f64, f64) {
    let tokens: usize = rows.iter().map(|row| row.ids.len() - row.prompt_tokens).sum();
    let lengths: Vec<_> = rows.iter().map(|row| row.ids.len()).collect();
    let budget_tokens = model.settings().micro_batch_tokens;
    let plan = Plan::new(&lengths, model.world_size(), budget_tokens).unwrap();
    let mut loss = 0.0;
    for indices in plan.rank(model.rank()) {
        let members: Vec<_> = indices.iter().map(|&index| &rows[index]).collect();
        let (packed, chosen) = batch(&members, model.settings().device);
        let mut token_loss = |values: &TokenValues, _: i64| {
            loss -= values.logp_m.sum(Kind::Double).double_value(&[]) / tokens as f64;
            let weight = -1.0 / tokens as f64;
            Ok(TokenGradients { logp_m: values.logp_m.full_like(weight), entropy_m: None })
        };
        model.train_on_tokens(&packed, &chosen, 1.0, &mut token_loss).unwrap();
    }
    match model.optimizer_step_on(learning_rate).unwrap() {
        OptimizerStep::Taken { grad_norm } => (loss, grad_norm),
        OptimizerStep::Skipped => panic!("a finite gradient was skipped"),
    }
}

pub(super) fn train(
    curves: &Curves,
    settings: EngineSettings,
    (optimizer, lora): (&AdamWSettings, Option<&LoraPlan>),
    world_size: usize,
) -> Curve {
    let run = |comm: Box<dyn Collective>| {
        let plan = LoadPlan {
            head: HeadSpec::CausalLm,
            head_seed: 0,
            settings: settings.clone(),
            optimizer: Some(optimizer.clone()),
            lora: lora.cloned(),
            ema: None,
        };
        let mut model = ShardedModel::load(&data().join("train-qwen2"), plan, comm).unwrap();
        let mut curve = Curve { losses: Vec::new(), grad_norms: Vec::new() };
        for (index, rows) in curves.steps.iter().enumerate() {
            let rate = curves.settings.learning_rate(index);
            let (loss, norm) = step(&mut model, rows, rate);
            let [loss] = model.sum_over_ranks([loss]).unwrap();
            curve.losses.push(loss);
            curve.grad_norms.push(norm);
        }
        curve
    };
    ranks(world_size, run).remove(0)
}

#[track_caller]
pub(super) fn assert_curve(got: &[f64], expected: &[f64], relative: f64, what: &str) -> f64 {
    assert_eq!(got.len(), expected.len(), "{what}");
    let mut worst: f64 = 0.0;
    for (index, (got, expected)) in got.iter().zip(expected).enumerate() {
        let error = (got - expected).abs() / expected.abs();
        assert!(error <= relative, "{what}, step {index}: {got} instead of {expected}");
        worst = worst.max(error);
    }
    worst
}

/// Largest micro-batch of one round, and of about three.
const BUDGETS_TOKENS: [usize; 2] = [1000, 48];

/// Every cut must give PyTorch's curve.
fn assert_every_cut(
    curves: &Curves,
    expected: &Curve,
    trained: (&AdamWSettings, Option<&LoraPlan>),
    what: &str,
) {
    let mut worst: f64 = 0.0;
    for world_size in [1, 2, 4] {
        for (recompute, reshard_after_forward) in
            [(true, true), (false, true), (true, false), (false, false)]
        {
            for micro_batch_tokens in BUDGETS_TOKENS {
                let settings = EngineSettings {
                    recompute,
                    reshard_after_forward,
                    micro_batch_tokens,
                    ..settings()
                };
                let what = format!(
                    "{what}, world size {world_size}, recompute {recompute}, reshard \
                     {reshard_after_forward}, {micro_batch_tokens} tokens"
                );
                let curve = train(curves, settings, trained, world_size);
                worst = worst.max(assert_curve(&curve.losses, &expected.losses, 1e-5, &what));
                assert_curve(&curve.grad_norms, &expected.grad_norms, 1e-4, &what);
            }
        }
    }
    eprintln!("{what}, 20 steps, 24 cuts: largest relative error of a loss {worst:.2e}");
}

#[test]
fn fp32_steps_equal_pytorchs_however_the_model_and_the_batch_are_cut() {
    let curves = curves();
    let adamw = curves.settings.adamw();
    assert_every_cut(&curves, &curves.cases.fp32, (&adamw, None), "fp32");
}

#[test]
fn lora_steps_equal_pytorchs_however_the_model_and_the_batch_are_cut() {
    let curves = curves();
    let config = LoraConfig::new(4, 8.0, 0.0, &LoraTarget::ALL).unwrap();
    let folder = data().join("train-qwen2/adapter");
    let lora = LoraPlan { config, seed: 0, folder: Some(folder) };
    let adamw = curves.settings.adamw();
    assert_every_cut(&curves, &curves.cases.lora, (&adamw, Some(&lora)), "lora");
}

#[test]
fn frozen_and_grouped_parameters_step_as_pytorchs_parameter_groups() {
    let curves = curves();
    let expected = &curves.cases.groups;
    let group = |group: &Group| ParameterGroup {
        pattern: group.pattern.clone(),
        learning_rate_scale: group.learning_rate_scale.unwrap_or(1.0),
        weight_decay: Some(group.weight_decay),
    };
    let adamw = AdamWSettings {
        freeze: expected.freeze.clone(),
        groups: expected.groups.iter().map(group).collect(),
        ..curves.settings.adamw()
    };
    assert_every_cut(&curves, &expected.curve, (&adamw, None), "groups");
}

#[test]
fn a_pattern_that_fits_no_parameter_is_refused_by_name() {
    let curves = curves();
    let refused = |adamw: AdamWSettings| {
        let plan = LoadPlan { optimizer: Some(adamw), ..super::support::plan(settings()) };
        let comm = Box::new(plumb_collective::solo());
        ShardedModel::load(&data().join("train-qwen2"), plan, comm).err().unwrap().to_string()
    };
    let base = curves.settings.adamw();
    let message = refused(AdamWSettings { freeze: vec!["visual".into()], ..base.clone() });
    assert!(message.contains("freeze pattern \"visual\""), "{message}");
    let group = ParameterGroup {
        pattern: "embed_tokens".into(),
        learning_rate_scale: 0.5,
        weight_decay: None,
    };
    let frozen_too = AdamWSettings { freeze: vec!["embed".into()], groups: vec![group], ..base };
    let message = refused(frozen_too);
    assert!(message.contains("group pattern \"embed_tokens\""), "{message}");
}

/// Mean negative log-prob of one batch, without gradients; this rank computes it whole.
fn evaluate(model: &mut ShardedModel, rows: &[Row]) -> crate::Result<f64> {
    let rows: Vec<_> = rows.iter().collect();
    let (packed, chosen) = batch(&rows, model.settings().device);
    let logp_m = model.token_values(&packed, &chosen, 1.0)?.logp_m;
    Ok(-logp_m.mean(Kind::Double).double_value(&[]))
}

#[test]
fn the_moving_average_equals_pytorchs_and_survives_a_checkpoint() {
    let curves = curves();
    let expected = &curves.cases.ema;
    let run = tempfile::tempdir().unwrap();
    let load = |comm, interval| {
        let plan = LoadPlan {
            head: HeadSpec::CausalLm,
            head_seed: 0,
            settings: settings(),
            optimizer: Some(curves.settings.adamw()),
            lora: None,
            ema: Some(EmaSettings { decay: expected.decay, interval }),
        };
        ShardedModel::load(&data().join("train-qwen2"), plan, comm).unwrap()
    };
    let last = curves.steps.last().unwrap();
    for world_size in [1, 2, 4] {
        let folder = run.path().join(format!("checkpoint-{world_size}"));
        let steps = |model: &mut ShardedModel, range: std::ops::Range<usize>| {
            for index in range {
                step(model, &curves.steps[index], curves.settings.learning_rate(index));
            }
        };
        ranks(world_size, |comm| {
            let mut model = load(comm, 1);
            steps(&mut model, 0..12);
            model.save_checkpoint(&folder).unwrap();
        });
        // Resumed by another number of ranks.
        let losses = ranks(5 - world_size, |comm| {
            let mut model = load(comm, 1);
            model.load_checkpoint(&folder).unwrap();
            steps(&mut model, 12..20);
            let before = super::support::weights(&model);
            let loss = model.with_average(|model| evaluate(model, last)).unwrap();
            assert_eq!(super::support::weights(&model), before, "the parameters are back");
            assert_ne!(evaluate(&mut model, last).unwrap(), loss);
            for _ in 0..2 {
                model.adopt_average().unwrap();
                assert_eq!(evaluate(&mut model, last).unwrap(), loss);
            }
            loss
        });
        for loss in losses {
            let error = (loss - expected.last_batch_loss).abs() / expected.last_batch_loss;
            assert!(error < 1e-5, "{world_size} ranks: {loss} != {}", expected.last_batch_loss);
        }
    }
    // Every third step only: the average stands still in between.
    let mut model = ranks(1, |comm| load(comm, 3)).remove(0);
    let mut seen = Vec::new();
    for (index, rows) in curves.steps.iter().take(6).enumerate() {
        step(&mut model, rows, curves.settings.learning_rate(index + 3));
        seen.push(model.with_average(|model| Ok(super::support::weights(model))).unwrap());
    }
    let moved: Vec<_> = seen.windows(2).map(|pair| pair[0] != pair[1]).collect();
    assert_eq!(moved, [false, true, false, false, true]);
}

#[test]
fn bf16_steps_stay_within_a_hundredth_of_pytorchs() {
    let curves = curves();
    for world_size in [1, 2] {
        let settings = EngineSettings { compute: Precision::Bf16, ..settings() };
        let curve = train(&curves, settings, (&curves.settings.adamw(), None), world_size);
        let what = format!("bf16, world size {world_size}");
        let worst = assert_curve(&curve.losses, &curves.cases.bf16.losses, 1e-2, &what);
        eprintln!("{what}: largest relative error of a loss {worst:.2e}");
    }
}
