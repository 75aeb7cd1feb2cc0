//! Advantage estimators, and what stands around them.

use super::{close, pairs};
use crate::AlgoError;
use crate::advantage::{
    self, Component, Cpgd, CpgdWeight, Estimator, Gdpo, Gpg, Grpo, Missing, Opo, Outcomes, PassK,
    ReinforcePlusPlusBaseline, Singleton,
};
use crate::dynamic_sampling::{Spread, compat_chunks, resample};
use crate::group::Groups;
use crate::masked::{Moments, Whiten, whiten_samples};
use crate::response_mask::response_mask;
use crate::returns::restarting;
use crate::running_moments::RunningMoments;

#[test]
fn gpg_scales_up_for_scores_that_are_0() {
    // Two of three scores tell something: alpha = 3/2. Mean 1 in the first group:
    // 3/2 (2 - 1) / 2 = 0.75; the lone 4: 3/2 * 4 / 2 = 3.
    let groups = Groups::by_key(&[0, 0, 1]);
    let spec = Gpg { norm: 2.0, ..Gpg::default() };
    let a = advantage::gpg(&spec, &[2.0, 0.0, 4.0], &groups).unwrap();
    close(&a, &[0.75, -0.75, 3.0]);
    // No score tells anything: alpha = 3 / 1, but every difference is 0.
    assert_eq!(advantage::gpg(&spec, &[0.0; 3], &groups), Ok(vec![0.0; 3]));
    let refused = advantage::gpg(&Gpg { norm: 0.0, ..spec }, &[2.0, 0.0, 4.0], &groups);
    assert!(matches!(refused, Err(AlgoError::Parameter { parameter: "norm", .. })));
}

#[test]
fn pass_k_rewards_the_best_by_its_lead() {
    let spec = PassK { epsilon: 0.0, ..PassK::default() };
    // Best 3, second 2, unbiased variance (1 + 1 + 0) / 2 = 1. A tie leads by 0.
    let scores = [1.0, 3.0, 2.0, 7.0, 7.0, 0.0];
    let groups = Groups::adjacent(3, 6).unwrap();
    close(&advantage::pass_k(&spec, &scores, &groups).unwrap(), &[0.0, 1.0, 0.0, 0.0, 0.0, 0.0]);
    let plain = PassK { norm_by_std: false, ..spec };
    // 5 - 2, whichever place the best has.
    for (scores, at) in [([5.0, 2.0, 1.0], 0), ([2.0, 5.0, 1.0], 1), ([1.0, 2.0, 5.0], 2)] {
        let a = advantage::pass_k(&plain, &scores, &Groups::adjacent(3, 3).unwrap()).unwrap();
        assert_eq!((a[at], a.iter().sum::<f64>()), (3.0, 3.0));
    }
    let lone = advantage::pass_k(&spec, &[1.0], &Groups::by_key(&[0]));
    assert!(matches!(lone, Err(AlgoError::GroupOfOne { function: "pass_k", group: 0 })));
}

#[test]
fn opo_weighs_the_baseline_by_length() {
    // (3 * 1 + 1 * 4) / 4 = 1.75.
    let spec = Opo::default();
    let a = advantage::opo(&spec, &[1.0, 4.0], &[3, 1], &pairs(2)).unwrap();
    close(&a, &[-0.75, 2.25]);
    assert_eq!(advantage::opo(&spec, &[1.0, 4.0], &[0, 0], &pairs(2)), Ok(vec![0.0, 0.0]));
    assert_eq!(advantage::opo(&spec, &[4.0], &[2], &Groups::by_key(&[0])), Ok(vec![4.0]));
    assert!(advantage::opo(&spec, &[1.0, 4.0], &[3], &pairs(2)).is_err());
}

#[test]
fn reinforce_plus_plus_whitens_returns_over_the_batch() {
    let (rewards, mask) = ([1.0, 2.0, 0.0, 4.0], [true, true, true, false]);
    let (mut a, mut g) = ([0.0; 4], [0.0; 4]);
    advantage::reinforce_plus_plus(0.5, &rewards, &mask, 2, &mut a, &mut g).unwrap();
    // G01 = 2, G00 = 1 + 2/2; the 4 outside the mask shows itself but is not passed on.
    assert_eq!(g, [2.0, 2.0, 0.0, 4.0]);
    // Of 2, 2, 0: mean 4/3, unbiased variance (4/9 + 4/9 + 16/9) / 2 = 4/3.
    let unit = (4.0f64 / 3.0).sqrt();
    close(&a, &[2.0 / 3.0 / unit, 2.0 / 3.0 / unit, -4.0 / 3.0 / unit, 0.0]);
    let refused = advantage::reinforce_plus_plus(0.5, &rewards, &[false; 4], 2, &mut a, &mut g);
    assert!(matches!(refused, Err(AlgoError::TooFew { expected: 2, got: 0, .. })));
    assert!(advantage::reinforce_plus_plus(0.5, &rewards, &mask, 3, &mut a, &mut g).is_err());
}

#[test]
fn reinforce_plus_plus_baseline_whitens_what_is_left_of_the_mean() {
    let mask = [true, false, true, true];
    let spec = ReinforcePlusPlusBaseline::default();
    let a = advantage::reinforce_plus_plus_baseline(&spec, &[1.0, 3.0], &pairs(2), &mask, 2);
    // Of -1, 1, 1: mean 1/3, unbiased variance (16/9 + 4/9 + 4/9) / 2 = 4/3.
    let unit = (4.0f64 / 3.0).sqrt();
    close(&a.unwrap(), &[-4.0 / 3.0 / unit, 0.0, 2.0 / 3.0 / unit, 2.0 / 3.0 / unit]);
    // The same from lengths alone.
    let groups = pairs(2);
    let outcomes = Outcomes { lengths_tokens: &[1, 2], ..Outcomes::of(&[1.0, 3.0], &groups) };
    let a = Estimator::ReinforcePlusPlusBaseline(spec).advantages(&outcomes).unwrap();
    close(&a, &[-4.0 / 3.0 / unit, 2.0 / 3.0 / unit]);
    let alone = Groups::by_key(&[0, 1]);
    let strict = ReinforcePlusPlusBaseline { singleton: Singleton::Refuse };
    let refused = advantage::reinforce_plus_plus_baseline(&strict, &[1.0, 3.0], &alone, &mask, 2);
    assert!(matches!(refused, Err(AlgoError::GroupOfOne { group: 0, .. })));
}

#[test]
fn remax_takes_the_greedy_reward_off_each_token() {
    let (mut a, mut g) = ([0.0; 3], [0.0; 3]);
    // G = 1 + 2, 2, 0; less 1 where the mask is.
    advantage::remax(&[1.0, 2.0, 9.0], 1.0, &[true, true, false], &mut a, &mut g).unwrap();
    assert_eq!((a, g), ([2.0, 1.0, 0.0], [3.0, 2.0, 0.0]));
    assert!(advantage::remax(&[1.0], f64::NAN, &[true], &mut [0.0], &mut [0.0]).is_err());
}

#[test]
fn cpgd_scores_against_the_batch() {
    let spec = Cpgd { epsilon: 0.0, ..Cpgd::default() };
    // mean 2, population variance 1.
    assert_eq!(advantage::cpgd(&spec, &[1.0, 3.0]), Ok(vec![-1.0, 1.0]));
    let clip = Cpgd { weight: CpgdWeight::CompatClipFilter, ..spec };
    // Two samples: times 2. Four: times 3, not 4.
    assert_eq!(advantage::cpgd(&clip, &[1.0, 3.0]), Ok(vec![-2.0, 2.0]));
    assert_eq!(advantage::cpgd(&clip, &[1.0, 3.0, 1.0, 3.0]), Ok(vec![-3.0, 3.0, -3.0, 3.0]));
    let centre: CpgdWeight = "no_such_weight".parse().unwrap();
    assert_eq!(centre, CpgdWeight::Centre);
    let centre = Cpgd { weight: centre, ..spec };
    assert_eq!(advantage::cpgd(&centre, &[1.0, 3.0]), Ok(vec![-1.0, 1.0]));
    assert_eq!(advantage::cpgd(&spec, &[0.1; 3]), Ok(vec![0.0; 3]));
    assert!(matches!(advantage::cpgd(&spec, &[]), Err(AlgoError::Empty { .. })));
}

#[test]
fn gdpo_normalises_each_component_then_their_sum() {
    let half = 0.5f64.sqrt();
    let spec = Gdpo { epsilon: 0.0, ..Gdpo::default() };
    let components = [
        // mean 1, unbiased variance 2: ∓1/sqrt 2.
        Component { weight: 2.0, scores: &[0.0, 2.0] },
        // mean 1/2, unbiased variance 1/2: ±1/sqrt 2.
        Component { weight: 1.0, scores: &[1.0, 0.0] },
    ];
    let got = advantage::gdpo(&spec, &components, &pairs(2)).unwrap();
    // -2 + 1, 2 - 1, in units of 1/sqrt 2; their unbiased variance is 1/2 + 1/2.
    close(&got.sums, &[-half, half]);
    close(&got.advantages, &[-half, half]);
    // A score that is missing counts 0 only if one asks for it.
    let holed = [Component { weight: 1.0, scores: &[f64::NAN, 2.0] }];
    assert!(matches!(
        advantage::gdpo(&spec, &holed, &pairs(2)),
        Err(AlgoError::NonFinite { index: 0, .. })
    ));
    let compat = Gdpo { missing: Missing::CompatZero, ..spec };
    close(&advantage::gdpo(&compat, &holed, &pairs(2)).unwrap().sums, &[-half, half]);
    // An infinite score is the largest number, whose square overflows: it adds nothing.
    let huge = [Component { weight: 1.0, scores: &[f64::INFINITY, 2.0] }];
    assert_eq!(advantage::gdpo(&compat, &huge, &pairs(2)).unwrap().sums, [0.0, 0.0]);
    // Groups of one add nothing; a batch of one has no spread to divide by.
    let lone = advantage::gdpo(&spec, &components, &Groups::by_key(&[0, 1])).unwrap();
    assert_eq!(lone.advantages, [0.0, 0.0]);
    assert!(matches!(
        advantage::gdpo(&spec, &[Component { weight: 1.0, scores: &[1.0] }], &Groups::by_key(&[0])),
        Err(AlgoError::TooFew { expected: 2, got: 1, .. })
    ));
    assert!(matches!(
        advantage::gdpo(&spec, &[], &pairs(2)),
        Err(AlgoError::Empty { what: "components", .. })
    ));
}

#[test]
fn gdpo_of_tokens_whitens_over_tokens() {
    let components = [
        Component { weight: 1.0, scores: &[0.0, 2.0] },
        Component { weight: 1.0, scores: &[0.0, 2.0] },
    ];
    let grpo = Grpo { epsilon: 0.0, ..Grpo::default() };
    let mask = [true, false, true, true];
    let a = advantage::gdpo_tokens(&grpo, &components, &pairs(2), &mask, 2).unwrap();
    // ∓2/sqrt 2 on 1 and 2 tokens, u = sqrt 2: mean u/3, unbiased variance
    // (16/9 + 4/9 + 4/9) u^2 / 2 = 8/3.
    let (u, unit) = (2f64.sqrt(), (8.0f64 / 3.0).sqrt());
    close(&a, &[-4.0 / 3.0 * u / unit, 0.0, 2.0 / 3.0 * u / unit, 2.0 / 3.0 * u / unit]);
}

#[test]
fn vectorised_grpo_floors_the_variance() {
    // Unbiased variance 2 (0.0005)^2 = 5e-7, raised to 1e-6: 0.0005 / (0.001 + 1e-6).
    let a = advantage::compat_grpo_vectorized(true, 1e-6, &[0.0, 0.001], &pairs(2)).unwrap();
    assert!((a[1] - 0.0005 / 0.001_001).abs() < 1e-6 && (a[0] + a[1]).abs() < 1e-6, "{a:?}");
    let lone =
        advantage::compat_grpo_vectorized(true, 1e-6, &[3.0], &Groups::by_key(&[0])).unwrap();
    // 3 / (1 + 1e-6).
    assert!((lone[0] - 3.0 / 1.000_001).abs() < 1e-6);
}

#[test]
fn estimators_that_need_more_than_rewards_say_so() {
    let groups = pairs(2);
    let bare = Outcomes::of(&[1.0, 2.0], &groups);
    for (name, what) in [
        ("opo", "lengths_tokens has 0 entries, expected 2"),
        ("reinforce_plus_plus", "lengths_tokens has 0 entries, expected 2"),
        ("gdpo", "components is empty"),
    ] {
        let estimator: Estimator = name.parse().unwrap();
        let error = estimator.advantages(&bare).unwrap_err().to_string();
        assert!(error.contains(what), "{name}: {error}");
    }
    let compares = |name: &str| name.parse::<Estimator>().unwrap().compares_within_group();
    assert!(compares("gdpo") && compares("opo"));
    assert!(!compares("reinforce") && !compares("reinforce_plus_plus") && !compares("cpgd"));
    let ignores = |name: &str| name.parse::<Estimator>().unwrap().ignores_equal_groups();
    assert!(ignores("grpo_passk") && !ignores("gdpo") && !ignores("reinforce_plus_plus_baseline"));
}

#[test]
fn returns_may_start_anew_before_a_gap() {
    let mut g = [0.0; 4];
    // gamma 1/2: G3 = 8, shown by G2 = 2 + 4 outside the mask but not passed on; G1 = 4,
    // G0 = 0 + 2.
    restarting(&[0.0, 4.0, 2.0, 8.0], &[true, true, false, true], 0.5, &mut g).unwrap();
    assert_eq!(g, [2.0, 4.0, 6.0, 8.0]);
}

#[test]
fn running_moments_are_those_of_all_batches() {
    let mut moments = RunningMoments::default();
    assert_eq!((moments.mean(), moments.std(), moments.population_variance()), (0.0, 1.0, 1.0));
    // Of 1, 3: mean 2, unbiased variance 2.
    let batch = moments.update(&[1.0, 3.0]).unwrap();
    close(&[batch.mean, batch.std], &[2.0, 2f64.sqrt()]);
    // Of 1, 3, 5: mean 3, squares 4 + 0 + 4.
    let batch = moments.update(&[5.0]).unwrap();
    assert_eq!((batch.mean, batch.std), (5.0, 0.0));
    close(&[moments.mean(), moments.population_variance(), moments.std()], &[3.0, 8.0 / 3.0, 2.0]);
    let mut rewards = [5.0, 3.0];
    moments.normalise(&mut rewards, true).unwrap();
    assert_eq!(rewards, [1.0, 0.0]);
    let mut rewards = [5.0, 3.0];
    moments.normalise(&mut rewards, false).unwrap();
    assert_eq!(rewards, [2.5, 1.5]);
    let text = serde_json::to_string(&moments).unwrap();
    assert_eq!(serde_json::from_str::<RunningMoments>(&text).unwrap(), moments);
    let before = moments;
    assert!(matches!(moments.update(&[]), Err(AlgoError::Empty { .. })));
    assert!(moments.update(&[f64::INFINITY]).is_err());
    assert_eq!(moments, before);
}

#[test]
fn running_moments_refuse_to_divide_by_no_spread() {
    let mut moments = RunningMoments::default();
    moments.update(&[0.7]).unwrap();
    assert_eq!(moments.std(), f64::INFINITY);
    let early = moments.normalise(&mut [1.0], false);
    assert!(matches!(early, Err(AlgoError::TooFew { expected: 2, got: 1, .. })));
    // Means of three 0.7 are rounded, so the moments do not see them as equal to the last bit.
    moments.update(&[0.7, 0.7, 0.7]).unwrap();
    let refused = moments.normalise(&mut [1.0], false).unwrap_err();
    assert!(matches!(refused, AlgoError::NoSpread { .. }), "{refused}");
    assert!(refused.to_string().ends_with("expected some spread to divide by"), "{refused}");
}

#[test]
fn a_response_ends_with_its_first_end_token() {
    let mask = response_mask(&[5, 1, 7, 1], &[1]);
    assert_eq!(mask, [true, true, false, false]);
    assert_eq!(response_mask(&[5, 2, 7], &[1, 2]), [true, true, false]);
    assert_eq!(response_mask(&[5, 2], &[]), [true, true]);
    assert_eq!(response_mask(&[], &[1]), Vec::<bool>::new());
}

#[test]
fn resampling_keeps_groups_that_differ_or_stand_between_0_and_1() {
    let groups = Groups::by_key(&["a", "a", "b", "b", "c", "c", "d", "e", "e"]);
    let metrics = [1.0, 1.0, 0.0, 1.0, 0.5, 0.5, 0.0, 2.0, 2.0];
    let kept = resample(Spread::Exact, &metrics, &groups).unwrap();
    assert_eq!(kept, [false, true, true, true, false]);
    // 1.4, 1.4, 1.4 has a mean of 1.3999999999999997 and so a deviation above 0 in floating point.
    let three = Groups::adjacent(3, 3).unwrap();
    assert_eq!(resample(Spread::Exact, &[1.4; 3], &three), Ok(vec![false]));
    assert_eq!(resample(Spread::CompatRounded, &[1.4; 3], &three), Ok(vec![true]));
    let no_number = [f64::NAN, 1.0, f64::INFINITY];
    assert_eq!(resample(Spread::Exact, &no_number, &three), Ok(vec![false]));
    assert!(resample(Spread::Exact, &metrics[..8], &groups).is_err());
}

#[test]
fn lightrft_tests_chunks_of_experiences() {
    // 4 samples a prompt in micro batches of 2: two experiences of 2 rows are one chunk.
    let chunks = compat_chunks(4, 2, 2, 8).unwrap();
    assert_eq!(chunks, Groups::adjacent(4, 8).unwrap());
    // 6 / 4 = 1 experience of 4 rows: chunks cut across the prompts, the last one is shorter.
    let chunks = compat_chunks(6, 4, 4, 6).unwrap();
    assert_eq!(chunks, Groups::by_key(&[0, 0, 0, 0, 1, 1]));
    assert!(matches!(compat_chunks(2, 4, 4, 8), Err(AlgoError::Parameter { .. })));
}

#[test]
fn whitening_of_samples_counts_their_tokens() {
    // 0 on 1 token, 3 on 2: mean 2, unbiased variance (4 + 1 + 1) / 2 = 3.
    let mut values = [0.0, 3.0];
    whiten_samples(&mut values, &[1, 2]).unwrap();
    close(&values, &[-2.0 / 3f64.sqrt(), 1.0 / 3f64.sqrt()]);
    let refused = whiten_samples(&mut [1.0, 2.0], &[1, 0]);
    assert!(matches!(refused, Err(AlgoError::TooFew { expected: 2, got: 1, .. })));
    assert!(whiten_samples(&mut [1.0], &[1, 2]).is_err());
    // With verl's count a mask that keeps nothing has mean 0 over 1e-8.
    let none = Moments::with_count_epsilon(&[1.0], &[false], 1e-8).unwrap();
    assert_eq!((none.count, none.mean, none.population_variance), (0, 0.0, 0.0));
    let exact = Whiten { count_epsilon: 0.0, ..Whiten::default() };
    assert!(matches!(exact.apply(&mut [1.0], &[false]), Err(AlgoError::Empty { .. })));
}

#[test]
fn equal_values_have_variance_0_exactly() {
    // 0.7 + 0.7 + 0.7 = 2.0999999999999996, and a third of it is not 0.7.
    assert_ne!((0.7 + 0.7 + 0.7) / 3.0, 0.7);
    let moments = Moments::of(&[0.7; 3], &[true; 3]).unwrap();
    assert_eq!(moments.population_variance, 0.0);
    // Squares that overflow are an infinite variance, not none.
    let moments = Moments::of(&[1e200, -1e200], &[true; 2]).unwrap();
    assert_eq!(moments.population_variance, f64::INFINITY);
}
