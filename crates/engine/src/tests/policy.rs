//! POL-1: the same loss, norm and weights at every world size, cut and memory setting, and equal
//! to plain autograd over the whole model.

use plumb_loss::aggregate::{Aggregation, Denominators, Layout};
use plumb_loss::importance::{Correction, importance_weights};
use plumb_loss::kl::{Clamps, Gradient, Kind as KlKind};
use plumb_loss::policy::{
    Batch, Cispo, Cpg, GeoMean, Gspo, KlTerm, Objective, PolicyTerm, PpoClip, Sapo, policy_loss,
};
use plumb_model::Packed;
use tch::{Device, Kind, Tensor};

use super::support::*;
use crate::{
    EngineError, EngineSettings, Metrics, OldLogProbs, PolicySample, PolicyUpdate, Precision,
    log_probs, update_policy,
};

const TOLERANCE: f32 = 1e-5;
const LEARNING_RATE: f64 = 0.05;

fn update(aggregation: Aggregation) -> PolicyUpdate {
    let kl =
        KlTerm { coef: 0.1, kind: KlKind::K3, clamps: Clamps::Verl, gradient: Gradient::Estimate };
    PolicyUpdate {
        objective: Objective {
            policy: PolicyTerm::PpoClip(PpoClip::default()),
            aggregation,
            kl: Some(kl),
            entropy_coef: 0.02,
        },
        importance: None,
        norm_tokens: 9.0,
        old_logps: OldLogProbs::Recomputed,
        mini_batches: 2,
        epochs: 1,
        learning_rate: LEARNING_RATE,
        temperature: 0.8,
    }
}

/// Runs an update; the metrics and the weights after it, from rank 0.
fn run(
    tiny: &TinyModel,
    world: usize,
    settings: &EngineSettings,
    update: &PolicyUpdate,
) -> (Metrics, Vec<f32>) {
    let outcome = ranks(world, |comm| {
        let mut model = tiny.load(plan(settings.clone()), comm);
        let metrics = update_policy(&mut model, &samples(), update).unwrap();
        (metrics, weights(&model))
    });
    for (metrics, weights) in &outcome[1..] {
        assert_eq!(metrics, &outcome[0].0, "ranks report different metrics");
        assert_eq!(weights, &outcome[0].1);
    }
    outcome.into_iter().next().unwrap()
}

/// The same by plain autograd: full logits, no blocks, no micro-batches.
fn plain(tiny: &TinyModel, update: &PolicyUpdate) -> (f64, f64, Vec<f32>) {
    let tied = tiny.decoder.config().tie_word_embeddings;
    let mut params = leaves(tiny, &plumb_model::HeadSpec::CausalLm);
    let (samples, mut moments) = (samples(), Vec::new());
    let (mut losses, mut norms) = (0.0, 0.0);
    for (step, mini_batch) in [&samples[..3], &samples[3..]].into_iter().enumerate() {
        let loss = plain_loss(tiny, &params, mini_batch, update, tied);
        losses += loss.double_value(&[]);
        norms +=
            plain_step(&mut params, &loss, &mut moments, step as i32 + 1, update.learning_rate);
    }
    (losses / 2.0, norms / 2.0, concatenated(&params))
}

fn plain_loss(
    tiny: &TinyModel,
    params: &[Vec<Tensor>],
    samples: &[PolicySample],
    update: &PolicyUpdate,
    tied: bool,
) -> Tensor {
    let (mut logps, mut entropies, mut cu_seqlens) = (Vec::new(), Vec::new(), vec![0]);
    for PolicySample { sample, .. } in samples {
        let ids: Vec<u32> = sample.prompt_ids.iter().chain(&sample.response_ids).copied().collect();
        let packed = Packed::new(&[&ids]).unwrap();
        let hidden = plain_hidden(tiny, params, &packed);
        let head = params.last().unwrap();
        let normed = tiny.decoder.final_norm(head, &hidden).unwrap();
        let weight = if tied { &params[0][0] } else { &head[1] };
        let logits = tiny.decoder.logits(weight, &normed).unwrap() / update.temperature;
        let all = logits.log_softmax(1, Kind::Float);
        let (first, count) = (sample.prompt_ids.len() as i64 - 1, sample.response_ids.len() as i64);
        let rows = all.narrow(0, first, count);
        let targets: Vec<i64> = sample.response_ids.iter().map(|&id| i64::from(id)).collect();
        logps
            .push(rows.gather(1, &Tensor::from_slice(&targets).unsqueeze(1), false).squeeze_dim(1));
        entropies.push(-(rows.exp() * rows).sum_dim_intlist(1, false, Kind::Float));
        cu_seqlens.push(cu_seqlens.last().unwrap() + count);
    }
    let join = |values: &dyn Fn(&PolicySample) -> Vec<f32>| {
        Tensor::from_slice(&samples.iter().flat_map(values).collect::<Vec<_>>())
    };
    let counts = samples.iter().map(|s| s.sample.response_ids.len());
    let denominators = Denominators::from_token_counts(counts, update.norm_tokens);
    let logp = Tensor::cat(&logps, 0);
    let mask = Tensor::ones([logp.size()[0]], (Kind::Bool, Device::Cpu));
    let layout = Layout::Packed { cu_seqlens: &cu_seqlens };
    let old_logp = join(&|s| s.old_logps.clone().unwrap());
    let rollout_logp = join(&|s| s.sample.rollout_logps.clone());
    let weight = update.importance.as_ref().map(|correction| {
        importance_weights(correction, &old_logp, &rollout_logp, &mask, layout).unwrap().0
    });
    let batch = Batch {
        logp: &logp,
        old_logp: &old_logp,
        advantage: &join(&|s| s.advantages.clone()),
        ref_logp: Some(&join(&|s| s.reference_logps.clone().unwrap())),
        entropy: Some(&Tensor::cat(&entropies, 0)),
        weight: weight.as_ref(),
        items: None,
        mask: &mask,
        layout,
    };
    policy_loss(&update.objective, &batch, &denominators).unwrap().loss
}

#[test]
fn pol_1_equals_plain_autograd_at_every_cut_world_size_and_memory_setting() {
    for tied in [true, false] {
        let tiny = TinyModel::new(tied, 11);
        let update = update(Aggregation::TokenMean);
        let (loss, norm, expected) = plain(&tiny, &update);
        assert!(norm > 0.5, "clipping should be at work, the norm is {norm}");
        let cuts = [13, 20, 1000];
        for (world, budget) in [1, 2, 4].into_iter().flat_map(|w| cuts.map(|budget| (w, budget))) {
            for (recompute, reshard) in [(true, true), (false, true), (true, false), (false, false)]
            {
                let what = format!(
                    "tied {tied}, {world} ranks, {budget} tokens, recompute {recompute}, reshard {reshard}"
                );
                let settings = EngineSettings {
                    recompute,
                    reshard_after_forward: reshard,
                    micro_batch_tokens: budget,
                    ..settings()
                };
                let (metrics, weights) = run(&tiny, world, &settings, &update);
                assert!((metrics["loss"] - loss).abs() < 1e-5, "{what}: loss {}", metrics["loss"]);
                assert!(
                    (metrics["grad_norm"] - norm).abs() < 1e-5,
                    "{what}: {}",
                    metrics["grad_norm"]
                );
                assert_close(&weights, &expected, TOLERANCE, &what);
            }
        }
    }
}

#[test]
fn every_aggregation_is_independent_of_the_cut() {
    let tiny = TinyModel::new(true, 5);
    for aggregation in [
        Aggregation::SeqMeanTokenSum,
        Aggregation::SeqMeanTokenMean,
        Aggregation::SeqMeanTokenSumNorm,
    ] {
        let update = update(aggregation);
        let (loss, _, expected) = plain(&tiny, &update);
        let settings = EngineSettings { micro_batch_tokens: 14, ..settings() };
        let (metrics, weights) = run(&tiny, 2, &settings, &update);
        assert!(
            (metrics["loss"] - loss).abs() < 1e-5,
            "{aggregation:?}: {} != {loss}",
            metrics["loss"]
        );
        assert_close(&weights, &expected, TOLERANCE, &format!("{aggregation:?}"));
    }
}

#[test]
fn every_policy_term_and_correction_equals_plain_autograd_at_every_cut() {
    let tiny = TinyModel::new(true, 5);
    let wide = Gspo { clip_low: 0.2, clip_high: 0.2, ..Gspo::default() };
    let terms = [
        (PolicyTerm::Gspo(wide), None),
        (PolicyTerm::GeoMean(GeoMean::default()), None),
        (PolicyTerm::Cispo(Cispo::default()), Some(Correction::TruncatedToken { cap: 1.05 })),
        (PolicyTerm::Sapo(Sapo::default()), Some(Correction::IcePop { low: 0.5, high: 1.5 })),
        (PolicyTerm::Gpg, Some(Correction::TruncatedSequence { cap: 2.0 })),
        (PolicyTerm::Cpg(Cpg::default()), Some(Correction::SequenceMask { low: 0.8, high: 1.1 })),
        (PolicyTerm::Gspo(wide), Some(Correction::SequenceMask { low: 0.5, high: 2.0 })),
    ];
    for (policy, importance) in terms {
        let update = update(Aggregation::SeqMeanTokenMean);
        let objective = Objective { policy, ..update.objective };
        let update = PolicyUpdate { objective, importance, ..update };
        let (loss, _, expected) = plain(&tiny, &update);
        for (world, budget) in [(1, 1000), (2, 14)] {
            let what = format!("{policy:?}, {importance:?}, {world} ranks");
            let settings = EngineSettings { micro_batch_tokens: budget, ..settings() };
            let (metrics, weights) = run(&tiny, world, &settings, &update);
            assert!((metrics["loss"] - loss).abs() < 1e-5, "{what}: {}", metrics["loss"]);
            assert_close(&weights, &expected, TOLERANCE, &what);
            assert_eq!(metrics.contains_key("importance_weight"), importance.is_some());
        }
    }
}

#[test]
fn bf16_compute_stays_near_fp32_and_masters_stay_fp32() {
    let tiny = TinyModel::new(true, 11);
    let update = update(Aggregation::TokenMean);
    let (exact, _) = run(&tiny, 1, &settings(), &update);
    for world in [1, 2] {
        let settings = EngineSettings { compute: Precision::Bf16, ..settings() };
        let (metrics, weights) = run(&tiny, world, &settings, &update);
        let difference = (metrics["loss"] - exact["loss"]).abs();
        assert!(difference < 0.05, "{world} ranks: {} != {}", metrics["loss"], exact["loss"]);
        // Rounding to bf16 would leave the low 16 bits empty.
        assert!(weights.iter().any(|w| w.to_bits() & 0xffff != 0));
    }
}

#[test]
fn log_probs_cover_every_sample_once_and_equal_one_rank() {
    let tiny = TinyModel::new(false, 3);
    let samples: Vec<_> = samples().into_iter().map(|sample| sample.sample).collect();
    let frozen = |settings| crate::LoadPlan { optimizer: None, ..plan(settings) };
    let compute = |world: usize, budget: usize| {
        let settings = EngineSettings { micro_batch_tokens: budget, ..settings() };
        let mut rows: Vec<_> = ranks(world, |comm| {
            let mut model = tiny.load(frozen(settings.clone()), comm);
            log_probs(&mut model, &samples, 1.0).unwrap()
        })
        .concat();
        rows.sort_by_key(|row| row.index);
        rows
    };
    let one = compute(1, 1000);
    assert!(one.iter().map(|row| row.index).eq(0..samples.len()));
    for (world, budget) in [(2, 13), (4, 20)] {
        let many = compute(world, budget);
        assert_eq!(many.len(), one.len());
        for (a, b) in many.iter().zip(&one) {
            assert_eq!(a.index, b.index);
            assert_close(&a.logps, &b.logps, TOLERANCE, "log-probs");
            assert_close(&a.entropies, &b.entropies, TOLERANCE, "entropies");
        }
    }
}

#[test]
fn mismatch_is_the_distance_to_the_recorded_log_probs() {
    let tiny = TinyModel::new(true, 3);
    let mut samples = samples();
    let mut model = tiny.load(plan(settings()), Box::new(plumb_collective::solo()));
    let plain: Vec<_> = samples.iter().map(|sample| sample.sample.clone()).collect();
    for row in log_probs(&mut model, &plain, 0.8).unwrap() {
        samples[row.index].sample.rollout_logps = row.logps;
    }
    samples[0].sample.rollout_logps[0] += 0.25;
    let update = PolicyUpdate { mini_batches: 1, ..update(Aggregation::TokenMean) };
    let metrics = update_policy(&mut model, &samples, &update).unwrap();
    let tokens = metrics["tokens"];
    assert!((metrics["mismatch_max"] - 0.25).abs() < 1e-5, "{metrics:?}");
    assert!((metrics["mismatch_mean"] - 0.25 / tokens).abs() < 1e-5, "{metrics:?}");
    // r = e^-0.25 at one token: r - 1 - ln r.
    let kl = ((-0.25f64).exp() - 1.0 + 0.25) / tokens;
    assert!((metrics["mismatch_kl"] - kl).abs() < 1e-6, "{metrics:?}");
}

#[test]
fn one_sample_a_pass_gives_the_log_probs_of_resident_weights_to_the_bit() {
    for (tied, compute) in [(true, Precision::Fp32), (false, Precision::Bf16)] {
        let tiny = TinyModel::new(tied, 3);
        let settings = EngineSettings { one_sample_a_pass: true, compute, ..settings() };
        let mut model = tiny.load(plan(settings), Box::new(plumb_collective::solo()));
        let config = plumb_model::ModelConfig::from_folder(&tiny.path()).unwrap();
        let decoder = plumb_model::Decoder::new(config).unwrap();
        let (head, device) = (plumb_model::HeadSpec::CausalLm, tch::Device::Cpu);
        let weights =
            plumb_model::Weights::load(&decoder, &tiny.path(), &head, compute.kind(), device)
                .unwrap();
        let mut samples = samples();
        for sample in samples.iter_mut().map(|s| &mut s.sample) {
            let (prompt, response) = (&sample.prompt_ids, &sample.response_ids);
            sample.rollout_logps =
                crate::response_logps(&decoder, &weights, prompt, response, 0.8).unwrap();
        }
        let update = PolicyUpdate { mini_batches: 1, ..update(Aggregation::TokenMean) };
        let metrics = update_policy(&mut model, &samples, &update).unwrap();
        assert_eq!(metrics["mismatch_max"], 0.0, "{compute:?}: {metrics:?}");
        assert_eq!(metrics["mismatch_kl"], 0.0);
    }
}

#[test]
fn a_loss_that_is_no_number_is_refused_with_its_step_and_changes_nothing() {
    let tiny = TinyModel::new(true, 3);
    let mut model = tiny.load(plan(settings()), Box::new(plumb_collective::solo()));
    let before = weights(&model);
    let mut samples = samples();
    samples[1].advantages[0] = f32::NAN;
    let error = update_policy(&mut model, &samples, &update(Aggregation::TokenMean)).unwrap_err();
    assert!(matches!(error, EngineError::NonFinite { step: 0, .. }), "{error}");
    assert_eq!(weights(&model), before);
    // The gradients of the failed step are forgotten: the next step is as if it had not been.
    let good = update(Aggregation::TokenMean);
    let metrics = update_policy(&mut model, &super::support::samples(), &good).unwrap();
    let (expected, after) = run(&tiny, 1, &settings(), &good);
    assert_eq!(metrics, expected);
    assert_eq!(weights(&model), after);
}

#[test]
fn frozen_layers_keep_their_values_and_the_others_train_as_before() {
    let tiny = TinyModel::new(false, 7);
    let update = PolicyUpdate { mini_batches: 1, ..update(Aggregation::TokenMean) };
    let unclipped = crate::AdamWSettings { max_grad_norm: 0.0, ..adamw() };
    let train = |frozen_layers: usize, world: usize| {
        ranks(world, |comm| {
            let settings = EngineSettings { frozen_layers, ..settings() };
            let mut model = tiny.load(
                crate::LoadPlan { optimizer: Some(unclipped.clone()), ..plan(settings) },
                comm,
            );
            let before = weights(&model);
            update_policy(&mut model, &samples(), &update).unwrap();
            let frozen: i64 =
                model.blocks.iter().take(frozen_layers + 1).map(|b| b.layout.elements).sum();
            (before, weights(&model), frozen as usize)
        })
        .swap_remove(0)
    };
    let (_, everything, _) = train(0, 1);
    for world in [1, 2] {
        let (before, after, frozen) = train(2, world);
        assert_eq!(after[..frozen], before[..frozen]);
        assert_close(&after[frozen..], &everything[frozen..], TOLERANCE, "trained part");
    }
}
