//! What must hold whatever the numbers.

mod advantage_family;
mod answer;
mod constraint;
mod rank;
mod score_model;
mod turn;

use proptest::prelude::*;

use crate::advantage::{self, Estimator, Outcomes};
use crate::group::Groups;
use crate::kl::{self, Clamps, Kind};
use crate::masked::Moments;
use crate::returns;
use crate::rule::{Answer, Rule, answers_equal, last_boxed, repetition_ratio};

const GROUPED: [&str; 4] = ["group_norm", "grpo", "rloo", "reinforce_baseline"];

fn estimator(name: &str) -> Estimator {
    name.parse().unwrap()
}

/// Rewards of some groups, 2 to 5 samples each, in steps of 1/16: a group has no spread or one
/// far above every epsilon.
fn grouped() -> impl Strategy<Value = (Vec<f64>, Vec<usize>)> {
    let reward = (-160i32..160).prop_map(|step| f64::from(step) / 16.0);
    prop::collection::vec(prop::collection::vec(reward, 2..6), 1..6).prop_map(|groups| {
        let keys = groups.iter().enumerate().flat_map(|(g, rows)| vec![g; rows.len()]).collect();
        (groups.concat(), keys)
    })
}

fn close(a: f64, b: f64) -> bool {
    (a - b).abs() <= 1e-9 * (1.0 + a.abs().max(b.abs()))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    #[test]
    fn the_order_of_samples_does_not_matter(
        (rewards, keys) in grouped(),
        seed in any::<u64>(),
    ) {
        let mut order: Vec<usize> = (0..rewards.len()).collect();
        order.sort_by_key(|i| (*i as u64 + 1).wrapping_mul(seed | 1).rotate_left(17));
        let moved: Vec<f64> = order.iter().map(|i| rewards[*i]).collect();
        let moved_keys: Vec<usize> = order.iter().map(|i| keys[*i]).collect();
        for name in GROUPED {
            let plain = estimator(name).advantages(&Outcomes::of(&rewards, &Groups::by_key(&keys))).unwrap();
            let other = estimator(name).advantages(&Outcomes::of(&moved, &Groups::by_key(&moved_keys))).unwrap();
            for (at, i) in order.iter().enumerate() {
                prop_assert!(close(other[at], plain[*i]), "{name}: {} {}", other[at], plain[*i]);
            }
        }
    }

    #[test]
    fn a_shift_of_all_rewards_changes_nothing_and_groups_sum_to_0(
        (rewards, keys) in grouped(),
        shift in -5.0f64..5.0,
    ) {
        let groups = Groups::by_key(&keys);
        let shifted: Vec<f64> = rewards.iter().map(|r| r + shift).collect();
        for name in GROUPED {
            let plain = estimator(name).advantages(&Outcomes::of(&rewards, &groups)).unwrap();
            let other = estimator(name).advantages(&Outcomes::of(&shifted, &groups)).unwrap();
            for (a, b) in plain.iter().zip(&other) {
                prop_assert!((a - b).abs() < 1e-6, "{name}: {a} {b}");
            }
            for members in groups.iter() {
                let sum: f64 = members.iter().map(|i| plain[*i]).sum();
                prop_assert!(sum.abs() < 1e-6, "{name}: {sum}");
            }
        }
    }

    #[test]
    fn scaling_rewards_scales_advantages_unless_they_are_normalised(
        (rewards, keys) in grouped(),
        factor in 0.5f64..20.0,
    ) {
        let groups = Groups::by_key(&keys);
        let scaled: Vec<f64> = rewards.iter().map(|r| r * factor).collect();
        for name in GROUPED {
            let plain = estimator(name).advantages(&Outcomes::of(&rewards, &groups)).unwrap();
            let other = estimator(name).advantages(&Outcomes::of(&scaled, &groups)).unwrap();
            let normalised = matches!(name, "group_norm" | "grpo");
            for (a, b) in plain.iter().zip(&other) {
                let expected = if normalised { *a } else { a * factor };
                // grpo's epsilon 1e-6 over a spread of at least 1/32.
                prop_assert!((expected - b).abs() < 1e-3 * (1.0 + b.abs()), "{name}: {a} {b}");
            }
        }
    }

    #[test]
    fn estimators_agree_with_a_naive_loop((rewards, keys) in grouped()) {
        let groups = Groups::by_key(&keys);
        for name in GROUPED {
            let ours = estimator(name).advantages(&Outcomes::of(&rewards, &groups)).unwrap();
            for i in 0..rewards.len() {
                let own: Vec<f64> =
                    (0..rewards.len()).filter(|j| keys[*j] == keys[i]).map(|j| rewards[j]).collect();
                let n = own.len() as f64;
                let mean = own.iter().sum::<f64>() / n;
                let std = (own.iter().map(|r| (r - mean).powi(2)).sum::<f64>() / (n - 1.0)).sqrt();
                let naive = match name {
                    "group_norm" => (rewards[i] - mean) / (std + 1e-9),
                    "grpo" => (rewards[i] - mean) / (std + 1e-6),
                    "rloo" => n / (n - 1.0) * (rewards[i] - mean),
                    _ => rewards[i] - mean,
                };
                prop_assert!((ours[i] - naive).abs() < 1e-6 * (1.0 + naive.abs()), "{name}");
            }
        }
    }

    #[test]
    fn nothing_outside_the_mask_matters(
        tokens in prop::collection::vec((-5.0f64..5.0, -5.0f64..5.0, any::<bool>()), 1..40),
        junk in prop::sample::select(vec![f64::NAN, f64::INFINITY, 1e300, 0.0]),
    ) {
        let mask: Vec<bool> = tokens.iter().map(|t| t.2).collect();
        let spoil = |values: &[f64]| -> Vec<f64> {
            values.iter().zip(&mask).map(|(v, keep)| if *keep { *v } else { junk }).collect()
        };
        let a: Vec<f64> = tokens.iter().map(|t| t.0).collect();
        let b: Vec<f64> = tokens.iter().map(|t| t.1).collect();
        let (bad_a, bad_b) = (spoil(&a), spoil(&b));
        prop_assert_eq!(Moments::of(&a, &mask), Moments::of(&bad_a, &mask));
        let kl = |a: &[f64], b: &[f64]| kl::of_tokens(Kind::K3, Clamps::Off, a, b, &mask).unwrap();
        prop_assert_eq!(kl(&a, &b), kl(&bad_a, &bad_b));
        let (mut good, mut bad) = (vec![0.0; a.len()], vec![0.0; a.len()]);
        returns::discounted(&a, &mask, 0.9, &mut good).unwrap();
        returns::discounted(&bad_a, &mask, 0.9, &mut bad).unwrap();
        prop_assert_eq!(&good, &bad);
        let zero = advantage::Gae { outside: advantage::Outside::Zero, ..Default::default() };
        let (mut g1, mut g2) = (good.clone(), good.clone());
        advantage::gae(&zero, &a, &b, &mask, &mut good, &mut g1).unwrap();
        advantage::gae(&zero, &bad_a, &bad_b, &mask, &mut bad, &mut g2).unwrap();
        prop_assert_eq!(good, bad);
        prop_assert_eq!(g1, g2);
    }

    #[test]
    fn with_lambda_1_and_no_values_gae_is_the_return(
        rewards in prop::collection::vec(-5.0f64..5.0, 1..30),
        gamma in 0.0f64..=1.0,
    ) {
        let mask = vec![true; rewards.len()];
        let zeros = vec![0.0; rewards.len()];
        let spec = advantage::Gae { gamma, lambda: 1.0, ..Default::default() };
        let (mut a, mut g, mut plain) = (zeros.clone(), zeros.clone(), zeros.clone());
        advantage::gae(&spec, &rewards, &zeros, &mask, &mut a, &mut g).unwrap();
        returns::discounted(&rewards, &mask, gamma, &mut plain).unwrap();
        for t in 0..rewards.len() {
            prop_assert!(close(a[t], plain[t]));
        }
    }

    #[test]
    fn k3_is_never_negative_and_all_kinds_vanish_for_equal_models(
        logp in -20.0f64..0.0,
        ref_logp in -20.0f64..0.0,
    ) {
        prop_assert!(Kind::K3.estimate(Clamps::Off, logp, ref_logp) >= 0.0);
        for kind in [Kind::K1, Kind::K2, Kind::K3, Kind::Abs] {
            prop_assert_eq!(kind.estimate(Clamps::Verl, logp, logp), 0.0);
        }
    }

    #[test]
    fn rules_take_any_text(question in ".{0,60}", response in ".{0,120}") {
        let answer =
            Answer { question: &question, response: &response, reference: Some(&question), response_tokens: 9 };
        for json in [
            r#"{"rule":"format"}"#,
            r#"{"rule":"length","unit":"chars","min":3,"max":50,"ramp":10}"#,
            r#"{"rule":"repetition"}"#,
            r#"{"rule":"boxed_answer"}"#,
            r#"{"rule":"keywords","phrases":["i can't"],"first_words":5}"#,
            r#"{"rule":"overlap"}"#,
        ] {
            let score = Rule::from_json(json).unwrap().score(&answer).unwrap();
            prop_assert!((0.0..=1.0).contains(&score), "{json}: {score}");
        }
        let _ = last_boxed(&response);
        prop_assert!((0.0..=1.0).contains(&repetition_ratio(&response, 2, 0)));
    }

    #[test]
    fn an_answer_equals_itself_however_it_is_boxed(number in -99_999i64..99_999, zeros in 0usize..3) {
        let decimal = format!("{number}.{}", "0".repeat(zeros + 1));
        prop_assert!(answers_equal(&number.to_string(), &decimal));
        let doubled = format!("\\frac{{{}}}{{2}}", number.abs() * 2);
        prop_assert!(answers_equal(&doubled, &number.abs().to_string()));
        let next = (number + 1).to_string();
        prop_assert!(!answers_equal(&number.to_string(), &next));
    }
}
