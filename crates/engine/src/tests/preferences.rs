//! Direct preference training against plain autograd, over cuts and world sizes.

use plumb_loss::preference::{Pop, PopFixed};
use plumb_model::HeadSpec;
use tch::{Kind, Tensor};

use super::support::*;
use crate::{
    AnswerLogProbs, AnswerPair, EngineSettings, PairMargin, PreferenceObjective, answer_log_probs,
    measure_preferences, train_preferences,
};

const LEARNING_RATE: f64 = 0.05;

const DPO: PreferenceObjective =
    PreferenceObjective::Dpo { beta: 0.3, label_smoothing: 0.1, margin: PairMargin::Same(0.0) };
const DPO_MARGIN: PreferenceObjective =
    PreferenceObjective::Dpo { beta: 0.3, label_smoothing: 0.0, margin: PairMargin::Same(0.7) };
const DPO_OWN_MARGIN: PreferenceObjective =
    PreferenceObjective::Dpo { beta: 0.3, label_smoothing: 0.0, margin: PairMargin::Own };
const IPO: PreferenceObjective = PreferenceObjective::Ipo { beta: 0.4 };
const SIMPO: PreferenceObjective =
    PreferenceObjective::SimPo { beta: 2.0, margin: PairMargin::Same(0.5) };
const SIMPO_OWN_MARGIN: PreferenceObjective =
    PreferenceObjective::SimPo { beta: 2.0, margin: PairMargin::Own };
const POP: PreferenceObjective = PreferenceObjective::Pop(Pop { beta: 0.3, lambda: 0.7 });
const POP_FIXED: PreferenceObjective =
    PreferenceObjective::PopFixed(PopFixed { beta: 0.3, margin_min: -0.01, margin_max: 0.01 });

/// The losses by the papers' own words, of the pair's own margin, its gap h and its unpreferred
/// pair's gap u.
fn plain_gap_loss(spec: &PreferenceObjective, own: f64, h: &Tensor, u: &Tensor) -> Tensor {
    let of = |margin| match margin {
        PairMargin::Same(margin) => margin,
        PairMargin::Own => own,
    };
    match *spec {
        PreferenceObjective::Dpo { beta, label_smoothing: s, margin } => {
            let logit = h * beta - of(margin);
            -(logit.log_sigmoid() * (1.0 - s)) - (-logit).log_sigmoid() * s
        }
        PreferenceObjective::Ipo { beta } => (h - 0.5 / beta).square(),
        PreferenceObjective::SimPo { beta, margin } => -(h * beta - of(margin)).log_sigmoid(),
        PreferenceObjective::Pop(Pop { beta, lambda }) => {
            let l = |gap: Tensor| -(gap * beta).log_sigmoid();
            (l(h.shallow_clone()) + l(u.shallow_clone())) * 0.5
                + (l(h - u) - std::f64::consts::LN_2) * lambda
        }
        PreferenceObjective::PopFixed(PopFixed { beta, margin_min, margin_max }) => {
            -((h - u.detach().clamp(margin_min, margin_max)) * beta).log_sigmoid()
        }
    }
}

/// Pairs of unequal lengths; the last two share a prompt, and the third's answers begin alike.
/// Each has a margin, and the next pair as its unpreferred one.
fn pairs() -> Vec<AnswerPair> {
    let token = |index: usize, t: usize| ((index * 13 + t * 5 + 3) % 29) as u32;
    let lengths = [(3, 4, 6), (1, 9, 2), (5, 1, 3), (4, 5, 5), (4, 7, 1)];
    let pair = |(index, &(prompt, better, worse)): (usize, &(usize, usize, usize))| {
        let group = index.min(3);
        let answer = |salt: usize, count: usize| {
            (0..count).map(|t| if index == 2 && t == 0 { 7 } else { token(salt, t) }).collect()
        };
        AnswerPair {
            id: format!("pair-{index}"),
            prompt_ids: (0..prompt).map(|t| token(group + 70, t)).collect(),
            better_ids: answer(index, better),
            worse_ids: answer(index + 50, worse),
            margin: Some(0.4 * index as f64 - 0.5),
            ..AnswerPair::default()
        }
    };
    let single: Vec<AnswerPair> = lengths.iter().enumerate().map(pair).collect();
    let with_other = |(index, pair): (usize, &AnswerPair)| {
        let other = Box::new(single[(index + 1) % single.len()].clone());
        AnswerPair { unpreferred: Some(other), ..pair.clone() }
    };
    single.iter().enumerate().map(with_other).collect()
}

/// log p of both answers, by plain autograd.
fn plain_answers(tiny: &TinyModel, params: &[Vec<Tensor>], pair: &AnswerPair) -> [Tensor; 2] {
    [&pair.better_ids, &pair.worse_ids].map(|answer| {
        let ids: Vec<u32> = pair.prompt_ids.iter().chain(answer).copied().collect();
        let logp = plain_logps(tiny, params, &ids);
        logp.narrow(0, pair.prompt_ids.len() as i64 - 1, answer.len() as i64).sum(Kind::Float)
    })
}

fn with_reference(tiny: &TinyModel) -> Vec<AnswerPair> {
    let params = leaves(tiny, &HeadSpec::CausalLm);
    let mut pairs = pairs();
    let reference = |pair: &AnswerPair| {
        let [better, worse] = plain_answers(tiny, &params, pair).map(|t| t.double_value(&[]));
        Some(AnswerLogProbs { better, worse })
    };
    for pair in &mut pairs {
        pair.reference = reference(pair);
        let other = pair.unpreferred.as_mut().unwrap();
        other.reference = reference(other);
    }
    pairs
}

fn plain_loss(
    tiny: &TinyModel,
    params: &[Vec<Tensor>],
    pairs: &[AnswerPair],
    spec: &PreferenceObjective,
) -> Tensor {
    let gap = |pair: &AnswerPair| {
        let [better, worse] = plain_answers(tiny, params, pair);
        if spec.needs_reference() {
            let reference = pair.reference.unwrap();
            return better - reference.better - (worse - reference.worse);
        }
        better / pair.better_ids.len() as f64 - worse / pair.worse_ids.len() as f64
    };
    let losses = pairs.iter().map(|pair| {
        let unpreferred = gap(pair.unpreferred.as_ref().unwrap());
        plain_gap_loss(spec, pair.margin.unwrap(), &gap(pair), &unpreferred)
    });
    Tensor::stack(&losses.collect::<Vec<_>>(), 0).mean(Kind::Float)
}

#[test]
fn training_equals_plain_autograd_at_every_cut_and_world_size() {
    for (tied, spec) in [
        (true, DPO),
        (false, DPO_MARGIN),
        (true, DPO_OWN_MARGIN),
        (true, IPO),
        (true, SIMPO),
        (false, SIMPO_OWN_MARGIN),
        (true, POP),
        (false, POP_FIXED),
    ] {
        let tiny = TinyModel::new(tied, 33);
        let pairs = with_reference(&tiny);
        let mut params = leaves(&tiny, &HeadSpec::CausalLm);
        let (mut moments, mut losses) = (Vec::new(), Vec::new());
        for step in 1..=2 {
            let loss = plain_loss(&tiny, &params, &pairs, &spec);
            losses.push(loss.double_value(&[]));
            plain_step(&mut params, &loss, &mut moments, step, LEARNING_RATE);
        }
        losses.push(plain_loss(&tiny, &params, &pairs, &spec).double_value(&[]));
        // A pair has up to 16 tokens, with its unpreferred one up to 25.
        let small = if spec.compares_pairs() { 26 } else { 16 };
        for (world, budget) in [(1, 1000), (1, small), (2, 1000), (2, small), (4, small + 2)] {
            let what = format!("{spec:?}, tied {tied}, {world} ranks, {budget} tokens");
            let settings = EngineSettings { micro_batch_tokens: budget, ..settings() };
            let outcome = ranks(world, |comm| {
                let mut model = tiny.load(plan(settings.clone()), comm);
                let mut step =
                    || train_preferences(&mut model, &pairs, &spec, LEARNING_RATE).unwrap();
                let (first, second) = (step(), step());
                let after = measure_preferences(&mut model, &pairs, &spec).unwrap();
                ([first["loss"], second["loss"], after["loss"]], after, weights(&model))
            });
            let (got, after, weights) = &outcome[0];
            for (got, expected) in got.iter().zip(&losses) {
                let tolerance = 1e-5 * expected.abs().max(1.0);
                assert!((got - expected).abs() < tolerance, "{what}: {got} != {expected}");
            }
            let margin = after["better_reward"] - after["worse_reward"];
            assert!((after["margin"] - margin).abs() < 1e-5);
            assert_close(weights, &concatenated(&params), 1e-5, &what);
            for name in ["unpreferred_accuracy", "wider_accuracy", "constraint"] {
                assert_eq!(after.contains_key(name), spec.compares_pairs(), "{what}: {name}");
            }
            assert!(outcome.iter().all(|rank| rank.0 == *got), "{what}: ranks disagree");
        }
    }
}

#[test]
fn the_untrained_models_log_probs_make_every_log_ratio_zero() {
    let tiny = TinyModel::new(true, 33);
    let expected = with_reference(&tiny);
    let settings = EngineSettings { micro_batch_tokens: 18, ..settings() };
    let outcome = ranks(2, |comm| {
        let mut model = tiny.load(plan(settings.clone()), comm);
        answer_log_probs(&mut model, &pairs()).unwrap()
    });
    let mut rows: Vec<_> = outcome.into_iter().flatten().collect();
    rows.sort_by_key(|(index, _)| *index);
    assert!(rows.iter().map(|(index, _)| *index).eq(0..pairs().len()));
    let mut referenced = pairs();
    for (index, logps) in rows {
        let expected = expected[index].reference.unwrap();
        assert!((logps.better - expected.better).abs() < 1e-4, "{logps:?} != {expected:?}");
        assert!((logps.worse - expected.worse).abs() < 1e-4, "{logps:?} != {expected:?}");
        referenced[index].reference = Some(logps);
    }
    let mut model = tiny.load(plan(settings.clone()), Box::new(plumb_collective::solo()));
    let metrics = measure_preferences(&mut model, &referenced, &DPO).unwrap();
    assert!(metrics["margin"].abs() < 1e-5, "{metrics:?}");
    assert!((metrics["loss"] - 2f64.ln()).abs() < 1e-5, "{metrics:?}");
}

#[test]
fn pairs_that_do_not_fit_are_named() {
    let tiny = TinyModel::new(true, 33);
    let mut model = tiny.load(plan(settings()), Box::new(plumb_collective::solo()));
    let error = train_preferences(&mut model, &pairs(), &DPO, 0.1).unwrap_err().to_string();
    assert!(error.contains("reference"), "{error}");
    let refused = |model: &mut crate::ShardedModel, change: fn(&mut AnswerPair)| {
        let mut bad = pairs();
        change(&mut bad[1]);
        let error = train_preferences(model, &bad, &SIMPO, 0.1).unwrap_err().to_string();
        assert!(error.contains("pair-1"), "{error}");
        error
    };
    assert!(refused(&mut model, |pair| pair.prompt_ids.clear()).contains("no prompt"));
    assert!(refused(&mut model, |pair| pair.worse_ids.clear()).contains("no token"));
    let mut bad = pairs();
    bad[1].margin = None;
    let error = train_preferences(&mut model, &bad, &SIMPO_OWN_MARGIN, 0.1).unwrap_err();
    assert!(error.to_string().contains("has no finite margin"), "{error}");
    let mut alone = with_reference(&tiny);
    alone[3].unpreferred = None;
    let error = train_preferences(&mut model, &alone, &POP, 0.1).unwrap_err().to_string();
    assert!(error.contains("pair-3") && error.contains("no unpreferred pair"), "{error}");
    let with_nan = |pair: &mut AnswerPair| {
        pair.reference = Some(AnswerLogProbs { better: f64::NAN, worse: 0.0 });
    };
    assert!(refused(&mut model, with_nan).contains("not finite"));
    assert!(train_preferences(&mut model, &[], &SIMPO, 0.1).is_err());
    assert_eq!(model.optimizer_step(), 0);
}
