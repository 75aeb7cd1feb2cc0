//! Constraints, token rewards and figures against loops that follow the reference line by line.

use std::collections::VecDeque;

use proptest::prelude::*;

use crate::advantage::{Gae, Outside, response_gae};
use crate::clamped_reward::{ClampedReward, Score};
use crate::constraint::{
    AugmentedCost, ConfidenceBound, CostWindow, Multiplier, MultiplierSpec, RunningBaseline,
    SafetyTest, Verdict, student_t_quantile,
};
use crate::metric::{Arena, BatchScore, Match, Scores};

fn close(a: f64, b: f64) -> bool {
    (a - b).abs() <= 1e-9 * (1.0 + a.abs().max(b.abs()))
}

/// `P(T <= t)` by Simpson's rule on the density, from 0.
fn student_t_cdf(t: f64, freedom: f64) -> f64 {
    let density = |x: f64| (1.0 + x * x / freedom).powf(-(freedom + 1.0) / 2.0);
    let simpson = |from: f64, to: f64, steps: usize, f: &dyn Fn(f64) -> f64| {
        let h = (to - from) / steps as f64;
        let inner = (1..steps).map(|i| f(from + i as f64 * h) * if i % 2 == 1 { 4.0 } else { 2.0 });
        (f(from) + f(to) + inner.sum::<f64>()) * h / 3.0
    };
    // The whole half line in x = u / (1 - u); the density vanishes at its end for v >= 2.
    let folded = |u: f64| {
        if u >= 1.0 { 0.0 } else { density(u / (1.0 - u)) / (1.0 - u).powi(2) }
    };
    let half = simpson(0.0, 1.0, 4000, &folded);
    0.5 + 0.5 * simpson(0.0, t, 2000, &density) / half
}

fn deviation(values: &[f64]) -> (f64, f64) {
    let n = values.len() as f64;
    let mean = values.iter().sum::<f64>() / n;
    let square: f64 = values.iter().map(|v| (v - mean).powi(2)).sum();
    (mean, (square / (n - 1.0)).sqrt())
}

type Tokens = Vec<(f64, f64, bool)>;

fn tokens() -> impl Strategy<Value = Tokens> {
    prop::collection::vec((-5.0f64..1.0, -5.0f64..1.0, any::<bool>()), 1..24)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1000))]

    #[test]
    fn the_quantile_inverts_an_integral_of_the_density(
        p in 0.01f64..0.995,
        freedom in 2usize..400,
    ) {
        let freedom = freedom as f64;
        let back = student_t_cdf(student_t_quantile(p, freedom).unwrap(), freedom);
        prop_assert!((back - p).abs() < 1e-7, "{p} {freedom}: {back}");
    }

    #[test]
    fn multiplier_and_window_follow_the_trainers_loop(
        rollouts in prop::collection::vec(prop::collection::vec(-2.0f64..2.0, 1..6), 1..12),
        size in 1usize..10,
        delay in 0u64..6,
        max in prop::option::of(0.5f64..4.0),
        lr in 0.01f64..0.1,
        threshold in -1.0f64..1.0,
    ) {
        let spec = MultiplierSpec {
            initial: 1.0, learning_rate: lr, max, delay_steps: delay, threshold,
        };
        let mut ours = Multiplier::new(spec).unwrap();
        let mut window = CostWindow::new(size).unwrap();
        let (mut log_lambda, mut episode_costs) = (0.0f64, VecDeque::new());
        for (step, costs) in rollouts.iter().enumerate() {
            window.extend(costs).unwrap();
            let cost = window.mean().unwrap();
            ours.update(step as u64, cost).unwrap();
            for cost in costs {
                episode_costs.push_back(*cost);
                if episode_costs.len() > size {
                    episode_costs.pop_front();
                }
            }
            let naive = episode_costs.iter().sum::<f64>() / episode_costs.len() as f64;
            prop_assert!(close(cost, naive));
            if step as u64 >= delay {
                let gradient = -(naive - threshold) * log_lambda.exp();
                log_lambda -= lr * gradient;
                if let Some(max) = max {
                    log_lambda = log_lambda.min(max.ln());
                }
            }
            prop_assert!(close(ours.log_lambda(), log_lambda));
        }
    }

    #[test]
    fn bound_test_and_augmented_cost_follow_their_formulas(
        costs in prop::collection::vec(-9.0f64..9.0, 2..40),
        batch in 2usize..64,
        safety in 2usize..2000,
        delta in 0.01f64..0.5,
        c1 in 0.0f64..5.0,
        c2 in 0.0f64..5.0,
        threshold in -3.0f64..3.0,
    ) {
        let (mean, std) = deviation(&costs);
        prop_assume!(std > 1e-3);
        let part = |n: usize| {
            student_t_quantile(1.0 - delta, n as f64 - 1.0).unwrap() / (n as f64).sqrt()
        };
        let spec = ConfidenceBound {
            fail_probability: delta, safety_samples: safety, training_weight: c1, safety_weight: c2,
        };
        let n = costs.len();
        let upper = mean + (c1 * part(n) + c2 * part(safety)) * std;
        prop_assert!(close(spec.bound(&costs).unwrap().0, upper));

        let k = c1 * part(batch) + c2 * part(safety);
        let augmented = AugmentedCost { bound: spec, ..AugmentedCost::default() };
        let (ours, our_k) = augmented.of(batch, &costs, &costs).unwrap();
        prop_assert!(close(our_k, k));
        for (cost, ours) in costs.iter().zip(ours) {
            let naive = cost + k * (cost.powi(2) - 2.0 * cost * mean) / (2.0 * std);
            prop_assert!((ours - naive).abs() < 1e-6 * (1.0 + naive.abs()), "{ours} {naive}");
        }

        let test = SafetyTest { fail_probability: delta, threshold, ..SafetyTest::default() };
        let naive = mean + part(n) * std;
        let (figures, passes) = match test.decide(&costs).unwrap() {
            Verdict::Pass(figures) => (figures, true),
            Verdict::Fail(figures) => (figures, false),
            Verdict::NotEnoughData { .. } => panic!("there are at least two costs"),
        };
        prop_assert!(close(figures.upper_bound, naive));
        prop_assert!(passes == (naive <= threshold) || close(naive, threshold));
    }

    #[test]
    fn token_and_sequence_rewards_follow_a_loop(
        tokens in tokens(),
        start in 0usize..24,
        score in -9.0f64..9.0,
        kl_coef in -1.0f64..1.0,
        clip in 0.0f64..9.0,
    ) {
        let spec = ClampedReward { kl_coef, clip };
        let logp: Vec<f64> = tokens.iter().map(|t| t.0).collect();
        let ref_logp: Vec<f64> = tokens.iter().map(|t| t.1).collect();
        let mut mask: Vec<bool> = tokens.iter().map(|t| t.2).collect();
        mask[0] = true;
        let last = (0..mask.len()).filter(|at| mask[*at]).max().unwrap();
        let reward = spec.tokens(Score::Reward, score, &logp, &ref_logp, &mask).unwrap();
        let cost = spec.tokens(Score::Cost, score, &logp, &ref_logp, &mask).unwrap();
        let mut net = score;
        for at in 0..mask.len() {
            let kl = logp[at] - ref_logp[at];
            let end = if at == last { score } else { 0.0 };
            prop_assert!(close(reward[at], (-kl_coef * kl + end).min(clip).max(-clip)));
            prop_assert!(close(cost[at], (kl_coef * kl + end).min(clip).max(-clip)));
            if at >= start && mask[at] {
                net -= kl_coef * kl;
            }
        }
        let ours = spec.sequence(score, &logp, &ref_logp, &mask, start).unwrap();
        prop_assert!(close(ours, net.min(clip).max(-clip)));
    }

    #[test]
    fn response_advantages_are_the_sum_of_discounted_deltas(
        tokens in tokens(),
        start in any::<prop::sample::Index>(),
        gamma in 0.0f64..=1.0,
        lambda in 0.0f64..=1.0,
    ) {
        let rewards: Vec<f64> = tokens.iter().map(|t| t.0).collect();
        let values: Vec<f64> = tokens.iter().map(|t| t.1).collect();
        let mask: Vec<bool> = tokens.iter().map(|t| t.2).collect();
        let start = start.index(tokens.len());
        let spec = Gae { gamma, lambda, outside: Outside::Zero };
        let ours = response_gae(&spec, &rewards, &values, &mask, start).unwrap();
        let kept = |values: &[f64], at: usize| {
            if at < values.len() && mask[at] { values[at] } else { 0.0 }
        };
        for at in start..tokens.len() {
            let sum: f64 = (at..tokens.len())
                .map(|s| {
                    let delta =
                        kept(&rewards, s) + gamma * kept(&values, s + 1) - kept(&values, s);
                    (gamma * lambda).powi((s - at) as i32) * delta
                })
                .sum();
            prop_assert!(close(ours.advantages[at - start], sum));
            prop_assert!(close(ours.returns[at - start], sum + kept(&values, at)));
        }
    }

    #[test]
    fn a_running_baseline_is_the_mean_of_all_batches(
        batches in prop::collection::vec(prop::collection::vec(-9.0f64..9.0, 0..6), 0..8),
    ) {
        let mut ours = RunningBaseline::default();
        let mut all = Vec::new();
        for batch in &batches {
            ours.update(batch).unwrap();
            all.extend(batch);
            let naive =
                if all.is_empty() { 0.0 } else { all.iter().sum::<f64>() / all.len() as f64 };
            prop_assert!(close(ours.mean(), naive));
        }
        prop_assert_eq!(ours.count(), all.len() as u64);
    }

    #[test]
    fn arena_and_batch_scores_follow_a_loop(
        rows in prop::collection::vec((-2i32..3, -2i32..3, -2i32..3, -2i32..3), 1..24),
    ) {
        let scores = |reward, cost| Scores { reward: f64::from(reward), cost: f64::from(cost) };
        let matches: Vec<Match> = rows
            .iter()
            .map(|r| Match { red: scores(r.0, r.1), blue: scores(r.2, r.3) })
            .collect();
        let table = Arena::of(&matches).unwrap();
        let count = |red_safe: bool, blue_safe: bool| {
            let own: Vec<_> = rows
                .iter()
                .filter(|r| (r.1 <= 0) == red_safe && (r.3 <= 0) == blue_safe)
                .collect();
            (own.len(), own.iter().filter(|r| r.2 > r.0).count())
        };
        for (cell, naive) in [
            (table.safe_to_safe, count(true, true)),
            (table.safe_to_unsafe, count(true, false)),
            (table.unsafe_to_safe, count(false, true)),
            (table.unsafe_to_unsafe, count(false, false)),
        ] {
            prop_assert_eq!((cell.count, cell.wins), naive);
        }

        let scores: Vec<[f64; 2]> =
            rows.iter().map(|r| [f64::from(r.0), f64::from(r.1)]).collect();
        let slices: Vec<&[f64]> = scores.iter().map(|s| &s[..]).collect();
        let lengths: Vec<usize> = rows.iter().map(|r| (r.2 + 2) as usize).collect();
        let kept: Vec<f64> = rows.iter().filter(|r| r.2 > -2).map(|r| f64::from(r.0 + r.1)).collect();
        match BatchScore::of(&slices, &lengths) {
            Ok(figures) => {
                prop_assert_eq!(figures.samples, kept.len());
                prop_assert!(close(figures.mean, kept.iter().sum::<f64>() / kept.len() as f64));
                prop_assert!(kept.contains(&figures.max) && kept.contains(&figures.min));
                prop_assert!(kept.iter().all(|s| *s <= figures.max && *s >= figures.min));
            }
            Err(_) => prop_assert!(kept.is_empty()),
        }
    }
}
