//! Running moments against two passes, and placement of scores against a search.

use proptest::prelude::*;

use crate::model_score::{ScoredRow, place_score};
use crate::normalizer::{Follow, NormalizeFunction, ScoreNormalizer};

fn close(a: f64, b: f64, tolerance: f64) -> bool {
    (a - b).abs() <= tolerance * (1.0 + a.abs().max(b.abs()))
}

fn moments(values: &[f64]) -> (f64, f64) {
    let n = values.len() as f64;
    let mean = values.iter().sum::<f64>() / n;
    (mean, values.iter().map(|x| (x - mean).powi(2)).sum::<f64>())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1000))]

    #[test]
    fn running_moments(
        batches in prop::collection::vec(prop::collection::vec(-50.0f64..50.0, 2..6), 1..6),
        momentum in 0.0f64..=1.0,
    ) {
        let follow = Follow::ExponentialMovingAverage { momentum };
        let new = |follow| ScoreNormalizer::new(follow, NormalizeFunction::Affine);
        let (mut running, mut compat) = (new(Follow::Running), new(Follow::CompatRunning));
        let mut moving = new(follow);
        let (mut mean, mut variance) = (0.0, 1.0);
        let mut seen: Vec<f64> = Vec::new();
        let mut within = 0.0;
        for batch in &batches {
            running.update(batch).unwrap();
            compat.update(batch).unwrap();
            moving.update(batch).unwrap();
            let n = batch.len() as f64;
            let (batch_mean, squares) = moments(batch);
            mean = momentum * mean + (1.0 - momentum) * batch_mean;
            variance = momentum * variance + (1.0 - momentum) * squares / (n - 1.0);
            // Unbiased variance times n, in place of the sum of squares.
            within += squares / (n - 1.0);
            seen.extend(batch);
        }
        let n = seen.len() as f64;
        let (all_mean, squares) = moments(&seen);
        prop_assert!(close(running.mean, all_mean, 1e-10));
        prop_assert!(close(running.variance, squares / n, 1e-10));
        prop_assert!(close(moving.mean, mean, 1e-10));
        prop_assert!(close(moving.variance, variance, 1e-10));
        prop_assert!(close(compat.mean, all_mean, 1e-10));
        // The excess over the true variance is one unbiased variance a batch; float32 weights.
        prop_assert!(close(compat.variance, (squares + within) / n, 1e-5));
    }

    #[test]
    fn score_placement(
        row in prop::collection::vec((0i64..9, any::<bool>()), 1..12),
        response in 0usize..12,
    ) {
        prop_assume!(response <= row.len());
        let (position_ids, attended): (Vec<i64>, Vec<bool>) = row.iter().copied().unzip();
        let masked: Vec<i64> = row.iter().map(|(p, keep)| p * i64::from(*keep)).collect();
        let most = masked.iter().copied().fold(i64::MIN, i64::max);
        let at = masked.iter().position(|p| *p == most).unwrap();
        let mut whole = vec![0.0; row.len()];
        whole[at] = 0.5;
        let given = ScoredRow { score: 0.5, position_ids: &position_ids, attended: &attended };
        let ours = place_score(given, response).unwrap();
        prop_assert_eq!(&ours[..], &whole[row.len() - response..]);
    }
}
