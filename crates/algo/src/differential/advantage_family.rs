//! Advantage estimators, whitening, running moments. 1,000 random cases each.

use proptest::prelude::*;

use crate::advantage::{self, Component, Estimator, Gdpo, Grpo, Outcomes};
use crate::group::Groups;
use crate::masked::{whiten, whiten_samples};
use crate::returns;
use crate::running_moments::RunningMoments;

/// A batch: group, reward, a second component and length of each sample; groups interleave.
#[derive(Debug, Clone)]
struct Batch {
    keys: Vec<u8>,
    rewards: Vec<f64>,
    format: Vec<f64>,
    lengths: Vec<usize>,
}

/// Rewards in steps of 1/16, so that equal ones, zeros and ties occur; each key has at least two
/// samples.
fn batch() -> impl Strategy<Value = Batch> {
    let sample = (0u8..4, -24i32..24, 0i32..3, 1usize..7);
    prop::collection::vec(sample, 1..12).prop_map(|mut samples| {
        let twins: Vec<_> =
            samples.iter().map(|(key, r, f, n)| (*key, r + 3, 2 - f, 7 - n)).collect();
        samples.extend(twins);
        Batch {
            keys: samples.iter().map(|s| s.0).collect(),
            rewards: samples.iter().map(|s| f64::from(s.1) / 16.0).collect(),
            format: samples.iter().map(|s| f64::from(s.2) / 2.0).collect(),
            lengths: samples.iter().map(|s| s.3).collect(),
        }
    })
}

fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len() as f64
}

fn std(values: &[f64], less: f64) -> f64 {
    let m = mean(values);
    (values.iter().map(|v| (v - m).powi(2)).sum::<f64>() / (values.len() as f64 - less)).sqrt()
}

/// The values of the samples in the group of sample `i`.
fn group_of(batch: &Batch, i: usize, values: &[f64]) -> Vec<f64> {
    (0..values.len()).filter(|j| batch.keys[*j] == batch.keys[i]).map(|j| values[j]).collect()
}

/// Every value as often as its sample has tokens.
fn on_tokens(values: &[f64], lengths: &[usize]) -> Vec<f64> {
    values.iter().zip(lengths).flat_map(|(v, n)| vec![*v; *n]).collect()
}

fn whitened(value: f64, tokens: &[f64]) -> f64 {
    (value - mean(tokens)) / (std(tokens, 1.0).powi(2) + 1e-8).sqrt()
}

fn naive(name: &str, batch: &Batch) -> Vec<f64> {
    let r = &batch.rewards;
    let n = r.len() as f64;
    let centred: Vec<f64> = (0..r.len()).map(|i| r[i] - mean(&group_of(batch, i, r))).collect();
    let one = |i: usize| {
        let own = group_of(batch, i, r);
        let size = own.len() as f64;
        match name {
            "group_norm" => centred[i] / (std(&own, 1.0) + 1e-9),
            "grpo" => centred[i] / (std(&own, 1.0) + 1e-6),
            "rloo" => r[i] - (own.iter().sum::<f64>() - r[i]) / (size - 1.0),
            "reinforce_baseline" => centred[i],
            "reinforce" => r[i],
            "reinforce_plus_plus" => whitened(r[i], &on_tokens(r, &batch.lengths)),
            "reinforce_plus_plus_baseline" => {
                whitened(centred[i], &on_tokens(&centred, &batch.lengths))
            }
            "opo" => {
                let lengths: Vec<f64> = batch.lengths.iter().map(|n| *n as f64).collect();
                let lengths = group_of(batch, i, &lengths);
                let weighted: f64 = lengths.iter().zip(&own).map(|(l, s)| l * s).sum();
                r[i] - weighted / lengths.iter().sum::<f64>()
            }
            "gpg" => n / (r.iter().filter(|s| **s != 0.0).count() as f64).max(1.0) * centred[i],
            "grpo_passk" => {
                let mut sorted = own.clone();
                sorted.sort_by(f64::total_cmp);
                let (best, second) = (sorted[sorted.len() - 1], sorted[sorted.len() - 2]);
                if r[i] == best { (best - second) / (std(&own, 1.0) + 1e-6) } else { 0.0 }
            }
            "cpgd" => (r[i] - mean(r)) / (std(r, 0.0) + 1e-6),
            "gdpo" => {
                let z = |values: &[f64], i: usize| {
                    let own = group_of(batch, i, values);
                    (values[i] - mean(&own)) / (std(&own, 1.0) + 1e-4)
                };
                let sums: Vec<f64> =
                    (0..r.len()).map(|i| z(r, i) + 0.5 * z(&batch.format, i)).collect();
                (sums[i] - mean(&sums)) / (std(&sums, 1.0) + 1e-4)
            }
            other => panic!("{other}"),
        }
    };
    (0..r.len()).map(one).collect()
}

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

fn close(got: f64, expected: f64) -> bool {
    (got - expected).abs() <= 1e-6 * (1.0 + expected.abs())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1000))]

    #[test]
    fn every_estimator_is_its_equation(batch in batch()) {
        let groups = Groups::by_key(&batch.keys);
        let components = [
            Component { weight: 1.0, scores: &batch.rewards },
            Component { weight: 0.5, scores: &batch.format },
        ];
        let outcomes = Outcomes {
            rewards: &batch.rewards,
            groups: &groups,
            lengths_tokens: &batch.lengths,
            components: &components,
        };
        for name in ALL {
            let ours = name.parse::<Estimator>().unwrap().advantages(&outcomes).unwrap();
            let expected = naive(name, &batch);
            for (a, e) in ours.iter().zip(&expected) {
                prop_assert!(close(*a, *e), "{}: {} {}", name, a, e);
            }
        }
    }

    #[test]
    fn sample_forms_are_the_token_forms(batch in batch()) {
        let width = 7;
        let groups = Groups::by_key(&batch.keys);
        let mask: Vec<bool> =
            batch.lengths.iter().flat_map(|n| (0..width).map(move |t| t < *n)).collect();
        let rewards: Vec<f64> = batch.rewards.iter().zip(&batch.lengths)
            .flat_map(|(r, n)| (0..width).map(move |t| if t + 1 == *n { *r } else { 0.0 }))
            .collect();
        let (mut a, mut g) = (vec![0.0; mask.len()], vec![0.0; mask.len()]);
        advantage::reinforce_plus_plus(1.0, &rewards, &mask, width, &mut a, &mut g).unwrap();
        let mut samples = batch.rewards.clone();
        whiten_samples(&mut samples, &batch.lengths).unwrap();
        let baseline = advantage::reinforce_plus_plus_baseline(
            &Default::default(), &batch.rewards, &groups, &mask, width).unwrap();
        let outcomes = Outcomes {
            lengths_tokens: &batch.lengths, ..Outcomes::of(&batch.rewards, &groups) };
        let centred = "reinforce_plus_plus_baseline".parse::<Estimator>().unwrap()
            .advantages(&outcomes).unwrap();
        for i in 0..samples.len() {
            for t in 0..width {
                let (at, keep) = (i * width + t, t < batch.lengths[i]);
                let expected = if keep { samples[i] } else { 0.0 };
                prop_assert!(close(a[at], expected), "{} {}", a[at], expected);
                let expected = if keep { centred[i] } else { 0.0 };
                prop_assert!(close(baseline[at], expected), "{} {}", baseline[at], expected);
            }
        }
    }

    #[test]
    fn gdpo_of_tokens_is_whitened_grpo(batch in batch()) {
        let width = 7;
        let groups = Groups::by_key(&batch.keys);
        let mask: Vec<bool> =
            batch.lengths.iter().flat_map(|n| (0..width).map(move |t| t < *n)).collect();
        let components = [
            Component { weight: 1.0, scores: &batch.rewards },
            Component { weight: 0.5, scores: &batch.format },
        ];
        let got =
            advantage::gdpo_tokens(&Grpo::default(), &components, &groups, &mask, width).unwrap();
        let z = |values: &[f64]| advantage::grpo(&Grpo::default(), values, &groups).unwrap();
        let (first, second) = (z(&batch.rewards), z(&batch.format));
        let sums: Vec<f64> = first.iter().zip(&second).map(|(a, b)| a + 0.5 * b).collect();
        let tokens = on_tokens(&sums, &batch.lengths);
        for (at, keep) in mask.iter().enumerate() {
            let expected = if *keep { whitened(sums[at / width], &tokens) } else { 0.0 };
            prop_assert!(close(got[at], expected), "{} {}", got[at], expected);
        }
        // The TRL form's sums differ from grpo's by the epsilon alone.
        let spec = Gdpo { epsilon: 1e-6, ..Gdpo::default() };
        let trl = advantage::gdpo(&spec, &components, &groups).unwrap().sums;
        for (a, b) in trl.iter().zip(&sums) {
            prop_assert!(close(*a, *b));
        }
    }

    #[test]
    fn vectorised_grpo_is_grpo_where_the_spread_is_wide(batch in batch()) {
        let groups = Groups::by_key(&batch.keys);
        let plain = advantage::grpo(&Grpo::default(), &batch.rewards, &groups).unwrap();
        let vectorised =
            advantage::compat_grpo_vectorized(true, 1e-6, &batch.rewards, &groups).unwrap();
        for (a, b) in vectorised.iter().zip(&plain) {
            prop_assert!((a - b).abs() < 1e-3 * (1.0 + b.abs()), "{} {}", a, b);
        }
    }

    #[test]
    fn token_recursions_are_their_sums(
        tokens in prop::collection::vec((-4.0f64..4.0, any::<bool>()), 0..24),
        gamma in 0.0f64..=1.0,
        baseline in -2.0f64..2.0,
    ) {
        let rewards: Vec<f64> = tokens.iter().map(|t| t.0).collect();
        let mask: Vec<bool> = tokens.iter().map(|t| t.1).collect();
        let n = rewards.len();
        let (mut a, mut g, mut restarted) = (vec![0.0; n], vec![0.0; n], vec![0.0; n]);
        advantage::remax(&rewards, baseline, &mask, &mut a, &mut g).unwrap();
        returns::restarting(&rewards, &mask, gamma, &mut restarted).unwrap();
        for t in 0..n {
            let kept: f64 = (t..n).filter(|u| mask[*u]).map(|u| rewards[u]).sum();
            prop_assert!((g[t] - kept).abs() < 1e-9);
            let off = if mask[t] { baseline } else { 0.0 };
            prop_assert!((a[t] - (kept - off)).abs() < 1e-9);
            // Up to the next token outside the mask, which does not count.
            let end = (t + 1..n).find(|u| !mask[*u]).unwrap_or(n);
            let run: f64 = (t..end).map(|u| gamma.powi((u - t) as i32) * rewards[u]).sum();
            prop_assert!((restarted[t] - run).abs() < 1e-9, "{} {}", restarted[t], run);
        }
    }

    #[test]
    fn running_moments_are_the_moments_of_everything(
        batches in prop::collection::vec(prop::collection::vec(-50.0f64..50.0, 1..9), 1..9),
    ) {
        let mut moments = RunningMoments::default();
        for batch in &batches {
            let own = moments.update(batch).unwrap();
            prop_assert!((own.mean - mean(batch)).abs() < 1e-9);
            let expected = if batch.len() > 1 { std(batch, 1.0) } else { 0.0 };
            prop_assert!((own.std - expected).abs() < 1e-9);
        }
        let all = batches.concat();
        prop_assert_eq!(moments.count(), all.len() as u64);
        prop_assert!((moments.mean() - mean(&all)).abs() < 1e-9);
        prop_assert!((moments.population_variance() - std(&all, 0.0).powi(2)).abs() < 1e-8);
        if all.len() > 1 {
            prop_assert!((moments.std() - std(&all, 1.0)).abs() < 1e-9);
        }
    }

    #[test]
    fn masked_whitening_is_whitening_of_what_is_kept(
        tokens in prop::collection::vec((-4.0f64..4.0, any::<bool>()), 2..40),
    ) {
        let mask: Vec<bool> = tokens.iter().map(|t| t.1).collect();
        let kept: Vec<f64> = tokens.iter().filter(|t| t.1).map(|t| t.0).collect();
        let mut values: Vec<f64> = tokens.iter().map(|t| t.0).collect();
        let result = whiten(&mut values, &mask, true);
        prop_assert_eq!(result.is_ok(), kept.len() > 1);
        if result.is_ok() {
            for (value, token) in values.iter().zip(&tokens) {
                let expected = whitened(token.0, &kept);
                prop_assert!((value - expected).abs() < 1e-4 * (1.0 + expected.abs()));
            }
        }
    }
}
