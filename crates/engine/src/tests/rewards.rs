//! Reward-model training against plain autograd, over cuts and world sizes.

use plumb_loss::preference::{Cost, Pairwise, SafetyLabels, cost, pairwise};
use plumb_model::{HeadSpec, Packed, ScoreHead, new_score_head};
use tch::Tensor;

use super::support::*;
use crate::{EngineSettings, LoadPlan, ScoreLoss, TextPair, score_pairs, train_pairs};

const HEAD_SEED: u64 = 9;
const LEARNING_RATE: f64 = 0.05;
const REWARD: ScoreLoss = ScoreLoss::Reward(Pairwise { regularization: 0.01 });
const COST: ScoreLoss = ScoreLoss::Cost(Cost { regularization: 0.01, sign_terms: true });
const REWARD_TOKENS: ScoreLoss = ScoreLoss::RewardTokens(Pairwise { regularization: 0.01 });
const COST_TOKENS: ScoreLoss =
    ScoreLoss::CostTokens(Cost { regularization: 0.01, sign_terms: true });

/// Texts of unequal lengths that share nothing, a beginning, or all of the shorter one.
fn pairs() -> Vec<TextPair> {
    let lengths = [(4, 6, 0), (9, 2, 0), (1, 3, 0), (5, 5, 4), (7, 8, 3), (3, 6, 3)];
    let pair = |(index, &(better, worse, shared)): (usize, &(usize, usize, usize))| {
        let text = |salt: usize, length: usize| {
            let salt = |t: usize| if t < shared { 7 } else { salt };
            (0..length).map(|t| ((salt(t) * 13 + t * 5 + 3) % 29) as u32).collect()
        };
        TextPair {
            id: format!("pair-{index}"),
            better_ids: text(index, better),
            worse_ids: text(index + 50, worse),
            safe: Some([index != 1, index % 2 == 0]),
        }
    };
    lengths.iter().enumerate().map(pair).collect()
}

fn reward_plan(head: &ScoreHead, settings: EngineSettings) -> LoadPlan {
    LoadPlan { head: HeadSpec::Score(head.clone()), head_seed: HEAD_SEED, ..plan(settings) }
}

/// Scores of all tokens of a text, `[T]`.
fn plain_scores(tiny: &TinyModel, head: &ScoreHead, params: &[Vec<Tensor>], ids: &[u32]) -> Tensor {
    let hidden = plain_hidden(tiny, params, &Packed::new(&[ids]).unwrap());
    let block = params.last().unwrap();
    let normed = tiny.decoder.final_norm(block, &hidden).unwrap();
    tiny.decoder.score(head, block, &normed).unwrap()
}

/// The loss of the scores of all tokens, `[T]`, of every pair's better and worse text.
fn plain_loss(loss: &ScoreLoss, scores: &[[Tensor; 2]]) -> Tensor {
    let ends = |text: usize| {
        let ends: Vec<_> = scores.iter().map(|pair| pair[text].get(-1)).collect();
        Tensor::stack(&ends, 0)
    };
    match loss {
        ScoreLoss::Reward(spec) => pairwise(spec, &ends(0), &ends(1), pairs().len()).unwrap().loss,
        ScoreLoss::Cost(spec) => {
            let safe = |text: usize| -> Vec<bool> {
                pairs().iter().map(|pair| pair.safe.unwrap()[text]).collect()
            };
            let labels = SafetyLabels { safer: &safe(0), unsafer: &safe(1) };
            cost(spec, &ends(0), &ends(1), labels, pairs().len()).unwrap().loss
        }
        ScoreLoss::RewardTokens(spec) => plain_token_loss(scores, |[better, worse], _| {
            let squares = better.square() + worse.square();
            -(better - worse).log_sigmoid() + squares * (0.5 * spec.regularization)
        }),
        ScoreLoss::CostTokens(spec) => plain_token_loss(scores, |[better, worse], safe| {
            let sign = |safe: bool| if safe { -1.0 } else { 1.0 };
            let squares = better.square() + worse.square();
            -(worse - better).log_sigmoid()
                - (better * sign(safe[0])).log_sigmoid()
                - (worse * sign(safe[1])).log_sigmoid()
                + squares * (0.5 * spec.regularization)
        }),
    }
}

/// The mean over pairs of the mean over tokens from the first difference to the longer text's end;
/// a text that has ended stands with its last score.
fn plain_token_loss(
    scores: &[[Tensor; 2]],
    of: impl Fn(&[Tensor; 2], [bool; 2]) -> Tensor,
) -> Tensor {
    let losses = scores.iter().zip(pairs()).map(|(scores, pair)| {
        let agree = pair.better_ids.iter().zip(&pair.worse_ids).take_while(|(a, b)| a == b).count();
        let longer = pair.better_ids.len().max(pair.worse_ids.len());
        let held = |text: usize, length: usize| {
            let at: Vec<i64> = (agree..longer).map(|t| t.min(length - 1) as i64).collect();
            scores[text].index_select(0, &Tensor::from_slice(&at))
        };
        let held = [held(0, pair.better_ids.len()), held(1, pair.worse_ids.len())];
        of(&held, pair.safe.unwrap()).mean(tch::Kind::Float)
    });
    Tensor::stack(&losses.collect::<Vec<_>>(), 0).mean(tch::Kind::Float)
}

/// Two steps by plain autograd: loss of the second one, and the weights after it.
fn plain(tiny: &TinyModel, head: &ScoreHead, spec: &ScoreLoss) -> (f64, Vec<f32>) {
    let head_spec = HeadSpec::Score(head.clone());
    let mut params = leaves(tiny, &head_spec);
    let new = new_score_head(head, tiny.decoder.config().hidden_size, HEAD_SEED).unwrap();
    params.last_mut().unwrap().extend(new.into_iter().map(|param| param.set_requires_grad(true)));
    let (mut moments, mut last) = (Vec::new(), 0.0);
    for step in 1..=2 {
        let scores = |ids: &[u32]| plain_scores(tiny, head, &params, ids);
        let scores: Vec<_> =
            pairs().iter().map(|p| [scores(&p.better_ids), scores(&p.worse_ids)]).collect();
        let loss = plain_loss(spec, &scores);
        last = loss.double_value(&[]);
        plain_step(&mut params, &loss, &mut moments, step, LEARNING_RATE);
    }
    (last, concatenated(&params))
}

#[test]
fn training_equals_plain_autograd_at_every_cut_and_world_size() {
    let tiny = TinyModel::new(true, 21);
    let mlp = ScoreHead::Mlp { hidden_dims: vec![12, 6] };
    for (head, spec) in [
        (ScoreHead::Linear, REWARD),
        (mlp.clone(), REWARD),
        (ScoreHead::Linear, COST),
        (ScoreHead::Linear, REWARD_TOKENS),
        (mlp, COST_TOKENS),
    ] {
        let (loss, expected) = plain(&tiny, &head, &spec);
        for (world, budget) in [(1, 1000), (1, 16), (2, 1000), (2, 16), (4, 20)] {
            for recompute in [true, false] {
                let what = format!(
                    "{head:?}, {spec:?}, {world} ranks, {budget} tokens, recompute {recompute}"
                );
                let settings =
                    EngineSettings { micro_batch_tokens: budget, recompute, ..settings() };
                let outcome = ranks(world, |comm| {
                    let mut model = tiny.load(reward_plan(&head, settings.clone()), comm);
                    let mut step = || train_pairs(&mut model, &pairs(), &spec, LEARNING_RATE);
                    step().unwrap();
                    let metrics = step().unwrap();
                    (metrics, weights(&model))
                });
                let (metrics, weights) = &outcome[0];
                assert!(
                    (metrics["loss"] - loss).abs() < 1e-5,
                    "{what}: {} != {loss}",
                    metrics["loss"]
                );
                assert_close(weights, &expected, 1e-5, &what);
            }
        }
    }
}

#[test]
fn scores_cover_every_pair_and_agree_with_the_reported_accuracy() {
    let tiny = TinyModel::new(true, 21);
    let shares = ranks(2, |comm| {
        let settings = EngineSettings { micro_batch_tokens: 16, ..settings() };
        let mut model = tiny.load(reward_plan(&ScoreHead::Linear, settings), comm);
        let scores = score_pairs(&mut model, &pairs()).unwrap();
        (scores, train_pairs(&mut model, &pairs(), &COST, 0.0).unwrap())
    });
    let mut scores: Vec<_> = shares.iter().flat_map(|(scores, _)| scores.clone()).collect();
    scores.sort_by_key(|row| row.index);
    assert!(scores.iter().map(|row| row.index).eq(0..pairs().len()));
    let right = scores.iter().filter(|row| row.worse > row.better).count() as f64;
    let metrics = &shares[0].1;
    assert_eq!(metrics["accuracy"], right / pairs().len() as f64);
    let sign = |cost: f64, safe: bool| if safe { cost < 0.0 } else { cost > 0.0 };
    let signs = scores.iter().zip(pairs()).map(|(row, pair)| {
        let [better, worse] = pair.safe.unwrap();
        usize::from(sign(row.better, better)) + usize::from(sign(row.worse, worse))
    });
    assert_eq!(metrics["sign_accuracy"], signs.sum::<usize>() as f64 / (2 * pairs().len()) as f64);
    let margin: f64 = scores.iter().map(|row| row.worse - row.better).sum();
    assert!((metrics["margin"] - margin / pairs().len() as f64).abs() < 1e-6);
}

#[test]
fn a_language_model_and_an_empty_text_are_refused() {
    let tiny = TinyModel::new(true, 21);
    let solo = || Box::new(plumb_collective::solo());
    let mut language_model = tiny.load(plan(settings()), solo());
    let error = train_pairs(&mut language_model, &pairs(), &REWARD, 0.1).unwrap_err().to_string();
    assert!(error.contains("score head"), "{error}");
    let mut model = tiny.load(reward_plan(&ScoreHead::Linear, settings()), solo());
    let mut bad = pairs();
    bad[3].worse_ids.clear();
    let error = score_pairs(&mut model, &bad).unwrap_err().to_string();
    assert!(error.contains("pair-3") && error.contains("no token"), "{error}");
    let mut unlabelled = pairs();
    unlabelled[2].safe = None;
    assert!(train_pairs(&mut model, &unlabelled, &REWARD, 0.0).is_ok());
    let error = train_pairs(&mut model, &unlabelled, &COST, 0.0).unwrap_err().to_string();
    assert!(error.contains("pair-2") && error.contains("safe"), "{error}");
}
