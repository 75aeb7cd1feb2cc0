//! Each equation on numbers small enough to check by hand. The comment above an assertion is the
//! hand calculation.

mod advantage_family;
mod answer;
mod constraint;
mod judge;
mod metric;
mod rank;
mod safe_reward;
mod score_model;
mod turn;
mod verdict;

use crate::AlgoError;
use crate::advantage::{
    self, CrossBatch, Estimator, Gae, Grpo, Outcomes, Outside, ReinforceBaseline, Rloo, Singleton,
};
use crate::group::Groups;
use crate::kl::{self, Clamps, Kind};
use crate::kl_controller::KlController;
use crate::masked::{Moments, standardize, whiten};
use crate::mix::{Mix, MixError, UnknownLabel};
use crate::overlong::Overlong;
use crate::statistics::{Summary, paired_difference};
use crate::token_reward::{TokenReward, penalized_scores, token_rewards};
use crate::{dynamic_sampling, returns};

#[track_caller]
fn close(got: &[f64], expected: &[f64]) {
    assert_eq!(got.len(), expected.len(), "{got:?} vs {expected:?}");
    for (g, e) in got.iter().zip(expected) {
        assert!((g - e).abs() < 1e-8, "{got:?} vs {expected:?}");
    }
}

fn pairs(samples: usize) -> Groups {
    Groups::adjacent(2, samples).unwrap()
}

#[test]
fn groups_keep_first_appearance_and_adjacent_ones_must_divide() {
    let groups = Groups::by_key(&["b", "a", "b"]);
    let members: Vec<&[usize]> = groups.iter().collect();
    assert_eq!(members, [&[0, 2][..], &[1]]);
    assert!(matches!(Groups::adjacent(2, 5), Err(AlgoError::Length { expected: 4, got: 5, .. })));
    assert!(matches!(Groups::adjacent(0, 5), Err(AlgoError::Parameter { .. })));
}

#[test]
fn group_norm_is_the_z_score_within_the_group() {
    // mean 2, unbiased variance ((1-2)^2 + (3-2)^2) / 1 = 2: ∓1/sqrt 2. The second group has no
    // variance.
    let a = advantage::group_norm(&[1.0, 3.0, 5.0, 5.0], &pairs(4)).unwrap();
    close(&a, &[-0.5f64.sqrt(), 0.5f64.sqrt(), 0.0, 0.0]);
}

#[test]
fn grpo_divides_by_std_or_not_and_keeps_a_lone_score() {
    let groups = Groups::by_key(&[0, 0, 0, 1]);
    // mean 2, unbiased variance (1 + 0 + 1) / 2 = 1.
    let rewards = [1.0, 2.0, 3.0, 0.7];
    let a = advantage::grpo(&Grpo { epsilon: 0.0, ..Grpo::default() }, &rewards, &groups).unwrap();
    close(&a, &[-1.0, 0.0, 1.0, 0.7]);
    let plain = Grpo { norm_by_std: false, ..Grpo::default() };
    close(&advantage::grpo(&plain, &rewards, &groups).unwrap(), &[-1.0, 0.0, 1.0, 0.7]);
    let zero = Grpo { singleton: Singleton::Zero, ..Grpo::default() };
    assert_eq!(advantage::grpo(&zero, &rewards, &groups).unwrap()[3], 0.0);
    let refuse = Grpo { singleton: Singleton::Refuse, ..Grpo::default() };
    assert_eq!(
        advantage::grpo(&refuse, &rewards, &groups).unwrap_err().to_string(),
        "grpo: group 1 has one sample, expected at least 2"
    );
    // No variance and no epsilon: 0, not 0/0.
    let constant =
        advantage::grpo(&Grpo { epsilon: 0.0, ..Grpo::default() }, &[4.0, 4.0], &pairs(2));
    close(&constant.unwrap(), &[0.0, 0.0]);
}

#[test]
fn rloo_compares_with_the_mean_of_the_others() {
    // 1 - (2+6)/2 = -3; 2 - (1+6)/2 = -1.5; 6 - (1+2)/2 = 4.5.
    let groups = Groups::adjacent(3, 3).unwrap();
    let a = advantage::rloo(&Rloo::default(), &[1.0, 2.0, 6.0], &groups).unwrap();
    close(&a, &[-3.0, -1.5, 4.5]);
}

#[test]
fn reinforce_baseline_takes_the_groups_mean_off() {
    let spec = ReinforceBaseline::default();
    let groups = Groups::by_key(&[0, 0, 0, 1]);
    // mean 3 of the first group.
    let rewards = [1.0, 2.0, 6.0, 5.0];
    let refused = advantage::reinforce_baseline(&spec, &rewards, &groups).unwrap_err();
    assert!(matches!(refused, AlgoError::GroupOfOne { group: 1, .. }));
    let zero = ReinforceBaseline { singleton: Singleton::Zero };
    let a = advantage::reinforce_baseline(&zero, &rewards, &groups).unwrap();
    close(&a, &[-2.0, -1.0, 3.0, 0.0]);
}

#[test]
fn estimators_are_chosen_by_name_and_refuse_what_is_no_number() {
    let rewards = [1.0, f64::NAN];
    for name in ["group_norm", "grpo", "rloo", "reinforce_baseline", "reinforce"] {
        let estimator: Estimator = name.parse().unwrap();
        let refused = estimator.advantages(&Outcomes::of(&rewards, &pairs(2))).unwrap_err();
        assert!(matches!(refused, AlgoError::NonFinite { index: 1, .. }), "{name}: {refused}");
        assert!(estimator.advantages(&Outcomes::of(&[1.0], &pairs(2))).is_err(), "{name}");
    }
    assert_eq!(
        Estimator::Reinforce.advantages(&Outcomes::of(&[2.0, 1.0], &pairs(2))),
        Ok(vec![2.0, 1.0])
    );
    assert!(matches!("reinforce++".parse::<Estimator>(), Err(AlgoError::UnknownName { .. })));
}

#[test]
fn returns_are_discounted_sums_of_masked_rewards() {
    // gamma 1/2, the 9 outside the mask counts 0: G3 = 4, G2 = 0 + 2, G1 = 2 + 1, G0 = 1 + 1.5.
    let mut g = [0.0; 4];
    returns::discounted(&[1.0, 2.0, 9.0, 4.0], &[true, true, false, true], 0.5, &mut g).unwrap();
    close(&g, &[2.5, 3.0, 2.0, 4.0]);
    let mut none: [f32; 0] = [];
    returns::discounted(&[], &[], 1.0, &mut none).unwrap();
    let refused = returns::discounted(&[1.0], &[true], 1.5, &mut [0.0]).unwrap_err();
    assert_eq!(refused.to_string(), "returns::discounted: gamma = 1.5, expected in [0, 1]");
}

#[test]
fn gae_sums_discounted_temporal_differences() {
    // gamma 1, lambda 1/2. t2 is padding. delta1 = 1 + 0 - 0.5 = 0.5; delta0 = 0 + 0.5 - 0.25 =
    // 0.25; A1 = 0.5, A0 = 0.25 + 0.5 * 0.5 = 0.5; G = A + V.
    let spec = Gae { gamma: 1.0, lambda: 0.5, outside: Outside::Zero };
    let (mut a, mut g) = ([0.0; 3], [0.0; 3]);
    let mask = [true, true, false];
    advantage::gae(&spec, &[0.0, 1.0, 7.0], &[0.25, 0.5, 9.0], &mask, &mut a, &mut g).unwrap();
    close(&a, &[0.5, 0.5, 0.0]);
    close(&g, &[0.75, 1.0, 0.0]);
    // A hole: its token is passed over, so t0 sees V of t2 next. delta2 = 1 - 0.5; A2 = 0.5;
    // delta0 = 0 + 0.5 - 0.25, A0 = 0.25 + 0.25.
    let spec = Gae { outside: Outside::Skip, ..spec };
    let mask = [true, false, true];
    advantage::gae(&spec, &[0.0, 7.0, 1.0], &[0.25, 9.0, 0.5], &mask, &mut a, &mut g).unwrap();
    close(&[a[0], a[2]], &[0.5, 0.5]);
    close(&[g[0], g[2]], &[0.75, 1.0]);
}

#[test]
fn masked_moments_see_only_what_the_mask_keeps() {
    // 1 and 3: mean 2, population variance 1, unbiased 2.
    let m = Moments::of(&[1.0, f64::NAN, 3.0], &[true, false, true]).unwrap();
    close(&[m.mean, m.population_variance, m.unbiased_variance().unwrap()], &[2.0, 1.0, 2.0]);
    assert!(matches!(Moments::of(&[1.0], &[false]), Err(AlgoError::Empty { .. })));
    let one = Moments::of(&[1.0f32], &[true]).unwrap();
    assert!(matches!(one.unbiased_variance(), Err(AlgoError::TooFew { expected: 2, got: 1, .. })));
    let refused = Moments::of(&[1.0, f64::INFINITY], &[true, true]).unwrap_err();
    assert!(matches!(refused, AlgoError::NonFinite { index: 1, .. }));
}

#[test]
fn whitening_gives_mean_0_and_variance_1_or_keeps_the_mean() {
    let mut values = [1.0, 3.0];
    whiten(&mut values, &[true, true], true).unwrap();
    close(&values, &[-0.5f64.sqrt(), 0.5f64.sqrt()]);
    let mut values = [1.0, 3.0];
    whiten(&mut values, &[true, true], false).unwrap();
    assert!((values[0] - (2.0 - 0.5f64.sqrt())).abs() < 1e-7);
    let mut constant = [2.0, 2.0];
    standardize(&mut constant, &[true, true], 0.0).unwrap();
    assert_eq!(constant, [0.0, 0.0]);
    // Population variance 1 here, so the z-score is ∓1.
    let mut values = [1.0, 3.0];
    advantage::cross_batch(&CrossBatch::default(), &mut values, &[true, true]).unwrap();
    close(&values, &[-1.0, 1.0]);
    let centre = CrossBatch { divide_by_std: false };
    let mut values = [1.0, 3.0, 7.0];
    advantage::cross_batch(&centre, &mut values, &[true, true, false]).unwrap();
    close(&values, &[-1.0, 1.0, 5.0]);
}

#[test]
fn clipping_tells_the_share_that_was_outside() {
    let mut a = [-2.0f32, 0.5, 1.0, 3.0];
    assert_eq!(advantage::clip(&mut a, 1.0), Ok(0.5));
    assert_eq!(a, [-1.0, 0.5, 1.0, 1.0]);
    assert!(advantage::clip(&mut a, 0.0).is_err());
    assert_eq!(advantage::broadcast(2.0, &[true, false]), [2.0, 0.0]);
}

#[test]
fn kl_estimates_of_one_token() {
    // d = ln 2: k1 = ln 2, k2 = (ln 2)^2 / 2, k3 = 1/2 - 1 + ln 2.
    let ln2 = 2f64.ln();
    let of = |kind: Kind, clamps| kind.estimate(clamps, 0.0, -ln2);
    close(
        &[of(Kind::K1, Clamps::Off), of(Kind::K2, Clamps::Off), of(Kind::K3, Clamps::Off)],
        &[ln2, ln2 * ln2 / 2.0, ln2 - 0.5],
    );
    assert_eq!(Kind::Abs.estimate(Clamps::Off, -3.0, -1.0), 2.0);
    // d = -30: exp(30) without clamps, 10 with them.
    assert!(Kind::K3.estimate(Clamps::Off, -30.0, 0.0) > 1e12);
    assert_eq!(Kind::K3.estimate(Clamps::Verl, -30.0, 0.0), 10.0);
    let masked =
        kl::of_tokens(Kind::K1, Clamps::Off, &[1.0, f64::NAN], &[0.5, 0.0], &[true, false]);
    assert_eq!(masked.unwrap(), [0.5, 0.0]);
    let bad = kl::of_tokens(Kind::K3, Clamps::Off, &[-1e4f32], &[0.0], &[true]);
    assert!(matches!(bad, Err(AlgoError::NonFinite { .. })));
    assert_eq!("low_var_kl".parse::<Kind>(), Ok(Kind::K3));
    assert!("full".parse::<Kind>().is_err());
}

#[test]
fn the_adaptive_controller_follows_the_kl() {
    // kl / target - 1 = 1, clipped to 0.2; 0.2 * 50 / 100 = 0.1: 0.5 * 1.1.
    let mut c = KlController::Adaptive { coef: 0.5, target: 1.0, horizon: 100.0 };
    c.update(2.0, 50).unwrap();
    close(&[c.coef()], &[0.55]);
    assert!(c.update(f64::NAN, 50).is_err());
    close(&[c.coef()], &[0.55]);
    let mut fixed = KlController::Fixed { coef: 0.5 };
    fixed.update(100.0, 50).unwrap();
    assert_eq!(fixed.coef(), 0.5);
    assert!(KlController::Adaptive { coef: 0.5, target: 0.0, horizon: 1.0 }.validate().is_err());
    let text = serde_json::to_string(&c).unwrap();
    assert_eq!(serde_json::from_str::<KlController>(&text).unwrap(), c);
}

#[test]
fn the_reward_stands_on_the_last_kept_token_and_kl_on_all() {
    let spec = TokenReward { kl_coef: 0.5, reward_clip: Some((-2.0, 1.0)) };
    // Reward 3 is clipped to 1; -0.5 * kl on every token.
    let tokens = token_rewards(&spec, 3.0, &[2.0, 4.0, 0.0], &[true, true, false]).unwrap();
    assert_eq!(tokens, [-1.0, -1.0, 0.0]);
    // -3 is clipped to -2.
    assert_eq!(token_rewards(&spec, -3.0, &[0.0], &[true]).unwrap(), [-2.0]);
    let reversed = TokenReward { reward_clip: Some((1.0, -1.0)), ..spec };
    assert!(token_rewards(&reversed, 3.0, &[0.0], &[true]).is_err());
    let off = TokenReward { kl_coef: -1.0, reward_clip: None };
    assert_eq!(token_rewards(&off, 3.0, &[2.0, 4.0], &[false, false]).unwrap(), [0.0, 3.0]);
    assert_eq!(token_rewards(&off, 3.0, &[], &[]).unwrap(), Vec::<f64>::new());
    assert!(token_rewards(&off, f64::NAN, &[1.0], &[true]).is_err());
    let scores = penalized_scores(&[0.0, 1.0], &[2.0, 9.0], &[true, false], 0.1).unwrap();
    close(&scores, &[-0.2, 1.0]);
}

#[test]
fn the_overlong_penalty_falls_within_the_buffer() {
    let spec = Overlong { max_new_tokens: 100, buffer_tokens: 20, factor: 2.0 };
    // 90 tokens: (90 - 80) / 20 * 2 = 1.
    let of = |n| spec.penalty(n).unwrap();
    assert_eq!([of(80), of(90), of(100), of(120)], [0.0, -1.0, -2.0, -4.0]);
    assert!(Overlong { buffer_tokens: 0, ..spec }.penalty(1).is_err());
    assert!(Overlong { buffer_tokens: 101, ..spec }.penalty(1).is_err());
}

#[test]
fn dynamic_sampling_drops_groups_that_are_all_0_or_all_1() {
    let rewards = [0.0, 0.0, 1.0, 1.0, 0.5, 0.5, 1.0, 0.0];
    let kept = dynamic_sampling::keep(&rewards, &pairs(8)).unwrap();
    assert_eq!(kept, [false, false, false, false, true, true, true, true]);
}

#[test]
fn a_mix_is_the_weighted_sum_of_the_labels_components() {
    let weights =
        |terms: &[(&str, f64)]| terms.iter().map(|(name, w)| ((*name).to_owned(), *w)).collect();
    let mut mix = Mix {
        labels: [("safety".to_owned(), weights(&[("model", 2.0)]))].into(),
        common: weights(&[("format", 0.5)]),
        ..Mix::default()
    };
    let score = |name: &str| Ok(if name == "model" { 0.25 } else { 1.0 });
    let mixed = mix.reward("safety", score).unwrap();
    assert_eq!(mixed.total, 2.0 * 0.25 + 0.5 * 1.0);
    assert_eq!(mixed.scores["model"], 0.25);
    assert!(matches!(mix.reward("poetry", score), Err(MixError::UnknownLabel { .. })));
    mix.unknown_label = UnknownLabel::CommonOnly;
    assert_eq!(mix.reward("poetry", score).unwrap().total, 0.5);
    mix.without_common.insert("safety".to_owned());
    assert_eq!(mix.reward("safety", score).unwrap().total, 0.5);
    let failed = mix.reward("safety", |_| Err("timed out after 5 s".to_owned())).unwrap_err();
    assert_eq!(
        failed.to_string(),
        "component \"model\" of label \"safety\" gave no score: timed out after 5 s"
    );
    assert!(matches!(mix.reward("safety", |_| Ok(f64::NAN)), Err(MixError::NonFinite { .. })));
}

#[test]
fn a_summary_has_the_standard_error_of_the_mean() {
    // mean 2, variance (1 + 1) / 2 = 1, se sqrt(1/3).
    let s = Summary::of(&[1.0, 2.0, 3.0]).unwrap();
    close(&[s.mean, s.variance, s.standard_error], &[2.0, 1.0, (1.0f64 / 3.0).sqrt()]);
    assert_eq!(Summary::of(&[1.0]).unwrap().standard_error, f64::INFINITY);
    assert!(matches!(Summary::of(&[]), Err(AlgoError::Empty { .. })));
    // Differences 1, 1: the means differ surely although the items are far apart.
    let d = paired_difference(&[0.0, 100.0], &[1.0, 101.0]).unwrap();
    assert_eq!((d.mean, d.standard_error, d.n), (1.0, 0.0, 2));
    assert!(paired_difference(&[0.0], &[]).is_err());
}
