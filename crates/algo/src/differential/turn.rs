use std::time::{Duration, Instant};

use proptest::prelude::*;

use crate::json::{first_object, naive_first_object};
use crate::pairwise::pairwise_sum;
use crate::turn::Aggregation;

/// The equation, turn by turn.
fn naive(method: &str, scores: &[f64]) -> f64 {
    let n = scores.len();
    if n == 1 {
        return scores[0];
    }
    let (mut sum, mut weights, mut inverse, mut least) = (0.0, 0.0, 0.0, scores[0]);
    for (i, score) in scores.iter().enumerate() {
        let weight = match method {
            "linear" => 1.0 + i as f64,
            "soft_linear" => 1.0 + 0.1 * i as f64,
            "last" => f64::from(i == n - 1),
            _ => 1.0,
        };
        sum += weight * score;
        weights += weight;
        inverse += if *score > 0.01 { 1.0 / score } else { 100.0 };
        least = if *score < least { *score } else { least };
    }
    match method {
        "harmonic" => n as f64 / inverse,
        "min_mean" => 0.3 * least + 0.7 * sum / weights,
        _ => sum / weights,
    }
}

/// Pieces of JSON and of what breaks it.
fn soup() -> impl Strategy<Value = String> {
    let piece = prop::sample::select(vec![
        "{", "}", "[", "]", "\"", ",", ":", "\\", "\\u0041", "\"a\"", "{\"a\":", "1", "-", "null",
        " ", "\n", "é", "\"{\"", "\":\"", "{}", "{\"k\":[",
    ]);
    prop::collection::vec(piece, 0..24).prop_map(|pieces| pieces.concat())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1000))]

    #[test]
    fn rewards_agree_with_a_loop_over_turns(
        scores in prop::collection::vec(-1.0f64..2.0, 1..16),
    ) {
        for method in ["mean", "min_mean", "soft_linear", "linear", "harmonic", "last"] {
            let reward = method.parse::<Aggregation>().unwrap().reward(&scores).unwrap();
            let expected = naive(method, &scores);
            prop_assert!((reward - expected).abs() < 1e-12, "{method}: {reward} {expected}");
        }
    }

    #[test]
    fn the_linear_search_finds_what_a_fresh_try_at_every_brace_finds(text in soup()) {
        prop_assert_eq!(first_object(&text), naive_first_object(&text));
    }

    #[test]
    fn a_sum_in_halves_agrees_with_a_loop(
        values in prop::collection::vec(-1e3f64..1e3, 0..700),
    ) {
        let sum: f64 = values.iter().sum();
        prop_assert!((pairwise_sum(&values) - sum).abs() < 1e-8);
    }
}

#[test]
fn a_long_reply_is_read_in_linear_time() {
    let started = Instant::now();
    for piece in
        ["{", "{\"", "{\":", "{\"a\":\"", "{\"a\":1,", "[{", "{\"a\\", "\"{\"a\":[1,{\"b\":"]
    {
        let _ = first_object(&piece.repeat((1 << 20) / piece.len()));
    }
    // A try at every brace that reads on would take hours.
    assert!(started.elapsed() < Duration::from_secs(20), "{:?}", started.elapsed());
}
