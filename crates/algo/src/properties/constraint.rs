//! Constraints and evaluation figures, whatever the numbers.

use proptest::prelude::*;

use super::close;
use crate::clamped_reward::{ClampedReward, Score};
use crate::constraint::{
    AugmentedCost, ConfidenceBound, Mixing, Multiplier, MultiplierSpec, RunningBaseline,
    SafetyTest, Verdict, student_t_quantile,
};
use crate::metric::{Arena, Match, MultipleChoice, Scores, compat_score_pair, score_pair};

fn costs() -> impl Strategy<Value = Vec<f64>> {
    prop::collection::vec(-20.0f64..20.0, 2..60)
}

fn reversed(values: &[f64]) -> Vec<f64> {
    values.iter().rev().copied().collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn student_t_is_odd_and_grows_with_the_probability_and_shrinks_with_the_freedom(
        p in 0.5001f64..0.999_999,
        step in 1e-7f64..1e-4,
        freedom in 0.6f64..5000.0,
    ) {
        let t = |p, freedom| student_t_quantile(p, freedom).unwrap();
        prop_assert!(close(t(1.0 - p, freedom), -t(p, freedom)));
        let higher = (p + step).min(0.999_999_9);
        prop_assert!(t(higher, freedom) > t(p, freedom), "{} {}", t(higher, freedom), t(p, freedom));
        prop_assert!(t(p, freedom * 1.01) < t(p, freedom));
    }

    #[test]
    fn a_bound_moves_and_scales_with_its_costs_and_ignores_their_order(
        costs in costs(),
        shift in -5.0f64..5.0,
        factor in 0.1f64..10.0,
        delta in 0.001f64..0.5,
    ) {
        let spec = ConfidenceBound { fail_probability: delta, ..ConfidenceBound::default() };
        let upper = |costs: &[f64]| spec.bound(costs).unwrap().0;
        let plain = upper(&costs);
        let shifted: Vec<f64> = costs.iter().map(|c| c + shift).collect();
        let scaled: Vec<f64> = costs.iter().map(|c| c * factor).collect();
        prop_assert!(close(upper(&shifted), plain + shift));
        prop_assert!(close(upper(&scaled), plain * factor));
        prop_assert!(close(upper(&reversed(&costs)), plain));
        let mean = costs.iter().sum::<f64>() / costs.len() as f64;
        prop_assert!(plain >= mean - 1e-12);
    }

    #[test]
    fn less_risk_never_turns_a_fail_into_a_pass(costs in costs(), delta in 0.01f64..0.4) {
        let decide = |fail_probability| {
            SafetyTest { fail_probability, ..SafetyTest::default() }.decide(&costs).unwrap()
        };
        if let Verdict::Pass(strict) = decide(delta / 2.0) {
            let Verdict::Pass(loose) = decide(delta) else { panic!("more risk must pass too") };
            prop_assert!(loose.upper_bound <= strict.upper_bound);
        }
    }

    #[test]
    fn augmenting_is_about_each_cost_alone_and_vanishes_without_a_weight(costs in costs()) {
        let spec = AugmentedCost::default();
        let (all, _) = spec.of(8, &costs, &costs).unwrap();
        let (back, _) = spec.of(8, &reversed(&costs), &reversed(&costs)).unwrap();
        for (a, b) in all.iter().zip(back.iter().rev()) {
            prop_assert!(close(*a, *b));
        }
        let none = ConfidenceBound { training_weight: 0.0, safety_weight: 0.0, ..spec.bound };
        let (plain, k) = AugmentedCost { bound: none, ..spec }.of(8, &costs, &costs).unwrap();
        prop_assert_eq!(k, 0.0);
        prop_assert_eq!(plain, costs);
    }

    #[test]
    fn a_multiplier_rises_above_the_threshold_falls_below_and_keeps_its_bound(
        costs in prop::collection::vec(-3.0f64..3.0, 1..30),
        threshold in -1.0f64..1.0,
        max in 1.0f64..20.0,
    ) {
        let spec = MultiplierSpec { threshold, max: Some(max), ..MultiplierSpec::default() };
        let mut multiplier = Multiplier::new(spec).unwrap();
        for (step, cost) in costs.iter().enumerate() {
            let before = multiplier.lambda();
            multiplier.update(step as u64, *cost).unwrap();
            let after = multiplier.lambda();
            prop_assert!(after > 0.0 && after <= max * (1.0 + 1e-12));
            let right_way = if *cost > threshold { after >= before } else { after <= before };
            prop_assert!(right_way);
        }
    }

    #[test]
    fn mixing_is_linear_and_lies_between_reward_and_negated_cost(
        pairs in prop::collection::vec((-9.0f64..9.0, -9.0f64..9.0), 1..20),
        lambda in 0.0f64..50.0,
    ) {
        let (rewards, costs): (Vec<f64>, Vec<f64>) = pairs.into_iter().unzip();
        let mixed = Mixing::Divided.mix(&rewards, &costs, lambda).unwrap();
        let undivided = Mixing::Undivided.mix(&rewards, &costs, lambda).unwrap();
        for i in 0..mixed.len() {
            let (low, high) = (rewards[i].min(-costs[i]), rewards[i].max(-costs[i]));
            prop_assert!(mixed[i] >= low - 1e-9 && mixed[i] <= high + 1e-9);
            prop_assert!(close(mixed[i] * (1.0 + lambda), undivided[i]));
        }
    }

    #[test]
    fn a_baseline_does_not_depend_on_how_batches_were_cut(
        returns in prop::collection::vec(-9.0f64..9.0, 1..40),
        cut in any::<prop::sample::Index>(),
    ) {
        let (mut whole, mut cut_up) = (RunningBaseline::default(), RunningBaseline::default());
        whole.update(&returns).unwrap();
        let (first, second) = returns.split_at(cut.index(returns.len()));
        cut_up.update(first).unwrap();
        cut_up.update(second).unwrap();
        prop_assert!(close(whole.mean(), cut_up.mean()));
        prop_assert_eq!(whole.count(), cut_up.count());
    }

    #[test]
    fn a_sequence_reward_ignores_what_is_outside_the_response(
        tokens in prop::collection::vec((-5.0f64..0.0, -5.0f64..0.0, any::<bool>()), 1..20),
        start in 0usize..20,
        reward in -5.0f64..5.0,
        junk in -100.0f64..100.0,
    ) {
        let mut mask: Vec<bool> = tokens.iter().map(|t| t.2).collect();
        mask[0] = true;
        let logp: Vec<f64> = tokens.iter().map(|t| t.0).collect();
        let ref_logp: Vec<f64> = tokens.iter().map(|t| t.1).collect();
        let kept = |at: usize| at >= start && mask[at];
        let spoilt: Vec<f64> =
            (0..logp.len()).map(|at| if kept(at) { logp[at] } else { junk }).collect();
        let spec = ClampedReward::default();
        let plain = spec.sequence(reward, &logp, &ref_logp, &mask, start).unwrap();
        prop_assert_eq!(plain, spec.sequence(reward, &spoilt, &ref_logp, &mask, start).unwrap());
    }

    #[test]
    fn the_kl_pushes_reward_and_cost_apart(
        tokens in prop::collection::vec((-5.0f64..0.0, -5.0f64..0.0), 1..20),
    ) {
        let (logp, ref_logp): (Vec<f64>, Vec<f64>) = tokens.into_iter().unzip();
        let mask = vec![true; logp.len()];
        let spec = ClampedReward::default();
        let tokens = |kind| spec.tokens(kind, 0.0, &logp, &ref_logp, &mask).unwrap();
        for (reward, cost) in tokens(Score::Reward).iter().zip(tokens(Score::Cost)) {
            prop_assert_eq!(*reward, -cost);
        }
    }

    #[test]
    fn an_arena_does_not_depend_on_the_order_and_its_cells_add_up(
        rows in prop::collection::vec((-2i32..3, -2i32..3, -2i32..3, -2i32..3), 1..30),
    ) {
        let scores = |reward, cost| Scores { reward: f64::from(reward), cost: f64::from(cost) };
        let matches: Vec<Match> = rows
            .iter()
            .map(|r| Match { red: scores(r.0, r.1), blue: scores(r.2, r.3) })
            .collect();
        let back: Vec<Match> = matches.iter().rev().copied().collect();
        let table = Arena::of(&matches).unwrap();
        prop_assert_eq!(table, Arena::of(&back).unwrap());
        prop_assert_eq!(table.blue_safe().count + table.blue_unsafe().count, matches.len());
        let wins = matches.iter().filter(|m| m.blue.reward > m.red.reward).count();
        prop_assert_eq!(table.blue_safe().wins + table.blue_unsafe().wins, wins);
    }

    #[test]
    fn normalised_choices_are_probabilities_and_a_shift_changes_nothing(
        scores in prop::collection::vec(-500.0f64..0.0, 1..8),
        shift in -100.0f64..100.0,
    ) {
        let plain = MultipleChoice::of(scores.clone()).unwrap();
        let shifted = MultipleChoice::of(scores.iter().map(|s| s + shift).collect()).unwrap();
        let total: f64 = plain.normalised.iter().map(|s| s.exp()).sum();
        prop_assert!(close(total, 1.0));
        for (a, b) in plain.normalised.iter().zip(&shifted.normalised) {
            prop_assert!(close(*a, *b));
        }
    }

    #[test]
    fn a_judge_may_say_anything(reply in ".{0,40}", a in -1e6f64..1e6, b in 0u32..11) {
        if let Ok(pair) = score_pair(&reply) {
            prop_assert_eq!(compat_score_pair(&reply), pair);
        }
        let written = format!("{a} {b}\n{reply}");
        prop_assert_eq!(score_pair(&written).unwrap(), [a, f64::from(b)]);
    }
}
