//! Score normalisers and parameter averages, whatever the numbers.

use std::slice::from_ref;

use proptest::prelude::*;

use crate::normalizer::{Follow, NormalizeFunction, ScoreNormalizer};
use crate::parameter_average::moving_average;

fn close(a: f64, b: f64) -> bool {
    (a - b).abs() <= 1e-9 * (1.0 + a.abs().max(b.abs()))
}

fn after(follow: Follow, batches: &[Vec<f64>]) -> ScoreNormalizer {
    let mut ours = ScoreNormalizer::new(follow, NormalizeFunction::Affine);
    for batch in batches {
        ours.update(batch).unwrap();
    }
    ours
}

fn batches() -> impl Strategy<Value = Vec<Vec<f64>>> {
    prop::collection::vec(prop::collection::vec(-50.0f64..50.0, 1..6), 1..6)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn running_moments_do_not_depend_on_the_cut_or_the_order(batches in batches()) {
        let whole = after(Follow::Running, &[batches.concat()]);
        let mut turned = batches.clone();
        turned.reverse();
        for cut in [&batches, &turned] {
            let ours = after(Follow::Running, cut);
            prop_assert!(close(ours.mean, whole.mean) && close(ours.variance, whole.variance));
            prop_assert_eq!(ours.count, whole.count);
        }
    }

    #[test]
    fn the_order_within_a_batch_does_not_matter(batch in prop::collection::vec(-5.0f64..5.0, 1..9)) {
        let mut turned = batch.clone();
        turned.reverse();
        let moving = Follow::ExponentialMovingAverage { momentum: 0.7 };
        for follow in [Follow::Running, Follow::CompatRunning, moving] {
            let (a, b) = (after(follow, from_ref(&batch)), after(follow, from_ref(&turned)));
            prop_assert!(close(a.mean, b.mean) && close(a.variance, b.variance));
        }
    }

    #[test]
    fn a_scaled_and_shifted_score_is_normalised_to_the_same(
        batches in batches(),
        scale in 0.5f64..4.0,
        shift in -20.0f64..20.0,
    ) {
        prop_assume!(after(Follow::Running, &batches).variance > 1e-3);
        let moved: Vec<Vec<f64>> =
            batches.iter().map(|b| b.iter().map(|x| x * scale + shift).collect()).collect();
        let (mut a, mut b) = (batches.concat(), moved.concat());
        after(Follow::Running, &batches).normalize(&mut a, 0.0).unwrap();
        after(Follow::Running, &moved).normalize(&mut b, 0.0).unwrap();
        for (a, b) in a.iter().zip(&b) {
            prop_assert!((a - b).abs() < 1e-6, "{a} {b}");
        }
    }

    #[test]
    fn a_parameter_average_lies_between_old_and_new(
        values in prop::collection::vec((-9.0f64..9.0, -9.0f64..9.0), 1..9),
        beta in 0.0f64..=1.0,
    ) {
        let (new, old): (Vec<f64>, Vec<f64>) = values.into_iter().unzip();
        let mut ema = old.clone();
        moving_average(beta, &new, &mut ema).unwrap();
        for ((new, old), ema) in new.iter().zip(&old).zip(&ema) {
            prop_assert!(*ema >= new.min(*old) - 1e-12 && *ema <= new.max(*old) + 1e-12);
        }
        let mut kept = old.clone();
        moving_average(1.0, &new, &mut kept).unwrap();
        prop_assert_eq!(&kept, &old);
        moving_average(0.0, &new, &mut kept).unwrap();
        prop_assert_eq!(&kept, &new);
    }
}
