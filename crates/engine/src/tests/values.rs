//! A critic's values and its training: by hand, against plain autograd, over cuts and world sizes.

use plumb_loss::aggregate::{Aggregation, Denominators, Layout};
use plumb_loss::value::{ValueLoss, value_loss};
use plumb_model::{HeadSpec, Packed, ScoreHead, new_score_head};
use tch::{Device, Kind, Tensor};

use super::support::*;
use crate::{
    EngineSettings, LoadPlan, ResponseSample, ValueSample, ValueUpdate, update_values, values,
};

const HEAD_SEED: u64 = 9;
const LEARNING_RATE: f64 = 0.05;

fn critic_plan(settings: EngineSettings) -> LoadPlan {
    LoadPlan { head: HeadSpec::Score(ScoreHead::Linear), head_seed: HEAD_SEED, ..plan(settings) }
}

/// The policy's samples with made-up old values, of which some are clipped, and returns.
fn value_samples() -> Vec<ValueSample> {
    let sample = |(index, sample): (usize, crate::PolicySample)| {
        let number =
            |t: usize, salt: usize| ((index * 100 + t * 7 + salt) * 7919 % 101) as f32 / 50.5 - 1.0;
        let tokens = sample.sample.response_ids.len();
        ValueSample {
            old_values: (0..tokens).map(|t| number(t, 1)).collect(),
            returns: (0..tokens).map(|t| 2.0 * number(t, 2)).collect(),
            sample: sample.sample,
        }
    };
    samples().into_iter().enumerate().map(sample).collect()
}

fn critic_leaves(tiny: &TinyModel) -> Vec<Vec<Tensor>> {
    let mut params = leaves(tiny, &HeadSpec::Score(ScoreHead::Linear));
    let hidden_size = tiny.decoder.config().hidden_size;
    let new = new_score_head(&ScoreHead::Linear, hidden_size, HEAD_SEED).unwrap();
    params.last_mut().unwrap().extend(new.into_iter().map(|param| param.set_requires_grad(true)));
    params
}

/// Values `[T]` by plain autograd over one whole text.
fn plain_values(tiny: &TinyModel, params: &[Vec<Tensor>], sample: &ResponseSample) -> Tensor {
    let ids = [sample.prompt_ids.as_slice(), &sample.response_ids].concat();
    let hidden = plain_hidden(tiny, params, &Packed::new(&[&ids]).unwrap());
    let head = params.last().unwrap();
    let normed = tiny.decoder.final_norm(head, &hidden).unwrap();
    let scores = tiny.decoder.score(&ScoreHead::Linear, head, &normed).unwrap();
    scores.narrow(0, sample.prompt_ids.len() as i64 - 1, sample.response_ids.len() as i64)
}

/// Two epochs of two mini-batches by plain autograd: mean loss, share of clipped tokens, weights.
fn plain(tiny: &TinyModel, spec: &ValueLoss) -> (f64, f64, Vec<f32>) {
    let (mut params, samples, mut moments) = (critic_leaves(tiny), value_samples(), Vec::new());
    let (mut losses, mut clipped, mut tokens, mut step) = (0.0, 0.0, 0, 0);
    for _ in 0..2 {
        for mini_batch in [&samples[..3], &samples[3..]] {
            step += 1;
            let rows: Vec<_> =
                mini_batch.iter().map(|s| plain_values(tiny, &params, &s.sample)).collect();
            let mut cu_seqlens = vec![0];
            for row in &rows {
                cu_seqlens.push(cu_seqlens.last().unwrap() + row.size()[0]);
            }
            let join = |of: fn(&ValueSample) -> &Vec<f32>| {
                Tensor::from_slice(&mini_batch.iter().flat_map(of).copied().collect::<Vec<_>>())
            };
            let counts = mini_batch.iter().map(|s| s.returns.len());
            let terms = value_loss(
                spec,
                &Tensor::cat(&rows, 0),
                &join(|s| &s.old_values),
                &join(|s| &s.returns),
                &Tensor::ones([*cu_seqlens.last().unwrap()], (Kind::Bool, Device::Cpu)),
                Layout::Packed { cu_seqlens: &cu_seqlens },
                &Denominators::from_token_counts(counts, 1.0),
            )
            .unwrap();
            losses += terms.loss.double_value(&[]);
            clipped += terms.clipped_tokens;
            tokens += cu_seqlens.last().unwrap();
            plain_step(&mut params, &terms.loss, &mut moments, step, LEARNING_RATE);
        }
    }
    (losses / 4.0, clipped / tokens as f64, concatenated(&params))
}

#[test]
fn training_equals_plain_autograd_at_every_cut_and_world_size() {
    let tiny = TinyModel::new(true, 21);
    for (clip, aggregation) in
        [(Some(0.2), Aggregation::TokenMean), (None, Aggregation::SeqMeanTokenMean)]
    {
        let loss = ValueLoss { clip, aggregation };
        let update = ValueUpdate {
            loss,
            norm_tokens: 1.0,
            mini_batches: 2,
            epochs: 2,
            learning_rate: LEARNING_RATE,
        };
        let (expected_loss, clipped, expected) = plain(&tiny, &loss);
        assert_eq!(clipped > 0.0, clip.is_some(), "the clip is met by some tokens");
        for (world, budget, recompute) in
            [(1, 1000, true), (1, 16, false), (2, 1000, false), (2, 16, true), (4, 20, true)]
        {
            let what = format!("{clip:?}, {world} ranks, {budget} tokens, recompute {recompute}");
            let settings = EngineSettings { micro_batch_tokens: budget, recompute, ..settings() };
            let outcome = ranks(world, |comm| {
                let mut model = tiny.load(critic_plan(settings.clone()), comm);
                let metrics = update_values(&mut model, &value_samples(), &update).unwrap();
                (metrics, weights(&model))
            });
            for (metrics, _) in &outcome[1..] {
                assert_eq!(metrics, &outcome[0].0, "ranks report different metrics");
            }
            let (metrics, weights) = &outcome[0];
            assert!((metrics["loss"] - expected_loss).abs() < 1e-5, "{what}: {metrics:?}");
            assert!((metrics["clip_fraction"] - clipped).abs() < 1e-9, "{what}: {metrics:?}");
            assert_eq!(metrics["optimizer_steps"], 4.0);
            assert_close(weights, &expected, 1e-5, &what);
        }
    }
}

#[test]
fn values_stand_where_the_tokens_are_predicted_at_every_world_size() {
    let tiny = TinyModel::new(true, 21);
    let samples: Vec<_> = value_samples().into_iter().map(|s| s.sample).collect();
    let params = critic_leaves(&tiny);
    let expected: Vec<Vec<f32>> = samples
        .iter()
        .map(|s| Vec::try_from(plain_values(&tiny, &params, s).detach()).unwrap())
        .collect();
    for (world, budget) in [(1, 1000), (2, 16), (4, 20)] {
        let settings = EngineSettings { micro_batch_tokens: budget, ..settings() };
        let shares = ranks(world, |comm| {
            let mut model = tiny.load(critic_plan(settings.clone()), comm);
            values(&mut model, &samples).unwrap()
        });
        let mut rows = shares.concat();
        rows.sort_by_key(|row| row.index);
        assert!(rows.iter().map(|row| row.index).eq(0..samples.len()), "{world} ranks");
        for (row, expected) in rows.iter().zip(&expected) {
            assert_close(&row.values, expected, 1e-5, &format!("{world} ranks, {}", row.index));
        }
    }
}

#[test]
fn figures_by_hand_and_a_critic_that_learns_its_returns() {
    let tiny = TinyModel::new(true, 21);
    let mut model = tiny.load(critic_plan(settings()), Box::new(plumb_collective::solo()));
    let mut one = value_samples().remove(1);
    assert_eq!(one.returns.len(), 1);
    let value = values(&mut model, &[one.sample.clone()]).unwrap()[0].values[0];
    // Loss 1/2 (v - (v + 2))^2 = 2; one return has no variance to explain.
    (one.old_values, one.returns) = (vec![value], vec![value + 2.0]);
    let update = ValueUpdate {
        loss: ValueLoss { clip: None, aggregation: Aggregation::TokenMean },
        norm_tokens: 1.0,
        mini_batches: 1,
        epochs: 1,
        learning_rate: 0.02,
    };
    let mut step = |samples: &[ValueSample]| update_values(&mut model, samples, &update).unwrap();
    let metrics = step(&[one.clone()]);
    assert!((metrics["loss"] - 2.0).abs() < 1e-5, "{metrics:?}");
    assert!((metrics["return_mean"] - f64::from(value) - 2.0).abs() < 1e-6);
    assert!(!metrics.contains_key("explained_variance"));
    let last = (0..60).map(|_| step(&[one.clone()])["loss"]).last().unwrap();
    assert!(last < 0.1, "{last}");
}

#[test]
fn what_does_not_fit_is_named() {
    let tiny = TinyModel::new(true, 21);
    let solo = || Box::new(plumb_collective::solo());
    let mut language_model = tiny.load(plan(settings()), solo());
    let samples = value_samples();
    let error = values(&mut language_model, &[samples[0].sample.clone()]).unwrap_err();
    assert!(error.to_string().contains("score head"), "{error}");
    let mut model = tiny.load(critic_plan(settings()), solo());
    let update = ValueUpdate {
        loss: ValueLoss::default(),
        norm_tokens: 1.0,
        mini_batches: 1,
        epochs: 1,
        learning_rate: 0.1,
    };
    let mut bad = samples.clone();
    bad[2].returns.pop();
    let error = update_values(&mut model, &bad, &update).unwrap_err().to_string();
    assert!(error.contains("p-2") && error.contains("8 returns"), "{error}");
    let none = ValueUpdate { epochs: 0, ..update };
    let error = update_values(&mut model, &samples, &none).unwrap_err().to_string();
    assert!(error.contains("epochs"), "{error}");
    let mut infinite = samples;
    infinite[0].returns[0] = f32::INFINITY;
    let error = update_values(&mut model, &infinite, &update).unwrap_err().to_string();
    assert!(error.contains("loss is inf"), "{error}");
}
