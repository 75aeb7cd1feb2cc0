//! Score normalisers, placement of scores and parameter averages, by hand.

use super::close;
use crate::AlgoError;
use crate::model_score::{ScoredRow, place_score, safe_score, score_token};
use crate::normalizer::{Follow, NormalizeFunction, ScoreNormalizer, ScoreType};
use crate::parameter_average::{ParameterAverage, moving_average};

#[test]
fn running_moments_are_those_of_all_scores_so_far() {
    let mut ours = ScoreNormalizer::new(Follow::Running, NormalizeFunction::Affine);
    // 1, 3: mean 2, population variance 1.
    ours.update(&[1.0, 3.0]).unwrap();
    close(&[ours.mean, ours.variance], &[2.0, 1.0]);
    // 1, 3, 8: mean 4, squares 9 + 1 + 16 over 3.
    ours.update(&[8.0]).unwrap();
    close(&[ours.mean, ours.variance], &[4.0, 26.0 / 3.0]);
    assert_eq!(ours.count, 3);
}

#[test]
fn the_compat_form_takes_each_batchs_unbiased_variance() {
    let mut ours = ScoreNormalizer::new(Follow::CompatRunning, NormalizeFunction::Affine);
    // Unbiased variance of 1, 3 is 2.
    ours.update(&[1.0, 3.0]).unwrap();
    close(&[ours.mean, ours.variance], &[2.0, 2.0]);
    // 5, 7: variance 2. Squares 2 * 2 + 2 * 2, means 4 apart with weight 2 * 2 / 4: 16; over 4.
    ours.update(&[5.0, 7.0]).unwrap();
    close(&[ours.mean, ours.variance], &[4.0, (4.0 + 4.0 + 16.0) / 4.0]);
    // One score brings no spread: 6 * 4 + 0, and 5 apart with weight 4 * 1 / 5: 20; over 5. (0.8
    // as a float32 is 0.800000012.)
    ours.update(&[9.0]).unwrap();
    assert!((ours.variance - 8.8).abs() < 1e-6, "{}", ours.variance);
    close(&[ours.mean], &[5.0]);
}

#[test]
fn the_moving_average_keeps_nine_tenths_of_what_was() {
    let follow = Follow::ExponentialMovingAverage { momentum: 0.9 };
    let mut ours = ScoreNormalizer::new(follow, NormalizeFunction::Scale);
    // 0.9 * 0 + 0.1 * 2; 0.9 * 1 + 0.1 * 2.
    ours.update(&[1.0, 3.0]).unwrap();
    close(&[ours.mean, ours.variance], &[0.2, 1.1]);
    // One score moves the mean only: 0.9 * 0.2 + 0.1 * 12.
    ours.update(&[12.0]).unwrap();
    close(&[ours.mean, ours.variance], &[1.38, 1.1]);
    let mut never = ScoreNormalizer::new(Follow::Never, NormalizeFunction::Identity);
    never.update(&[5.0, f64::NAN]).unwrap();
    assert_eq!((never.mean, never.variance, never.count), (0.0, 1.0, 2));
}

#[test]
fn scores_are_shifted_or_scaled_as_their_type_asks() {
    let of = |function, epsilon: f64| {
        let ours = ScoreNormalizer::new(Follow::Never, function).with_moments(3.0, 4.0).unwrap();
        let mut scores = [5.0, -1.0];
        ours.normalize(&mut scores, epsilon).unwrap();
        scores
    };
    // Deviation 2: (5 - 3) / 2 and (-1 - 3) / 2; with epsilon 2 over 4.
    close(&of(NormalizeFunction::Affine, 0.0), &[1.0, -2.0]);
    close(&of(NormalizeFunction::Affine, 2.0), &[0.5, -1.0]);
    close(&of(NormalizeFunction::Scale, 0.0), &[2.5, -0.5]);
    close(&of(NormalizeFunction::Translate, 0.0), &[2.0, -4.0]);
    close(&of(NormalizeFunction::Identity, 0.0), &[5.0, -1.0]);
    let types = [ScoreType::Reward, ScoreType::Cost, ScoreType::Critic];
    assert_eq!(
        types.map(ScoreType::normalize_function),
        [NormalizeFunction::Affine, NormalizeFunction::Scale, NormalizeFunction::Identity]
    );
    assert!(matches!("cost".parse(), Ok(ScoreType::Cost)));
    assert!(matches!("value".parse::<ScoreType>(), Err(AlgoError::UnknownName { .. })));
    assert!(matches!("affin".parse::<NormalizeFunction>(), Err(AlgoError::UnknownName { .. })));
}

#[test]
fn without_spread_a_score_at_the_mean_is_0() {
    let ours = ScoreNormalizer::new(Follow::Never, NormalizeFunction::Affine);
    let flat = ours.with_moments(3.0, 0.0).unwrap();
    let mut scores = [3.0, 4.0];
    flat.normalize(&mut scores, 0.0).unwrap();
    assert_eq!(scores, [0.0, f64::INFINITY]);
    assert!(matches!(ours.with_moments(0.0, -1.0), Err(AlgoError::Parameter { .. })));
    assert!(matches!(flat.normalize(&mut [f64::NAN], 0.0), Err(AlgoError::NonFinite { .. })));
    assert!(matches!(flat.normalize(&mut [1.0], -1.0), Err(AlgoError::Parameter { .. })));
}

#[test]
fn a_refused_batch_leaves_the_moments_alone() {
    let follow = Follow::compat_named(Some("RunningMeanStd"), 0.9).unwrap();
    let mut ours = ScoreNormalizer::new(follow, NormalizeFunction::Affine);
    let before = ours;
    assert!(matches!(ours.update(&[]), Err(AlgoError::Empty { .. })));
    assert!(matches!(ours.update(&[1.0, f64::NAN]), Err(AlgoError::NonFinite { index: 1, .. })));
    assert_eq!(ours, before);
    let name = Some("ExponentialMovingAverage");
    assert!(matches!(Follow::compat_named(name, 1.5), Err(AlgoError::Parameter { .. })));
    assert!(matches!(Follow::compat_named(Some("x"), 0.5), Err(AlgoError::UnknownName { .. })));
    assert_eq!(Follow::compat_named(None, 0.5), Ok(Follow::Never));
}

#[test]
fn a_score_is_placed_at_the_last_attended_position() {
    // sigmoid(-ln 3) = 1/4.
    close(&[safe_score(3f64.ln()), safe_score(f64::INFINITY)], &[0.25, 0.0]);
    let (position_ids, attended) = ([0, 0, 1, 2, 3, 3], [false, true, true, true, true, false]);
    assert_eq!(score_token(&position_ids, &attended), Ok(4));
    let row = ScoredRow { score: 0.25, position_ids: &position_ids, attended: &attended };
    assert_eq!(place_score(row, 3), Ok(vec![0.0, 0.25, 0.0]));
    // A response of padding only: the score falls on the prompt and is lost.
    assert_eq!(place_score(row, 1), Ok(vec![0.0]));
    assert!(matches!(place_score(row, 7), Err(AlgoError::Length { got: 7, .. })));
    assert!(matches!(score_token(&[], &[]), Err(AlgoError::Empty { .. })));
    assert!(matches!(score_token(&[0], &[]), Err(AlgoError::Length { .. })));
    let nan = ScoredRow { score: f64::NAN, ..row };
    assert!(matches!(place_score(nan, 3), Err(AlgoError::NonFinite { .. })));
}

#[test]
fn a_parameter_average_follows_at_every_interval() {
    // 0.75 * 4 + 0.25 * 8, then 0.75 * 5 + 0.25 * 8.
    let mut average = ParameterAverage::new(0.75, 2).unwrap();
    let mut ema = [4.0];
    let mut seen = Vec::new();
    for _ in 0..4 {
        if average.step() {
            average.follow(&[8.0], &mut ema).unwrap();
        }
        seen.push(ema[0]);
    }
    close(&seen, &[4.0, 5.0, 5.0, 5.75]);
    assert!(matches!(ParameterAverage::new(1.5, 1), Err(AlgoError::Parameter { .. })));
    assert!(matches!(ParameterAverage::new(0.5, 0), Err(AlgoError::Parameter { .. })));
    assert!(matches!(moving_average(0.5, &[1.0], &mut []), Err(AlgoError::Length { .. })));
    let refused = moving_average(0.5, &[1.0, f64::NAN], &mut ema.repeat(2));
    assert!(matches!(refused, Err(AlgoError::NonFinite { index: 1, .. })));
}
