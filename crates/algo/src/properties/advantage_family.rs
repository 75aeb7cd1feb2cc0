//! Advantage estimators under changes of order, scale, shift and of what lies outside the mask.

use proptest::prelude::*;

use super::{close, grouped};
use crate::advantage::{self, Component, CrossBatch, Estimator, Outcomes};
use crate::dynamic_sampling::{Spread, resample};
use crate::group::Groups;
use crate::running_moments::RunningMoments;

const ALL: [&str; 12] = [
    "group_norm",
    "grpo",
    "grpo_passk",
    "rloo",
    "reinforce_baseline",
    "reinforce",
    "reinforce_plus_plus",
    "reinforce_plus_plus_baseline",
    "opo",
    "gpg",
    "cpgd",
    "gdpo",
];

/// Lengths and a second component that hang on the rewards alone, so that they move with them.
fn advantages(name: &str, rewards: &[f64], keys: &[usize]) -> Vec<f64> {
    let lengths: Vec<usize> = rewards.iter().map(|r| 1 + (r.abs() * 16.0) as usize % 5).collect();
    with_lengths(name, rewards, keys, &lengths)
}

fn with_lengths(name: &str, rewards: &[f64], keys: &[usize], lengths: &[usize]) -> Vec<f64> {
    let groups = Groups::by_key(keys);
    let format: Vec<f64> = lengths.iter().map(|n| (n % 2) as f64).collect();
    let components =
        [Component { weight: 1.0, scores: rewards }, Component { weight: 0.3, scores: &format }];
    let outcomes =
        Outcomes { rewards, groups: &groups, lengths_tokens: lengths, components: &components };
    name.parse::<Estimator>().unwrap().advantages(&outcomes).unwrap()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    #[test]
    fn the_order_of_samples_and_groups_does_not_matter(
        (rewards, keys) in grouped(),
        seed in any::<u64>(),
    ) {
        let mut order: Vec<usize> = (0..rewards.len()).collect();
        order.sort_by_key(|i| (*i as u64 + 1).wrapping_mul(seed | 1).rotate_left(17));
        let moved: Vec<f64> = order.iter().map(|i| rewards[*i]).collect();
        // Groups are renamed too.
        let moved_keys: Vec<usize> = order.iter().map(|i| 1000 - keys[*i]).collect();
        for name in ALL {
            let plain = advantages(name, &rewards, &keys);
            let other = advantages(name, &moved, &moved_keys);
            for (at, i) in order.iter().enumerate() {
                prop_assert!(close(other[at], plain[*i]), "{name}: {} {}", other[at], plain[*i]);
            }
        }
    }

    #[test]
    fn a_shift_of_one_group_matters_only_where_groups_are_compared(
        (rewards, keys) in grouped(),
        shift in 1i32..20,
    ) {
        let lengths: Vec<usize> = (0..rewards.len()).map(|i| 1 + i % 5).collect();
        let shifted: Vec<f64> = rewards
            .iter()
            .zip(&keys)
            .map(|(r, key)| if *key == 0 { r + f64::from(shift) } else { *r })
            .collect();
        // gpg counts zeros, so a shift changes its scale.
        for name in ["grpo_passk", "reinforce_plus_plus_baseline", "opo", "gdpo"] {
            let plain = with_lengths(name, &rewards, &keys, &lengths);
            let other = with_lengths(name, &shifted, &keys, &lengths);
            for (a, b) in plain.iter().zip(&other) {
                prop_assert!((a - b).abs() < 1e-6, "{name}: {a} {b}");
            }
        }
        let whole: Vec<f64> = rewards.iter().map(|r| r + f64::from(shift)).collect();
        for name in ["reinforce_plus_plus", "cpgd"] {
            let plain = with_lengths(name, &rewards, &keys, &lengths);
            let other = with_lengths(name, &whole, &keys, &lengths);
            for (a, b) in plain.iter().zip(&other) {
                prop_assert!((a - b).abs() < 1e-6, "{name}: {a} {b}");
            }
        }
    }

    #[test]
    fn scaling_rewards_scales_what_is_not_normalised(
        (rewards, keys) in grouped(),
        factor in 0.5f64..20.0,
    ) {
        let lengths: Vec<usize> = (0..rewards.len()).map(|i| 1 + i % 5).collect();
        let scaled: Vec<f64> = rewards.iter().map(|r| r * factor).collect();
        for name in ALL {
            let plain = with_lengths(name, &rewards, &keys, &lengths);
            let other = with_lengths(name, &scaled, &keys, &lengths);
            let scales = matches!(name, "rloo" | "reinforce_baseline" | "reinforce" | "opo" | "gpg");
            for (a, b) in plain.iter().zip(&other) {
                let expected = if scales { a * factor } else { *a };
                // gdpo's epsilon 1e-4 over a spread of at least 1/64.
                prop_assert!((expected - b).abs() < 2e-2 * (1.0 + b.abs()), "{name}: {a} {b}");
            }
        }
    }

    #[test]
    fn groups_of_equal_rewards_get_0_where_the_estimator_says_so(
        (rewards, keys) in grouped(),
        value in -3.0f64..3.0,
    ) {
        let flat: Vec<f64> =
            rewards.iter().zip(&keys).map(|(r, key)| if *key == 0 { value } else { *r }).collect();
        for name in ALL {
            if name.parse::<Estimator>().unwrap().ignores_equal_groups() {
                let got = advantages(name, &flat, &keys);
                let own = got.iter().zip(&keys).filter(|(_, key)| **key == 0);
                prop_assert!(own.clone().all(|(a, _)| *a == 0.0), "{name}: {got:?}");
            }
        }
    }

    #[test]
    fn whitened_advantages_have_mean_0_over_tokens(
        (rewards, keys) in grouped(),
        offset in 0usize..5,
    ) {
        let lengths: Vec<usize> = (0..rewards.len()).map(|i| 1 + (i + offset) % 5).collect();
        for name in ["reinforce_plus_plus", "reinforce_plus_plus_baseline"] {
            let got = with_lengths(name, &rewards, &keys, &lengths);
            let sum: f64 = got.iter().zip(&lengths).map(|(a, n)| a * *n as f64).sum();
            prop_assert!(sum.abs() < 1e-3, "{name}: {sum}");
        }
    }

    #[test]
    fn nothing_outside_the_mask_reaches_an_advantage(
        tokens in prop::collection::vec((-5.0f64..5.0, any::<bool>()), 2..20),
        junk in prop::sample::select(vec![f64::NAN, f64::INFINITY, 1e300, 0.0]),
    ) {
        let mut mask: Vec<bool> = tokens.iter().map(|t| t.1).collect();
        (mask[0], mask[1]) = (true, true);
        let n = tokens.len();
        let good: Vec<f64> = tokens.iter().map(|t| t.0).collect();
        let bad: Vec<f64> =
            good.iter().zip(&mask).map(|(v, keep)| if *keep { *v } else { junk }).collect();
        let plus_plus = |rewards: &[f64]| {
            let (mut a, mut g) = (vec![0.0; n], vec![0.0; n]);
            advantage::reinforce_plus_plus(0.9, rewards, &mask, n, &mut a, &mut g).unwrap();
            a
        };
        prop_assert_eq!(plus_plus(&good), plus_plus(&bad));
        let remax = |rewards: &[f64]| {
            let (mut a, mut g) = (vec![0.0; n], vec![0.0; n]);
            advantage::remax(rewards, 0.5, &mask, &mut a, &mut g).unwrap();
            (a, g)
        };
        prop_assert_eq!(remax(&good), remax(&bad));
        let cross = |advantages: &[f64]| {
            let mut a = advantages.to_vec();
            advantage::cross_batch(&CrossBatch::default(), &mut a, &mask).unwrap();
            a.iter().zip(&mask).filter(|(_, keep)| **keep).map(|(a, _)| *a).collect::<Vec<_>>()
        };
        prop_assert_eq!(cross(&good), cross(&bad));
    }

    #[test]
    fn running_moments_do_not_hang_on_the_cut_into_batches(
        values in prop::collection::vec(-9.0f64..9.0, 2..30),
        cut in 1usize..29,
    ) {
        let cut = cut.min(values.len() - 1);
        let (mut whole, mut parts) = (RunningMoments::default(), RunningMoments::default());
        whole.update(&values).unwrap();
        parts.update(&values[..cut]).unwrap();
        parts.update(&values[cut..]).unwrap();
        prop_assert!(close(whole.mean(), parts.mean()));
        prop_assert!(close(whole.std(), parts.std()));
    }

    #[test]
    fn a_group_stays_in_the_batch_whatever_the_order_of_its_samples(
        (metrics, keys) in grouped(),
    ) {
        let groups = Groups::by_key(&keys);
        let kept = resample(Spread::Exact, &metrics, &groups).unwrap();
        let turned: Vec<f64> = metrics.iter().rev().copied().collect();
        let turned_keys: Vec<usize> = keys.iter().rev().copied().collect();
        let mut other =
            resample(Spread::Exact, &turned, &Groups::by_key(&turned_keys)).unwrap();
        other.reverse();
        prop_assert_eq!(&kept, &other);
        for (members, kept) in groups.iter().zip(kept) {
            let differ = members.iter().any(|i| metrics[*i] != metrics[members[0]]);
            let mean = members.iter().map(|i| metrics[*i]).sum::<f64>() / members.len() as f64;
            prop_assert_eq!(kept, differ || (mean > 0.0 && mean < 1.0));
        }
    }
}
