//! Losses on pairs and on texts, whatever the numbers.

use proptest::prelude::*;
use tch::{Kind, Tensor};

use crate::preference::{
    Cost, Margin, Objective, PairValues, Pop, PopFixed, Preference, SafetyLabels, Window, cost,
    pop, pop_fixed, preference, sum_log_probs,
};
use crate::supervised::{CausalLm, causal_lm};

/// Better, worse, and the same of an unpreferred pair.
type Four = (f64, f64, f64, f64);

fn fours() -> impl Strategy<Value = Vec<Four>> {
    let x = || -4.0f64..4.0;
    prop::collection::vec((x(), x(), x(), x()), 1..9)
}

fn pair(rows: &[Four], better: fn(&Four) -> f64, worse: fn(&Four) -> f64) -> PairValues {
    let column =
        |of: fn(&Four) -> f64| Tensor::from_slice(&rows.iter().map(of).collect::<Vec<f64>>());
    PairValues { better: column(better), worse: column(worse) }
}

fn preferred(rows: &[Four]) -> PairValues {
    pair(rows, |r| r.0, |r| r.1)
}

fn unpreferred(rows: &[Four]) -> PairValues {
    pair(rows, |r| r.2, |r| r.3)
}

/// Every loss on a micro-batch of `whole` pairs, and its count of correct ones.
fn losses(rows: &[Four], whole: usize) -> Vec<(f64, usize)> {
    let number = |loss: &Tensor| loss.double_value(&[]);
    let smooth = Objective::Logistic { label_smoothing: 0.1, margin: Margin::Scalar(0.3) };
    let mut all = Vec::new();
    for objective in [smooth, Objective::Ipo] {
        let spec = Preference { beta: 0.7, objective };
        let terms = preference(&spec, &preferred(rows), whole).unwrap();
        all.push((number(&terms.loss), terms.correct_pairs));
    }
    let fixed = PopFixed { beta: 0.7, margin_min: -0.5, margin_max: 1.0 };
    let terms = pop_fixed(&fixed, &preferred(rows), &unpreferred(rows), whole).unwrap();
    all.push((number(&terms.loss), terms.correct_pop));
    let terms = pop(&Pop { beta: 0.7, lambda: 2.0 }, &preferred(rows), &unpreferred(rows), whole);
    let terms = terms.unwrap();
    all.push((number(&terms.loss), terms.correct_unpreferred));
    let safe = |of: fn(&Four) -> f64| rows.iter().map(|r| of(r) > 0.0).collect::<Vec<bool>>();
    let (safer, unsafer) = (safe(|r| r.2), safe(|r| r.3));
    let labels = SafetyLabels { safer: &safer, unsafer: &unsafer };
    let values = preferred(rows);
    let spec = Cost { regularization: 0.2, sign_terms: true };
    let terms = cost(&spec, &values.worse, &values.better, labels, whole).unwrap();
    all.push((number(&terms.loss), terms.correct_pairs + terms.correct_signs));
    all
}

fn close(a: f64, b: f64) -> bool {
    (a - b).abs() <= 1e-10 * (1.0 + a.abs().max(b.abs()))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    #[test]
    fn losses_and_counts_add_up_over_any_cut(rows in fours(), cut in 1usize..5) {
        let whole = losses(&rows, rows.len());
        let parts: Vec<_> = rows.chunks(cut).map(|part| losses(part, rows.len())).collect();
        for (i, (loss, count)) in whole.iter().enumerate() {
            prop_assert!(close(parts.iter().map(|p| p[i].0).sum(), *loss), "loss {i}");
            prop_assert_eq!(parts.iter().map(|p| p[i].1).sum::<usize>(), *count, "loss {}", i);
        }
    }

    #[test]
    fn the_order_of_pairs_does_not_matter(rows in fours(), by in 0usize..8) {
        let mut moved = rows.clone();
        moved.rotate_left(by % rows.len());
        for (a, b) in losses(&rows, rows.len()).iter().zip(losses(&moved, rows.len())) {
            prop_assert!(close(a.0, b.0));
            prop_assert_eq!(a.1, b.1);
        }
    }

    #[test]
    fn a_shift_of_both_answers_changes_no_preference(rows in fours(), shift in -9.0f64..9.0) {
        let spec = Preference { beta: 0.7, ..Preference::default() };
        let moved: Vec<Four> =
            rows.iter().map(|r| (r.0 + shift, r.1 + shift, r.2, r.3)).collect();
        let of = |rows: &[Four]| preference(&spec, &preferred(rows), rows.len()).unwrap();
        let (a, b) = (of(&rows), of(&moved));
        prop_assert!(close(a.loss.double_value(&[]), b.loss.double_value(&[])));
    }

    #[test]
    fn one_margin_for_all_is_the_same_in_all_its_forms(rows in fours(), margin in -3.0f64..3.0) {
        let all = Tensor::from_slice(&vec![margin; rows.len()]);
        let forms = [
            Margin::Scalar(margin),
            Margin::PerPair(&all),
            Margin::CompatAllPairs(&all),
        ];
        let of = |margin| {
            let spec = Preference::with_margin(0.7, margin);
            preference(&spec, &preferred(&rows), rows.len()).unwrap().loss.double_value(&[])
        };
        let [a, b, c] = forms.map(of);
        prop_assert!(close(a, b) && close(a, c), "{a} {b} {c}");
    }

    #[test]
    fn swapping_the_answers_swaps_the_labels_that_smoothing_trusts(
        rows in fours(),
        smoothing in 0.0f64..1.0,
    ) {
        let of = |values: &PairValues, label_smoothing| {
            let objective = Objective::Logistic { label_smoothing, margin: Margin::Scalar(0.0) };
            let spec = Preference { beta: 0.7, objective };
            preference(&spec, values, rows.len()).unwrap().loss.double_value(&[])
        };
        let swapped = pair(&rows, |r| r.1, |r| r.0);
        prop_assert!(close(of(&preferred(&rows), smoothing), of(&swapped, 1.0 - smoothing)));
    }

    #[test]
    fn what_stands_outside_the_window_has_no_effect(
        logp in prop::collection::vec(-5.0f64..0.0, 7),
        first in 1i64..7,
        length in 0i64..6,
    ) {
        let last = (first + length).min(7);
        let mut noisy = logp.clone();
        for (column, value) in noisy.iter_mut().enumerate() {
            if !(first..=last).contains(&(column as i64 + 1)) {
                *value = f64::NAN;
            }
        }
        let of = |values: &[f64]| {
            let row = Tensor::from_slice(values).reshape([1, 7]);
            sum_log_probs(&row, &[(first, last)], Window::Answer).unwrap().double_value(&[0])
        };
        prop_assert_eq!(of(&logp), of(&noisy));
    }

    #[test]
    fn ignored_labels_leave_the_rest_of_the_batch_as_it_is(
        labels in prop::collection::vec(prop::collection::vec(-1i64..4, 5), 1..5),
        seed in 0i64..1000,
    ) {
        tch::manual_seed(seed);
        let spec = CausalLm { ignore_index: -1 };
        let rows = labels.len() as i64;
        let logits = Tensor::randn([rows, 5, 4], (Kind::Double, tch::Device::Cpu));
        let targets = spec.target_count(labels.iter().map(Vec::as_slice));
        prop_assume!(targets > 0);
        let of = |logits: &Tensor, labels: &[Vec<i64>]| {
            let flat = Tensor::from_slice(&labels.concat()).reshape([-1, 5]);
            let terms = causal_lm(&spec, logits, &flat, targets).unwrap();
            (terms.loss.double_value(&[]), terms.targets)
        };
        let whole = of(&logits, &labels);
        let parts: Vec<_> = (0..rows)
            .map(|b| of(&logits.narrow(0, b, 1), &labels[b as usize..=b as usize]))
            .collect();
        prop_assert!(close(parts.iter().map(|p| p.0).sum(), whole.0));
        prop_assert_eq!(parts.iter().map(|p| p.1).sum::<usize>(), targets);
        let mut padded = labels.clone();
        padded.push(vec![-1; 5]);
        let noise = Tensor::full([1, 5, 4], f64::NAN, (Kind::Double, tch::Device::Cpu));
        let more = of(&Tensor::cat(&[&logits, &noise], 0), &padded);
        prop_assert!(close(more.0, whole.0));
    }
}
