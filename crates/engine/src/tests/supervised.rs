//! Supervised fine-tuning against plain autograd, over cuts and world sizes.

#![allow(clippy::single_range_in_vec_init, reason = "a row may have one target span")]

use plumb_model::HeadSpec;
use tch::{Kind, Tensor};

use super::support::*;
use crate::{EngineSettings, TargetText, measure_texts, train_texts};

const LEARNING_RATE: f64 = 0.05;

/// Dialogues of unequal lengths; the second and the last have two answers, the third one token of
/// prompt.
fn texts() -> Vec<TargetText> {
    let cases: [(usize, &[std::ops::Range<usize>]); 5] =
        [(9, &[4..9]), (14, &[3..6, 9..14]), (5, &[1..3]), (12, &[11..12]), (17, &[2..3, 8..15])];
    let text = |(index, (length, targets)): (usize, (usize, &[std::ops::Range<usize>]))| {
        let id = |t: usize| ((index * 13 + t * 5 + 3) % 29) as u32;
        TargetText {
            id: format!("text-{index}"),
            ids: (0..length).map(id).collect(),
            targets: targets.to_vec(),
        }
    };
    cases.into_iter().enumerate().map(text).collect()
}

fn plain_loss(tiny: &TinyModel, params: &[Vec<Tensor>]) -> Tensor {
    let mut logps = Vec::new();
    for text in texts() {
        let logp = plain_logps(tiny, params, &text.ids);
        for range in text.targets {
            logps.push(logp.narrow(0, range.start as i64 - 1, range.len() as i64));
        }
    }
    -Tensor::cat(&logps, 0).mean(Kind::Float)
}

#[test]
fn training_equals_plain_autograd_at_every_cut_and_world_size() {
    for tied in [true, false] {
        let tiny = TinyModel::new(tied, 5);
        let mut params = leaves(&tiny, &HeadSpec::CausalLm);
        let (mut moments, mut losses) = (Vec::new(), Vec::new());
        for step in 1..=2 {
            let loss = plain_loss(&tiny, &params);
            losses.push(loss.double_value(&[]));
            plain_step(&mut params, &loss, &mut moments, step, LEARNING_RATE);
        }
        losses.push(plain_loss(&tiny, &params).double_value(&[]));
        for (world, budget) in [(1, 1000), (1, 18), (2, 1000), (2, 18), (4, 20)] {
            let what = format!("tied {tied}, {world} ranks, {budget} tokens");
            let settings = EngineSettings { micro_batch_tokens: budget, ..settings() };
            let outcome = ranks(world, |comm| {
                let mut model = tiny.load(plan(settings.clone()), comm);
                let mut step = || train_texts(&mut model, &texts(), LEARNING_RATE).unwrap();
                let (first, second) = (step(), step());
                let after = measure_texts(&mut model, &texts()).unwrap();
                ([first["loss"], second["loss"], after["loss"]], after, weights(&model))
            });
            let (got, after, weights) = &outcome[0];
            for (got, expected) in got.iter().zip(&losses) {
                assert!((got - expected).abs() < 1e-5, "{what}: {got} != {expected}");
            }
            assert_eq!((after["tokens"], after["texts"]), (24.0, 5.0));
            assert_close(weights, &concatenated(&params), 1e-5, &what);
            assert!(outcome.iter().all(|rank| rank.0 == *got), "{what}: ranks disagree");
        }
    }
}

#[test]
fn targets_that_do_not_fit_are_named_with_their_text() {
    let tiny = TinyModel::new(true, 5);
    let mut model = tiny.load(plan(settings()), Box::new(plumb_collective::solo()));
    for (targets, cause) in [
        (vec![0..2], "0..2"),
        (vec![2..4, 3..5], "3..5"),
        (vec![4..4], "4..4"),
        (vec![3..6], "3..6 are not within tokens 1..5"),
    ] {
        let mut bad = texts();
        bad[2].targets = targets;
        let error = train_texts(&mut model, &bad, 0.1).unwrap_err().to_string();
        assert!(error.contains("text-2") && error.contains(cause), "{error}");
    }
    let mut bad = texts();
    bad[2].targets.clear();
    assert!(measure_texts(&mut model, &bad).unwrap_err().to_string().contains("no target"));
    assert!(measure_texts(&mut model, &[]).is_err());
    assert_eq!(model.optimizer_step(), 0);
}
