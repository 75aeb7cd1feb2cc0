//! Constraints by hand.

use super::close;
use crate::AlgoError;
use crate::constraint::{
    AugmentedCost, ConfidenceBound, CostWindow, Mixing, Multiplier, MultiplierSpec, NoSpread,
    RunningBaseline, SafetyTest, Verdict, penalized_rewards, student_t_quantile,
};

#[test]
fn a_multiplier_climbs_by_the_violation_times_itself() {
    let spec = MultiplierSpec {
        initial: 2.0,
        learning_rate: 0.5,
        max: Some(6.0),
        delay_steps: 1,
        threshold: -1.0,
    };
    let mut multiplier = Multiplier::new(spec).unwrap();
    // Step 0 comes before the delay of 1.
    multiplier.update(0, 5.0).unwrap();
    close(&[multiplier.lambda()], &[2.0]);
    // Loss -(0.5 - -1) 2 = -3; log lambda = ln 2 + 0.5 * 1.5 * 2 = ln 2 + 1.5, lambda = 2 e^1.5 =
    // 8.96, held at 6.
    close(&[multiplier.loss(0.5)], &[-3.0]);
    multiplier.update(1, 0.5).unwrap();
    close(&[multiplier.lambda(), multiplier.log_lambda()], &[6.0, 6.0f64.ln()]);
    // (-2 - -1) = -1: ln 6 - 0.5 * 1 * 6 = ln 6 - 3.
    multiplier.update(2, -2.0).unwrap();
    close(&[multiplier.lambda()], &[6.0 * (-3.0f64).exp()]);
    let resumed = Multiplier::resumed(spec, multiplier.log_lambda()).unwrap();
    assert_eq!(resumed, multiplier);
}

#[test]
fn a_multiplier_of_0_stays_and_an_infinite_cost_goes_to_the_bound() {
    let off = MultiplierSpec { initial: 0.0, ..MultiplierSpec::default() };
    let mut off = Multiplier::new(off).unwrap();
    off.update(0, 3.0).unwrap();
    assert_eq!(off.lambda(), 0.0);
    let bounded = MultiplierSpec { max: Some(5.0), ..MultiplierSpec::default() };
    let mut bounded = Multiplier::new(bounded).unwrap();
    bounded.update(0, f64::INFINITY).unwrap();
    close(&[bounded.lambda()], &[5.0]);
    let before = bounded;
    assert!(matches!(bounded.update(1, f64::NAN), Err(AlgoError::NonFinite { .. })));
    assert_eq!(bounded, before);
    for spec in [
        MultiplierSpec { initial: -1.0, ..MultiplierSpec::default() },
        MultiplierSpec { max: Some(0.0), ..MultiplierSpec::default() },
        MultiplierSpec { threshold: f64::NAN, ..MultiplierSpec::default() },
    ] {
        assert!(matches!(Multiplier::new(spec), Err(AlgoError::Parameter { .. })), "{spec:?}");
    }
}

#[test]
fn a_cost_window_keeps_the_latest() {
    let mut window = CostWindow::new(3).unwrap();
    assert!(matches!(window.mean(), Err(AlgoError::Empty { .. })));
    window.extend(&[1.0, 2.0]).unwrap();
    close(&[window.mean().unwrap()], &[1.5]);
    // 1 and 2 leave one after the other: 2, 6, 7, then 6, 7, 8: mean 7.
    window.extend(&[6.0, 7.0]).unwrap();
    assert_eq!(window.to_vec(), [2.0, 6.0, 7.0]);
    window.extend(&[8.0]).unwrap();
    close(&[window.mean().unwrap()], &[7.0]);
    // Only the last three of a long rollout.
    window.extend(&[0.0, 1.0, 2.0, 3.0, 4.0]).unwrap();
    assert_eq!((window.to_vec(), window.len()), (vec![2.0, 3.0, 4.0], 3));
    assert!(window.extend(&[f64::NAN]).is_err());
    assert_eq!(window.to_vec(), [2.0, 3.0, 4.0]);
    assert!(matches!(CostWindow::new(0), Err(AlgoError::Parameter { .. })));
}

#[test]
fn student_t_has_closed_forms_for_one_and_two_degrees_of_freedom() {
    // v = 1 is Cauchy: tan(pi (p - 1/2)); p = 3/4 gives tan(pi/4) = 1.
    close(&[student_t_quantile(0.75, 1.0).unwrap()], &[1.0]);
    // v = 2: (2p - 1) sqrt(2 / (4 p (1 - p))); p = 0.9: 0.8 sqrt(2 / 0.36) = 1.8856180831641267.
    close(&[student_t_quantile(0.9, 2.0).unwrap()], &[1.885_618_083_164_126_7]);
    close(&[student_t_quantile(0.1, 2.0).unwrap()], &[-1.885_618_083_164_126_7]);
    // Infinitely many degrees of freedom are the normal distribution: 1.6448536269514722 at 0.95.
    close(&[student_t_quantile(0.95, f64::INFINITY).unwrap()], &[1.644_853_626_951_472_2]);
    assert_eq!(student_t_quantile(0.5, 7.0).unwrap(), 0.0);
    assert_eq!(student_t_quantile(1.0, 7.0).unwrap(), f64::INFINITY);
    assert_eq!(student_t_quantile(0.0, 7.0).unwrap(), f64::NEG_INFINITY);
    for (p, df) in [(1.1, 3.0), (-0.1, 3.0), (0.5, 0.0), (0.5, -1.0), (f64::NAN, 1.0)] {
        let refused = student_t_quantile(p, df);
        assert!(matches!(refused, Err(AlgoError::Parameter { .. })), "{p} {df}");
    }
}

#[test]
fn student_t_agrees_with_an_inversion_of_the_incomplete_beta_function_in_40_digits() {
    // From mpmath: betainc solved for t. Around each border between the ways to compute it.
    for (p, df, expected) in [
        (0.500_000_001, 1.0, 3.141_592_564_739_485e-9),
        (0.999_999_999, 1.0, 318_309_895.186_209_3),
        (1e-100, 7.0, -387_862_584_049_539.9),
        (0.501, 7.0, 0.002_597_463_613_662_207_4),
        (0.999, 0.5, 102_849.115_630_175_37),
        (0.9, 15.0, 1.340_605_607_850_455_8),
        (0.74, 49.0, 0.648_015_514_946_773_6),
        (0.501, 99.0, 0.002_512_968_706_721_708_5),
        (0.999_999_999, 99.0, 6.605_517_614_995_367),
        (0.999_999_999, 150.0, 6.387_767_752_995_99),
        (0.9, 255.0, 1.284_880_300_967_579),
        (0.9, 4095.0, 1.281_758_335_799_587_4),
        (0.975, 99_999.0, 1.959_987_707_771_844_4),
        (0.95, 999_999.0, 1.644_855_150_723_563_8),
        (0.500_001, 999_999.0, 2.506_628_901_363_478_8e-6),
    ] {
        let ours = student_t_quantile(p, df).unwrap();
        let error = ((ours - expected) / expected).abs();
        assert!(error < 1e-9, "{p} {df}: {ours} instead of {expected}");
    }
}

#[test]
fn the_bound_is_the_mean_and_k_standard_deviations() {
    let bound = ConfidenceBound {
        fail_probability: 0.25,
        safety_samples: 2,
        training_weight: 4.0,
        safety_weight: 2.0,
    };
    // n = N = 2: t(0.75, 1) = 1 both, k = (4 + 2) / sqrt 2. Costs 1 and 3: mean 2, std sqrt 2.
    let (upper, k) = bound.bound(&[1.0, 3.0]).unwrap();
    close(&[k.t_training, k.t_safety, k.value], &[1.0, 1.0, 6.0 / 2.0f64.sqrt()]);
    close(&[upper], &[8.0]);
    // Nothing varies: the mean, whatever the coefficient.
    close(&[bound.bound(&[0.1, 0.1, 0.1]).unwrap().0], &[0.1]);
    // One cost has no degree of freedom.
    let expected =
        AlgoError::TooFew { function: "ConfidenceBound::coefficient", expected: 2, got: 1 };
    assert_eq!(bound.bound(&[1.0]).unwrap_err(), expected);
    let bad = ConfidenceBound { fail_probability: 1.5, ..bound };
    assert!(matches!(bad.bound(&[1.0, 2.0]), Err(AlgoError::Parameter { .. })));
    // No risk at all: no finite bound.
    let certain = ConfidenceBound { fail_probability: 0.0, ..bound };
    assert_eq!(certain.bound(&[1.0, 2.0]).unwrap().0, f64::INFINITY);
}

#[test]
fn augmented_costs_by_hand_and_without_spread() {
    let bound = ConfidenceBound {
        fail_probability: 0.25,
        safety_weight: 0.0,
        ..ConfidenceBound::default()
    };
    let spec = AugmentedCost { bound, ..AugmentedCost::default() };
    // k = t(0.75, 1) / sqrt 2 = 0.7071; window 1, 3: mean 2, std sqrt 2, k / (2 std) = 1/4.
    // c = 3: 3 + (9 - 12) / 4 = 2.25; c = 0: 0; c = -1: -1 + (1 + 4) / 4 = 0.25.
    let (costs, k) = spec.of(2, &[1.0, 3.0], &[3.0, 0.0, -1.0]).unwrap();
    close(&costs, &[2.25, 0.0, 0.25]);
    close(&[k], &[0.5f64.sqrt()]);
    let (costs, _) = spec.of(2, &[2.0, 2.0], &[2.0, 5.0]).unwrap();
    assert_eq!(costs, [2.0, 5.0]);
    // Divided by 0: 4 - 8 < 0, 25 - 20 > 0, and 0 over 0 stays.
    let compat = AugmentedCost { no_spread: NoSpread::CompatDivide, ..spec };
    let (costs, _) = compat.of(2, &[2.0, 2.0], &[2.0, 5.0, 0.0]).unwrap();
    assert_eq!(costs, [f64::NEG_INFINITY, f64::INFINITY, 0.0]);
}

#[test]
fn advantages_mix_with_and_without_the_divisor() {
    // lambda 3: (1 - 3 * 2) / 4 = -1.25, (0 + 3) / 4 = 0.75.
    let (reward, cost) = ([1.0, 0.0], [2.0, -1.0]);
    close(&Mixing::Divided.mix(&reward, &cost, 3.0).unwrap(), &[-1.25, 0.75]);
    close(&Mixing::Undivided.mix(&reward, &cost, 3.0).unwrap(), &[-5.0, 3.0]);
    close(&penalized_rewards(&reward, &cost, 0.5).unwrap(), &[0.0, 0.5]);
    for lambda in [-1.0, f64::INFINITY, f64::NAN] {
        let refused = Mixing::Divided.mix(&reward, &cost, lambda);
        assert!(matches!(refused, Err(AlgoError::Parameter { .. })), "{lambda}");
    }
    assert!(matches!(penalized_rewards(&reward, &[1.0], 1.0), Err(AlgoError::Length { .. })));
    let nan = penalized_rewards(&reward, &[1.0, f64::NAN], 1.0);
    assert!(matches!(nan, Err(AlgoError::NonFinite { index: 1, .. })));
}

#[test]
fn a_running_baseline_is_the_mean_of_everything() {
    let mut baseline = RunningBaseline::default();
    baseline.update(&[]).unwrap();
    assert_eq!((baseline.mean(), baseline.count()), (0.0, 0));
    // (1 + 2) / 2, then (1 + 2 + 6) / 3.
    baseline.update(&[1.0, 2.0]).unwrap();
    close(&[baseline.mean()], &[1.5]);
    baseline.update(&[6.0]).unwrap();
    close(&[baseline.mean()], &[3.0]);
    assert!(baseline.update(&[f64::INFINITY]).is_err());
    assert_eq!(RunningBaseline::resumed(baseline.mean(), 3).unwrap(), baseline);
}

#[test]
fn the_safety_test_passes_fails_or_has_too_little_to_say() {
    let test = SafetyTest { fail_probability: 0.25, threshold: 3.001, min_samples: 2 };
    // Costs 1 and 3: mean 2, std sqrt 2, t(0.75, 1) / sqrt 2 = 0.7071: bound 3.
    let Verdict::Pass(figures) = test.decide(&[1.0, 3.0]).unwrap() else { panic!("passes") };
    close(
        &[figures.coefficient, figures.upper_bound, figures.success_rate],
        &[0.5f64.sqrt(), 3.0, 1.0],
    );
    let strict = SafetyTest { threshold: 2.9, ..test };
    let Verdict::Fail(figures) = strict.decide(&[1.0, 3.0]).unwrap() else { panic!("fails") };
    close(&[figures.success_rate], &[0.5]);
    for costs in [&[][..], &[-100.0]] {
        let expected = Verdict::NotEnoughData { needed: 2, got: costs.len() };
        assert_eq!(test.decide(costs).unwrap(), expected);
    }
    let many = SafetyTest { min_samples: 3, ..test };
    assert_eq!(many.decide(&[1.0, 3.0]).unwrap(), Verdict::NotEnoughData { needed: 3, got: 2 });
    assert!(matches!(test.decide(&[1.0, f64::NAN]), Err(AlgoError::NonFinite { .. })));
    let bad = SafetyTest { min_samples: 1, ..test };
    assert!(matches!(bad.decide(&[1.0, 2.0]), Err(AlgoError::Parameter { .. })));
}
