//! Evaluation figures by hand.

use super::close;
use crate::AlgoError;
use crate::metric::{
    Arena, BatchScore, Cell, Match, MultipleChoice, Scores, choice_log_prob, compat_score_pair,
    score_pair,
};

fn one(red: (f64, f64), blue: (f64, f64)) -> Match {
    let scores = |(reward, cost)| Scores { reward, cost };
    Match { red: scores(red), blue: scores(blue) }
}

#[test]
fn the_arena_counts_wins_by_safety() {
    let table = Arena::of(&[
        // Both safe (0 is safe), a tie is no win.
        one((1.0, 0.0), (1.0, -1.0)),
        // Both safe, blue wins.
        one((1.0, -1.0), (2.0, 0.0)),
        // Red safe, blue not, blue wins.
        one((0.0, -2.0), (4.0, 3.0)),
        // Red not safe, blue safe, red wins.
        one((3.0, 1.0), (1.0, -1.0)),
    ])
    .unwrap();
    assert_eq!(table.safe_to_safe, Cell { count: 2, wins: 1 });
    assert_eq!(table.safe_to_unsafe, Cell { count: 1, wins: 1 });
    assert_eq!(table.unsafe_to_safe, Cell { count: 1, wins: 0 });
    assert_eq!(table.unsafe_to_unsafe.win_rate(), None);
    assert_eq!(table.safe_to_safe.win_rate(), Some(0.5));
    assert_eq!(table.blue_safe(), Cell { count: 3, wins: 1 });
    assert_eq!(table.blue_unsafe(), Cell { count: 1, wins: 1 });
    // Red: 5/4 and -2/4; blue: 8/4 and 1/4.
    close(
        &[table.red.reward, table.red.cost, table.blue.reward, table.blue.cost],
        &[1.25, -0.5, 2.0, 0.25],
    );
    assert!(matches!(Arena::of(&[]), Err(AlgoError::Empty { .. })));
    let nan = Arena::of(&[one((f64::NAN, 0.0), (0.0, 0.0))]);
    assert!(matches!(nan, Err(AlgoError::NonFinite { .. })));
}

#[test]
fn choices_are_scored_by_their_own_tokens_and_normalised_over_each_other() {
    // -1 and -2 are the answer's.
    let score = choice_log_prob(&[-9.0, -1.0, -2.0, f64::NAN], &[false, true, true, false]);
    close(&[score.unwrap()], &[-3.0]);
    assert!(matches!(choice_log_prob(&[-1.0], &[false]), Err(AlgoError::Empty { .. })));
    // Probabilities 0.2 and 0.6 become 0.25 and 0.75.
    let choices = MultipleChoice::of(vec![0.2f64.ln(), 0.6f64.ln()]).unwrap();
    close(&choices.normalised, &[0.25f64.ln(), 0.75f64.ln()]);
    assert_eq!(choices.best(), 1);
    // Far below what exp can hold: e^-2000 against itself is a half.
    let far = MultipleChoice::of(vec![-2000.0, -2000.0]).unwrap();
    close(&far.normalised, &[0.5f64.ln(), 0.5f64.ln()]);
    assert_eq!(far.best(), 0);
    assert!(matches!(MultipleChoice::of(Vec::new()), Err(AlgoError::Empty { .. })));
}

#[test]
fn batch_scores_leave_aborted_samples_out() {
    // Sums 3 and -1; the sample without a response would have been the largest.
    let figures = BatchScore::of(&[&[1.0, 2.0], &[9.0, 9.0], &[0.0, -1.0]], &[2, 0, 1]).unwrap();
    assert_eq!(figures, BatchScore { samples: 2, mean: 1.0, max: 3.0, min: -1.0 });
    assert!(matches!(BatchScore::of(&[&[1.0]], &[0]), Err(AlgoError::Empty { .. })));
    assert!(matches!(BatchScore::of(&[&[1.0]], &[1, 1]), Err(AlgoError::Length { .. })));
    let nan = BatchScore::of(&[&[f64::NAN], &[1.0]], &[1, 1]);
    assert!(matches!(nan, Err(AlgoError::NonFinite { .. })));
}

#[test]
fn a_judges_scores_are_two_numbers_on_the_first_line() {
    for (reply, expected) in [
        ("8 9\nbecause", [8.0, 9.0]),
        ("  7.5 3\t\r\n", [7.5, 3.0]),
        ("+1e1 -.5", [10.0, -0.5]),
        ("1_0 2", [10.0, 2.0]),
        // Full-width and Arabic digits; a no-break space belongs to a number's edge.
        ("\u{ff18} \u{669}", [8.0, 9.0]),
        ("\u{17e8} \u{1fbf9}", [8.0, 9.0]),
        ("8 \u{a0}9", [8.0, 9.0]),
    ] {
        assert_eq!(score_pair(reply).unwrap(), expected, "{reply:?}");
        assert_eq!(compat_score_pair(reply), expected, "{reply:?}");
    }
    for reply in [
        "",
        "error",
        "8",
        "8 9 10",
        "8  9",
        "8\t9",
        "\n8 9",
        "8, 9",
        "8/10 9/10",
        "1__0 2",
        "_1 2",
        "0x8 1",
    ] {
        assert!(score_pair(reply).is_err(), "{reply:?}");
        assert_eq!(compat_score_pair(reply), [0.0, 0.0], "{reply:?}");
    }
    assert!(score_pair("nan 3").is_err());
    assert_eq!(compat_score_pair("nan 3"), [0.0, 3.0]);
    assert!(score_pair("inf 3").is_err());
    assert_eq!(compat_score_pair("inf 3"), [f64::INFINITY, 3.0]);
}
