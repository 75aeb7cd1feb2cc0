//! KL with both distributions, its gradients, high entropy, and importance weights.

use tch::Kind;

use super::{close, grad, leaf, numbers, ratios, t};
use crate::LossError;
use crate::aggregate::Layout;
use crate::entropy::{MaskedEntropy, entropy, high_entropy_mask};
use crate::importance::{Correction, importance_weights};
use crate::kl::{Clamps, Gradient, Kind as KlKind, kl_full, kl_tokens_with};

#[test]
fn the_full_divergence_sums_over_the_vocabulary() {
    // p = 1/4, 3/4; q = 1/2, 1/2: 1/4 ln 1/2 + 3/4 ln 3/2.
    let logits = leaf(&[0.0, 3f64.ln()]);
    let kl = kl_full(&logits, &t(&[0.0, 0.0])).unwrap();
    let value = 0.25 * 0.5f64.ln() + 0.75 * 1.5f64.ln();
    close(&numbers(&kl), &[value]);
    // d/dz_v = p_v (ln(p_v / q_v) - KL).
    let slope = |p: f64| p * ((p / 0.5).ln() - value);
    close(&grad(&kl, &logits), &[slope(0.25), slope(0.75)]);
    let same = leaf(&[0.3, -2.0, 1.0]);
    let zero = kl_full(&same, &same.detach()).unwrap();
    close(&numbers(&zero), &[0.0]);
    close(&grad(&zero, &same), &[0.0; 3]);
}

#[test]
fn tokens_that_are_never_sampled_count_nothing() {
    let never = f64::NEG_INFINITY;
    let logits = leaf(&[0.0, 0.0, never]);
    let kl = kl_full(&logits, &t(&[0.0, 0.0, 0.0])).unwrap();
    // 1/2 ln (1/2 / 1/3), twice.
    close(&numbers(&kl), &[1.5f64.ln()]);
    assert!(grad(&kl, &logits).iter().all(|g| g.is_finite()));
    let all = kl_full(&t(&[0.0, 0.0]), &t(&[0.0, never])).unwrap();
    assert_eq!(numbers(&all), [f64::INFINITY]);
    let h = entropy(&logits).unwrap();
    close(&numbers(&h), &[2f64.ln()]);
    assert!(grad(&h, &logits).iter().all(|g| g.is_finite()));
    assert!(matches!(kl_full(&logits, &t(&[0.0])), Err(LossError::Shape { .. })));
    assert!(matches!(
        kl_full(&t(&[0.0]).sum(Kind::Double), &t(&[0.0])),
        Err(LossError::Rank { .. })
    ));
}

#[test]
fn a_straight_through_estimate_has_its_own_value_and_the_slope_of_k2() {
    // d = ln 2: k3 = ln 2 - 1/2 with slope 1/2; k2's slope is d.
    let ln2 = 2f64.ln();
    for (kind, value) in [(KlKind::K1, ln2), (KlKind::K3, ln2 - 0.5), (KlKind::Abs, ln2)] {
        let logp = leaf(&[0.0]);
        let kl = kl_tokens_with(Gradient::StraightThrough, kind, Clamps::Off, &logp, &t(&[-ln2]));
        let kl = kl.unwrap();
        close(&numbers(&kl), &[value]);
        close(&grad(&kl, &logp), &[ln2]);
    }
}

#[test]
fn the_highest_entropies_of_each_sequence_are_kept() {
    // 5 tokens, ratio 0.4: 2 of them. 1 token: itself. None: none.
    let entropies = t(&[1.0, 5.0, 2.0, 6.0, 3.0, 0.5, f64::NAN]);
    let mask = t(&[1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 0.0]);
    let layout = Layout::Packed { cu_seqlens: &[0, 5, 6, 7] };
    let of = |ratio, masked| {
        numbers(&high_entropy_mask(&entropies, &mask, layout, ratio, masked).unwrap())
    };
    let excluded = MaskedEntropy::Excluded;
    assert_eq!(of(0.4, excluded), [0.0, 1.0, 0.0, 1.0, 0.0, 1.0, 0.0]);
    assert_eq!(of(1.0, excluded), numbers(&mask));
    assert_eq!(of(0.0, excluded), numbers(&mask));
    // A valid entropy of 0 and padding: LightRFT may keep the padding.
    let (entropies, mask) = (t(&[-1.0, 9.0]), t(&[1.0, 0.0]));
    let layout = Layout::Packed { cu_seqlens: &[0, 2] };
    let of = |masked| numbers(&high_entropy_mask(&entropies, &mask, layout, 0.5, masked).unwrap());
    assert_eq!(of(excluded), [1.0, 0.0]);
    assert_eq!(of(MaskedEntropy::CompatZero), [0.0, 1.0]);
    assert!(high_entropy_mask(&entropies, &mask, layout, f64::NAN, excluded).is_err());
}

#[test]
fn importance_weights_truncate_or_leave_out() {
    // Sequences with ratios 3, 1/2 (product 1.5, geometric mean sqrt 1.5) and 4.
    let old = t(&ratios(&[3.0, 0.5, 4.0]));
    let (rollout, mask) = (t(&[0.0; 3]), t(&[1.0; 3]));
    let layout = Layout::Packed { cu_seqlens: &[0, 2, 3] };
    let of = |correction| {
        let (weight, sums) =
            importance_weights(&correction, &old, &rollout, &mask, layout).unwrap();
        (numbers(&weight), sums)
    };
    let (weight, sums) = of(Correction::TruncatedToken { cap: 2.0 });
    close(&weight, &[2.0, 0.5, 2.0]);
    assert_eq!((sums.tokens, sums.truncated, sums.masked), (3.0, 2.0, 0.0));
    close(&[sums.weight_mean(), sums.truncated_fraction()], &[1.5, 2.0 / 3.0]);
    // (4.5)^2 / (3 * 8.25).
    close(&[sums.effective_sample_fraction()], &[20.25 / 24.75]);
    // r - 1 - ln r, summed: 2 - 1/2 + 3 - ln 6.
    close(&[sums.kl], &[4.5 - 6f64.ln()]);
    let (weight, _) = of(Correction::TruncatedSequence { cap: 2.0 });
    close(&weight, &[1.5, 1.5, 2.0]);
    let (weight, sums) = of(Correction::IcePop { low: 0.6, high: 3.5 });
    close(&weight, &[3.0, 0.0, 0.0]);
    assert_eq!((sums.truncated, sums.masked_fraction()), (0.0, 2.0 / 3.0));
    let (weight, sums) = of(Correction::SequenceMask { low: 0.9, high: 2.0 });
    close(&weight, &[1.0, 1.0, 0.0]);
    assert_eq!(sums.masked, 1.0);
}

#[test]
fn bounds_that_are_not_possible_and_log_probs_that_are_no_numbers_are_refused() {
    let (old, mask) = (t(&[0.0, f64::NAN]), t(&[1.0, 1.0]));
    let layout = Layout::Packed { cu_seqlens: &[0, 2] };
    let correction = Correction::TruncatedToken { cap: 2.0 };
    let refused = importance_weights(&correction, &old, &old, &mask, layout);
    assert!(matches!(refused, Err(LossError::NonFinite { .. })));
    let first = t(&[1.0, 0.0]);
    let (weight, sums) = importance_weights(&correction, &old, &old, &first, layout).unwrap();
    assert_eq!((numbers(&weight), sums.kl), (vec![1.0, 0.0], 0.0));
    for bad in [
        Correction::TruncatedToken { cap: 0.0 },
        Correction::IcePop { low: 2.0, high: 2.0 },
        Correction::SequenceMask { low: -1.0, high: f64::INFINITY },
    ] {
        assert!(matches!(bad.validate(), Err(LossError::Parameter { .. })), "{bad:?}");
    }
}
