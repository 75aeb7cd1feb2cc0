use super::close;
use crate::AlgoError;
use crate::json::Json;
use crate::pairwise::pairwise_sum;
use crate::rounding::round_half_even;
use crate::turn::{
    Aggregation, Assembly, EmptyResponse, Ending, Limits, Reply, Step, ThinkingAnswer, TurnEnd,
    compat,
};

const SCORES: [f64; 3] = [1.0, 0.5, 0.0];

fn reward(method: &Aggregation) -> f64 {
    method.reward(&SCORES).unwrap()
}

#[test]
fn turn_scores_are_aggregated_by_each_method() {
    // 1.5 / 3; 0.3 * 0 + 0.7 * 0.5; 0.4 * 0 + 0.6 * 0.5.
    close(&[reward(&Aggregation::Mean)], &[0.5]);
    close(&[reward(&Aggregation::MIN_MEAN), reward(&Aggregation::default())], &[0.35, 0.35]);
    close(&[reward(&Aggregation::MIN_MEAN_COMPAT)], &[0.3]);
    // (1 * 1 + 1.1 * 0.5 + 1.2 * 0) / 3.3; (1 * 1 + 2 * 0.5 + 3 * 0) / 6.
    close(&[reward(&Aggregation::SOFT_LINEAR)], &[1.55 / 3.3]);
    close(&[reward(&Aggregation::Linear)], &[2.0 / 6.0]);
    // 3 / (1/1 + 1/0.5 + 1/0.01) = 3 / 103.
    close(&[reward(&Aggregation::HARMONIC)], &[3.0 / 103.0]);
    close(&[reward(&Aggregation::Last)], &[0.0]);
    // (2 * 1 + 1 * 0.5 + 1 * 0) / 4.
    close(&[reward(&Aggregation::Weights(vec![2.0, 1.0, 1.0]))], &[0.625]);
    // A lone score is the reward, under the floor too.
    assert_eq!(Aggregation::HARMONIC.reward(&[0.0]), Ok(0.0));
}

#[test]
fn turn_scores_that_cannot_be_aggregated_are_named() {
    let none = Aggregation::Mean.reward(&[]).unwrap_err();
    assert_eq!(none, AlgoError::Empty { function: "turn aggregation", what: "scores" });
    let nan = Aggregation::Last.reward(&[f64::NAN, 1.0]).unwrap_err();
    assert!(matches!(nan, AlgoError::NonFinite { index: 0, .. }));
    let short = Aggregation::Weights(vec![1.0]).reward(&SCORES).unwrap_err();
    assert!(matches!(short, AlgoError::Length { expected: 3, got: 1, .. }));
    let zero = Aggregation::Weights(vec![1.0, -1.0, 0.0]).reward(&SCORES).unwrap_err();
    assert!(matches!(zero, AlgoError::Parameter { parameter: "sum of weights", .. }));
    let beyond = Aggregation::MinMean { alpha: 1.5 }.reward(&SCORES).unwrap_err();
    assert!(matches!(beyond, AlgoError::Parameter { parameter: "alpha", .. }));
    let unknown = "best".parse::<Aggregation>().unwrap_err().to_string();
    assert!(unknown.starts_with("unknown turn aggregation \"best\""), "{unknown}");
}

#[test]
fn the_original_s_reading_of_scores_drops_what_is_no_number() {
    let scores = Json::List(vec![
        Json::Null,
        Json::Integer("1".to_owned()),
        Json::Text(" 0.5 ".to_owned()),
        Json::Text("x".to_owned()),
        Json::Bool(true),
    ]);
    // 1, 0.5 and true, which is 1.
    let mean = compat::reward(&scores, Some(&Aggregation::Mean), &[]).unwrap();
    close(&[mean.unwrap()], &[2.5 / 3.0]);
    assert_eq!(compat::reward(&scores, None, &[]), Ok(None));
    assert_eq!(compat::reward(&Json::Float(0.7), None, &[]), Ok(Some(0.7)));
    assert_eq!(compat::reward(&Json::Null, Some(&Aggregation::Mean), &[]), Ok(None));
    // Null under the first key stops the search, so the second is not read.
    let info = [("turn_scores", Json::Null), ("interaction_reward", Json::Float(0.7))];
    let info = Json::Object(info.map(|(key, value)| (key.to_owned(), value)).into());
    assert_eq!(compat::trajectory_score(&info, Some(&Aggregation::Mean)), Ok(0.0));
}

/// A policy's turns of 2 and 1 tokens; the environment answers the first and ends at the second.
fn dialogue(limits: Limits, end: TurnEnd) -> Assembly {
    let mut dialogue = Assembly::new(&[1, 2], limits, end);
    dialogue.generated(&[11, 12]).unwrap();
    let reply = Reply { ends: false, score: Some(1.8), tokens: &[50, 51] };
    assert_eq!(dialogue.replied(reply), Ok(Step::Generate));
    dialogue.generated(&[13]).unwrap();
    let reply = Reply { ends: true, score: Some(0.0), tokens: &[52] };
    assert_eq!(dialogue.replied(reply), Ok(Step::Ended(Ending::Environment)));
    dialogue
}

const FREE: Limits = Limits { response_tokens: 100, assistant_turns: None, user_turns: None };

#[test]
fn a_dialogue_s_tokens_are_masked_by_who_wrote_them() {
    let own = dialogue(FREE, TurnEnd::Dropped).finish(EmptyResponse::Empty);
    assert_eq!(own.response, [11, 12, 50, 51, 13]);
    assert_eq!(own.mask, [true, true, false, false, true]);
    assert_eq!((own.turn_scores.as_slice(), own.turns()), (&[1.8][..], 4));
    // The original appends the empty message and its 0.
    let theirs = dialogue(FREE, TurnEnd::Compat).finish(EmptyResponse::Compat);
    assert_eq!(theirs.response, [11, 12, 50, 51, 13, 52]);
    assert_eq!((theirs.turn_scores.as_slice(), theirs.turns()), (&[1.8, 0.0][..], 5));
    // The user's turn may overrun; the response is cut.
    let cut = Limits { response_tokens: 3, ..FREE };
    let mut short = Assembly::new(&[1], cut, TurnEnd::Dropped);
    short.generated(&[7, 8]).unwrap();
    short.replied(Reply { ends: false, score: None, tokens: &[9, 9, 9] }).unwrap();
    assert_eq!(short.generated(&[6]), Ok(Step::Ended(Ending::ResponseTokens)));
    let short = short.finish(EmptyResponse::Empty);
    assert_eq!((short.response.as_slice(), short.mask.len()), (&[7, 8, 9][..], 3));
}

#[test]
fn a_dialogue_ends_at_its_limits_and_keeps_its_order() {
    let mut one = Assembly::new(&[], Limits { assistant_turns: Some(1), ..FREE }, TurnEnd::Dropped);
    assert_eq!(one.generated(&[5]), Ok(Step::Ended(Ending::AssistantTurns)));
    assert_eq!(
        one.generated(&[5]).unwrap_err().to_string(),
        "got the policy's turn, expected the end"
    );
    let mut none = Assembly::new(&[3], Limits { user_turns: Some(0), ..FREE }, TurnEnd::Dropped);
    assert_eq!(none.generated(&[]), Ok(Step::Ended(Ending::UserTurns)));
    // Without a response token the original's slice is the whole prompt.
    assert!(none.clone().finish(EmptyResponse::Empty).response.is_empty());
    assert_eq!(none.finish(EmptyResponse::Compat).response, [3]);
}

#[test]
fn a_turn_thinks_once_and_then_answers_once() {
    for (text, found) in [
        ("a <Thinking>t</thinking> b <answer>x</ANSWER> c", ThinkingAnswer::Holds),
        ("<thinking>t<answer>x</answer></thinking>", ThinkingAnswer::Holds),
        ("<answer>x</answer><thinking>t</thinking>", ThinkingAnswer::Order),
        ("</thinking><thinking><answer>x</answer>", ThinkingAnswer::MissingBlock),
        ("<thinking>t</thinking><answer>x</answer><answer>", ThinkingAnswer::TagCount),
        ("", ThinkingAnswer::Empty),
        // Python's patterns fold the dotless i.
        ("<th\u{131}nking></thinking><answer></answer>", ThinkingAnswer::Holds),
    ] {
        assert_eq!(ThinkingAnswer::check(text), found, "{text}");
    }
    assert_eq!(ThinkingAnswer::Holds.reward() + ThinkingAnswer::Order.reward(), 1.0);
}

#[test]
fn decimals_are_rounded_half_to_even_on_the_binary_value() {
    // 0.125 and 0.03125 are exact halves; 2.675 lies below its half.
    assert_eq!(round_half_even(0.125, 2), 0.12);
    assert_eq!(round_half_even(0.375, 2), 0.38);
    assert_eq!(round_half_even(0.03125, 4), 0.0312);
    assert_eq!(round_half_even(2.675, 2), 2.67);
    assert_eq!(round_half_even(f64::INFINITY, 4), f64::INFINITY);
}

#[test]
fn a_sum_in_halves_is_that_of_numpy() {
    // numpy.sum(numpy.full(1000, 0.1)) is 100.00000000000001, a loop's sum 99.9999999999986.
    assert_eq!(pairwise_sum(&[0.1; 1000]), 100.000_000_000_000_01);
    assert_eq!([0.1; 1000].iter().sum::<f64>(), 99.999_999_999_998_6);
    assert_eq!(pairwise_sum(&[]), 0.0);
}
