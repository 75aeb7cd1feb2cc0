//! Hand-computed cases and the distribution of draws.

use super::*;

fn rows(logits: &[&[f32]]) -> Tensor {
    let flat: Vec<f32> = logits.concat();
    Tensor::from_slice(&flat).view([logits.len() as i64, -1])
}

fn log_of(probabilities: &[f64]) -> Vec<f32> {
    probabilities.iter().map(|p| p.ln() as f32).collect()
}

const PLAIN: Distribution =
    Distribution { temperature: 1.0, top_p: 1.0, top_k: None, min_p: 0.0, top_logps: 0 };

#[test]
fn plain_sampling_inverts_the_cdf() {
    // p = .1 .2 .3 .4: borders at .1 .3 .6.
    let row = log_of(&[0.1, 0.2, 0.3, 0.4]);
    let logits = rows(&[&row, &row, &row, &row]);
    let drawn = draw(&logits, PLAIN, &[0.05, 0.15, 0.59, 0.61]).unwrap();
    assert_eq!(drawn.tokens, [0, 1, 2, 3]);
    for (logp, p) in drawn.logps.iter().zip([0.1f64, 0.2, 0.3, 0.4]) {
        assert!((f64::from(*logp) - p.ln()).abs() < 1e-6, "{logp} is not ln {p}");
    }
}

#[test]
fn temperature_sharpens_and_the_log_prob_is_of_the_tempered_distribution() {
    // T = 1/2 squares the odds: 1/10, 3/10, 6/10 -> 1/46, 9/46, 36/46.
    let logits = rows(&[&log_of(&[0.1, 0.3, 0.6])]);
    let drawn = draw(&logits, Distribution { temperature: 0.5, ..PLAIN }, &[0.1]).unwrap();
    assert_eq!(drawn.tokens, [1]);
    assert!((f64::from(drawn.logps[0]) - (9.0f64 / 46.0).ln()).abs() < 1e-6);
}

#[test]
fn greedy_takes_the_best_and_records_the_model_s_log_prob() {
    let logits = rows(&[&log_of(&[0.2, 0.5, 0.3])]);
    let drawn = draw(&logits, Distribution { temperature: 0.0, ..PLAIN }, &[0.99]).unwrap();
    assert_eq!(drawn.tokens, [1]);
    assert!((f64::from(drawn.logps[0]) - 0.5f64.ln()).abs() < 1e-6);
}

#[test]
fn top_k_keeps_the_best_k_and_renormalises() {
    // The two best of .1 .4 .2 .3 are tokens 1 and 3: 4/7 and 3/7.
    let row = log_of(&[0.1, 0.4, 0.2, 0.3]);
    let two = Distribution { top_k: Some(2), ..PLAIN };
    let drawn = draw(&rows(&[&row, &row]), two, &[0.57, 0.58]).unwrap();
    assert_eq!(drawn.tokens, [1, 3]);
    assert!((f64::from(drawn.logps[0]) - (4.0f64 / 7.0).ln()).abs() < 1e-6);
    assert!((f64::from(drawn.logps[1]) - (3.0f64 / 7.0).ln()).abs() < 1e-6);
    let one = draw(&rows(&[&row]), Distribution { top_k: Some(1), ..PLAIN }, &[0.999]).unwrap();
    assert_eq!((one.tokens[0], one.logps[0]), (1, 0.0));
}

#[test]
fn top_p_keeps_the_token_that_crosses_the_mass() {
    // In falling order .4 .3 .2 .1 (tokens 1 3 2 0): .6 needs two of them, .7 still two by
    // "at least", .75 three.
    let row = log_of(&[0.1, 0.4, 0.2, 0.3]);
    let at = |top_p, u| {
        let drawn = draw(&rows(&[&row]), Distribution { top_p, ..PLAIN }, &[u]).unwrap();
        (drawn.tokens[0], f64::from(drawn.logps[0]))
    };
    let (token, logp) = at(0.6, 0.9999);
    assert_eq!(token, 3);
    assert!((logp - (3.0f64 / 7.0).ln()).abs() < 1e-6);
    let (token, logp) = at(0.75, 0.9999);
    assert_eq!(token, 2);
    assert!((logp - (2.0f64 / 9.0).ln()).abs() < 1e-6);
    assert_eq!(at(0.01, 0.9999).0, 1, "the best token is always kept");
}

#[test]
fn top_p_counts_the_mass_that_top_k_left() {
    // top-k 3 leaves 4/9 3/9 2/9; .7 of that needs two tokens (7/9), of the whole it needs two
    // as well, but .8 needs three of the three.
    let row = log_of(&[0.1, 0.4, 0.2, 0.3]);
    let cut = |top_p| {
        let both = Distribution { top_p, top_k: Some(3), ..PLAIN };
        draw(&rows(&[&row]), both, &[0.9999]).unwrap().tokens[0]
    };
    assert_eq!(cut(0.7), 3);
    assert_eq!(cut(0.8), 2);
}

#[test]
fn top_p_zero_keeps_the_best_token() {
    let row = log_of(&[0.1, 0.4, 0.2, 0.3]);
    let drawn = draw(&rows(&[&row]), Distribution { top_p: 0.0, ..PLAIN }, &[0.999]).unwrap();
    assert_eq!((drawn.tokens[0], drawn.logps[0]), (1, 0.0));
}

#[test]
fn min_p_cuts_below_a_share_of_the_best() {
    // Half of .4 keeps .4, .2 and .3: 4/9, 3/9, 2/9. A share of 3/4 keeps .4 and .3.
    let row = log_of(&[0.1, 0.4, 0.2, 0.3]);
    let last = |min_p| {
        let drawn = draw(&rows(&[&row]), Distribution { min_p, ..PLAIN }, &[0.9999]).unwrap();
        (drawn.tokens[0], f64::from(drawn.logps[0]))
    };
    let (token, logp) = last(0.49);
    assert_eq!(token, 2);
    assert!((logp - (2.0f64 / 9.0).ln()).abs() < 1e-6);
    let (token, logp) = last(0.74);
    assert_eq!(token, 3);
    assert!((logp - (3.0f64 / 7.0).ln()).abs() < 1e-6);
    assert_eq!(last(1.0), (1, 0.0));
}

#[test]
fn min_p_cuts_after_top_p_so_that_the_nucleus_is_of_the_whole() {
    // Half of the whole needs .4 and .3, and .3 is 3/4 of .4. Had min-p been first, the best alone
    // would be 4/7 of what is left.
    let row = log_of(&[0.1, 0.4, 0.2, 0.3]);
    let both = Distribution { top_p: 0.5, min_p: 0.7, ..PLAIN };
    let drawn = draw(&rows(&[&row]), both, &[0.9999]).unwrap();
    assert_eq!(drawn.tokens[0], 3);
}

#[test]
fn a_wide_vocabulary_is_searched_until_min_p_cuts() {
    // 3,000 equal tokens: none is below any share of the best.
    let logits = Tensor::zeros([1, 3000], (Kind::Float, tch::Device::Cpu));
    let drawn = draw(&logits, Distribution { min_p: 0.9, ..PLAIN }, &[0.5]).unwrap();
    assert!((f64::from(drawn.logps[0]) + 3000f64.ln()).abs() < 1e-3, "{}", drawn.logps[0]);
}

#[test]
fn the_best_tokens_come_with_the_log_probs_of_the_same_distribution() {
    let row = log_of(&[0.1, 0.4, 0.2, 0.3]);
    let ln = |p: f64| p.ln() as f32;
    let top = |distribution| draw(&rows(&[&row]), distribution, &[0.1]).unwrap().top;
    let close = |got: &[Vec<(u32, f32)>], expected: &[(u32, f32)]| {
        assert_eq!(got.len(), 1);
        assert_eq!(got[0].len(), expected.len(), "{got:?}");
        for ((a, x), (b, y)) in got[0].iter().zip(expected) {
            assert!(a == b && (x - y).abs() < 1e-6, "{got:?} is not {expected:?}");
        }
    };
    let three = Distribution { top_logps: 3, ..PLAIN };
    close(&top(three), &[(1, ln(0.4)), (3, ln(0.3)), (2, ln(0.2))]);
    close(
        &top(Distribution { top_k: Some(2), ..three }),
        &[(1, ln(4.0 / 7.0)), (3, ln(3.0 / 7.0))],
    );
    close(
        &top(Distribution { temperature: 0.0, top_logps: 2, ..PLAIN }),
        &[(1, ln(0.4)), (3, ln(0.3))],
    );
    assert!(top(PLAIN).is_empty());
}

#[test]
fn a_flat_vocabulary_wider_than_the_candidates_is_searched_on() {
    // 3,000 equal tokens, top-p .9: 2,700 of them are kept.
    let logits = Tensor::zeros([1, 3000], (Kind::Float, tch::Device::Cpu));
    let drawn = draw(&logits, Distribution { top_p: 0.9, ..PLAIN }, &[0.5]).unwrap();
    assert!((f64::from(drawn.logps[0]) + 2700f64.ln()).abs() < 1e-3, "{}", drawn.logps[0]);
}

#[test]
fn a_token_of_no_probability_is_never_drawn() {
    let mut row = vec![f32::NEG_INFINITY; 700];
    row[300] = 0.0;
    row[699] = 0.0;
    for (u, token) in [(1e-9, 300), (0.4999, 300), (0.5001, 699), (1.0 - 1e-9, 699)] {
        assert_eq!(draw(&rows(&[&row]), PLAIN, &[u]).unwrap().tokens, [token], "at {u}");
    }
}

#[test]
fn rows_do_not_see_each_other() {
    let a = log_of(&[0.1, 0.2, 0.3, 0.4]);
    let b = log_of(&[0.7, 0.1, 0.1, 0.1]);
    let alone = draw(&rows(&[&a]), PLAIN, &[0.35]).unwrap();
    let together = draw(&rows(&[&b, &a, &b]), PLAIN, &[0.1, 0.35, 0.9]).unwrap();
    assert_eq!(alone.tokens[0], together.tokens[1]);
    assert_eq!(alone.logps[0], together.logps[1]);
}

#[test]
fn logits_that_are_not_finite_are_refused_by_row() {
    let logits = rows(&[&[0.0, 1.0], &[f32::NAN, 0.0]]);
    for distribution in [
        PLAIN,
        Distribution { temperature: 0.0, ..PLAIN },
        Distribution { top_p: 0.5, ..PLAIN },
        Distribution { top_k: Some(1), ..PLAIN },
    ] {
        let error = draw(&logits, distribution, &[0.5, 0.5]).unwrap_err();
        assert_eq!(error.to_string(), "logits of row 1 are not finite");
    }
}
