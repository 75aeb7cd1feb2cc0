//! safe-rlhf's data functions on examples small enough to check by hand.

mod rows;

use std::path::Path;

use serde_json::{Value, json};

use crate::preprocess::{self, IGNORE_INDEX, Tokenizer};
use crate::{
    DatasetSpec, Input, MixtureError, NoTest, PROMPT_ASSISTANT, Part, Proportion, RawSample,
    SafeFlags, SampleError, TestSplit, format_prompt, merge, select, split_prompt_response,
};

/// One id a character, its code; 0 for `|`, the end of an answer. At most `longest` ids.
struct Letters {
    longest: usize,
}

impl Tokenizer for Letters {
    fn encode(&self, text: &str) -> Result<Vec<u32>, String> {
        if text.contains('\0') {
            return Err("a zero byte".to_owned());
        }
        let id = |c| if c == '|' { 0 } else { u32::from(c) };
        Ok(text.chars().map(id).take(self.longest).collect())
    }

    fn eos_token(&self) -> &'static str {
        "|"
    }
}

const LETTERS: Letters = Letters { longest: usize::MAX };

fn raw(json: Value) -> RawSample {
    RawSample::from_json(&json).unwrap()
}

/// Those characters whose labels are not masked.
fn learnt(sample: &preprocess::SupervisedSample) -> String {
    assert_eq!(sample.input_ids.len(), sample.labels.len());
    let kept = sample.labels.iter().filter(|label| **label != IGNORE_INDEX);
    kept.map(|label| if *label == 0 { '|' } else { char::from(*label as u8) }).collect()
}

#[test]
fn prompts_alternate_and_end_with_the_user() {
    assert_eq!(
        format_prompt(&["{hi}"], "|").unwrap(),
        "BEGINNING OF CONVERSATION: USER: {hi} ASSISTANT:"
    );
    assert_eq!(
        format_prompt(&["a", "b", ""], "|").unwrap(),
        "BEGINNING OF CONVERSATION: USER: a ASSISTANT:b|USER:  ASSISTANT:"
    );
    for turns in [&[][..], &["a", "b"]] {
        let refused = format_prompt(turns, "|").unwrap_err();
        assert_eq!(refused, SampleError::EvenTurns { turns: turns.len() });
    }
}

#[test]
fn a_conversation_is_cut_after_the_last_marker() {
    let cut = split_prompt_response("USER: a ASSISTANT:b ASSISTANT:é", PROMPT_ASSISTANT);
    assert_eq!(cut.unwrap(), ("USER: a ASSISTANT:b ASSISTANT:", "é"));
    for (text, token) in [
        ("no marker", "ASSISTANT:"),
        ("ASSISTANT:only a response", "ASSISTANT:"),
        ("only a prompt ASSISTANT:", "ASSISTANT:"),
        ("text", ""),
        ("", "x"),
    ] {
        let refused = split_prompt_response(text, token);
        assert!(matches!(refused, Err(SampleError::NoResponse { .. })), "{text:?}");
    }
}

#[test]
fn supervised_samples_learn_what_the_assistant_says() {
    let one = raw(json!({"input": "2+2?", "answer": "4"}));
    let one = preprocess::supervised(&one, &LETTERS).unwrap();
    assert_eq!(learnt(&one), "4|");
    // "BEGINNING OF CONVERSATION: " 27, "USER: 2+2? " 11, "ASSISTANT:" 10, "4|" 2.
    assert_eq!(one.input_ids.len(), 27 + 11 + 10 + 2);
    let two = raw(json!({"dialogue": ["hi", "yo", "bye", "cya", "and?"]}));
    assert_eq!(learnt(&preprocess::supervised(&two, &LETTERS).unwrap()), "yo|cya|");
    let none = preprocess::supervised(&raw(json!({"dialogue": []})), &LETTERS).unwrap();
    assert!(none.input_ids.is_empty() && none.labels.is_empty());
    // Cut within the prompt: nothing is left to learn, and nothing breaks.
    for longest in [10, 50] {
        let cut = Letters { longest };
        let one = raw(json!({"input": "2+2?", "answer": "4444"}));
        let one = preprocess::supervised(&one, &cut).unwrap();
        assert_eq!(learnt(&one), if longest == 10 { "" } else { "44" });
        let two = raw(json!({"dialogue": ["hi", "yo", "bye", "cya"]}));
        let two = preprocess::supervised(&two, &cut).unwrap();
        assert_eq!(learnt(&two), if longest == 10 { "" } else { "yo|" });
    }
}

#[test]
fn supervised_samples_are_of_one_form() {
    let refused = |json| preprocess::supervised(&raw(json), &LETTERS).unwrap_err();
    assert_eq!(refused(json!({"answer": "4"})), SampleError::NoInput);
    assert_eq!(refused(json!({"input": null})), SampleError::NoInput);
    assert_eq!(refused(json!({"input": "a"})), SampleError::Missing { field: "answer" });
    let both = json!({"input": "a", "dialogue": ["a"]});
    assert_eq!(refused(both), SampleError::InputAndDialogue);
    let turns = refused(json!({"input": ["a", "b", "c"], "answer": "d"}));
    assert!(matches!(turns, SampleError::FieldType { field: "input", .. }));
    let unreadable = refused(json!({"input": "a\u{0}", "answer": "b"}));
    assert_eq!(unreadable, SampleError::Tokenizer("a zero byte".to_owned()));
}

#[test]
fn pairs_are_ordered_by_their_flags() {
    let row =
        json!({"input": ["a", "b", "c"], "answer": "X", "other_answer": "Y", "better": false});
    let pair = preprocess::preference(&raw(row.clone()), &LETTERS).unwrap();
    let tail = |ids: &[u32]| [ids[ids.len() - 2], ids[ids.len() - 1]];
    assert_eq!(tail(&pair.better_input_ids), [u32::from('Y'), 0]);
    assert_eq!(tail(&pair.worse_input_ids), [u32::from('X'), 0]);
    // The prompt and X or Y and eos.
    let prompt = preprocess::prompt_only(&raw(row.clone()), &LETTERS).unwrap();
    assert_eq!(pair.better_input_ids.len(), prompt.len() + 2);
    assert_eq!(pair.better_input_ids[..prompt.len()], prompt);
    let mut same = row;
    same["other_answer"] = "X".into();
    let same = preprocess::preference(&raw(same), &LETTERS).unwrap_err();
    assert_eq!(same, SampleError::SameAnswers { tokens: prompt.len() + 2 });
}

#[test]
fn safety_pairs_carry_signs_that_agree_with_their_order() {
    let row = |safer: bool, is_safe: bool, is_other_safe: bool| {
        raw(json!({
            "input": "q", "answer": "X", "other_answer": "Y",
            "safer": safer, "is_safe": is_safe, "is_other_safe": is_other_safe,
        }))
    };
    let pair = |sample: &RawSample| preprocess::safety_preference(sample, &LETTERS);
    let first = pair(&row(true, true, false)).unwrap();
    assert_eq!((first.safer_sign, first.unsafer_sign), (1, -1));
    assert_eq!(first.safer_input_ids[first.safer_input_ids.len() - 2], u32::from('X'));
    let second = pair(&row(false, false, true)).unwrap();
    assert_eq!((second.safer_sign, second.unsafer_sign), (1, -1));
    assert_eq!(second.safer_input_ids[second.safer_input_ids.len() - 2], u32::from('Y'));
    for safe in [true, false] {
        let both = pair(&row(true, safe, safe)).unwrap();
        assert_eq!(both.safer_sign, both.unsafer_sign);
    }
    for sample in [row(true, false, true), row(false, true, false)] {
        assert_eq!(pair(&sample).unwrap_err(), SampleError::SaferIsUnsafe);
    }
    let missing = RawSample { is_safe: None, ..row(true, true, true) };
    assert_eq!(pair(&missing).unwrap_err(), SampleError::Missing { field: "is_safe" });
}

#[test]
fn a_pku_row_compares_its_first_response_with_its_second() {
    let row = json!({
        "prompt": "p", "response_0": "a", "response_1": "b",
        "better_response_id": "1", "safer_response_id": 0.0,
        "is_response_0_safe": 1, "is_response_1_safe": false, "severity": 3,
    });
    let sample = RawSample::from_pku_saferlhf(&row, SafeFlags::Strict).unwrap();
    let expected = RawSample {
        input: Some(Input::Question("p".to_owned())),
        answer: Some("a".to_owned()),
        other_answer: Some("b".to_owned()),
        dialogue: None,
        better: Some(false),
        safer: Some(true),
        is_safe: Some(true),
        is_other_safe: Some(false),
    };
    assert_eq!(sample, expected);
    let mut missing = row.clone();
    missing.as_object_mut().unwrap().remove("response_1");
    let missing = RawSample::from_pku_saferlhf(&missing, SafeFlags::Strict).unwrap_err();
    assert_eq!(missing, SampleError::Missing { field: "response_1" });
    for (field, value) in [
        ("better_response_id", json!(null)),
        ("better_response_id", json!("one")),
        ("prompt", json!(5)),
        ("is_response_0_safe", json!("false")),
    ] {
        let mut wrong = row.clone();
        wrong[field] = value;
        let wrong = RawSample::from_pku_saferlhf(&wrong, SafeFlags::Strict).unwrap_err();
        assert!(matches!(wrong, SampleError::FieldType { .. }), "{field}: {wrong}");
    }
    let truthy = |value: Value| {
        let mut loose = row.clone();
        loose["is_response_0_safe"] = value;
        RawSample::from_pku_saferlhf(&loose, SafeFlags::CompatTruthy).unwrap().is_safe.unwrap()
    };
    for value in [json!("false"), json!(2), json!([0]), json!({"a": 0}), json!(true)] {
        assert!(truthy(value.clone()), "{value}");
    }
    for value in [json!(null), json!(""), json!(0.0), json!([]), json!({}), json!(false)] {
        assert!(!truthy(value.clone()), "{value}");
    }
    let list = RawSample::from_pku_saferlhf(&json!([1]), SafeFlags::Strict).unwrap_err();
    assert_eq!(list, SampleError::NotAnObject { got: "[1]".to_owned() });
}

#[test]
fn a_data_set_is_named_with_a_proportion_and_a_path() {
    let spec = |text: &str| text.parse::<DatasetSpec>();
    let proportion = |text: &str| spec(text).unwrap().proportion;
    for (text, expected) in [
        ("a", Proportion::Ratio(1.0)),
        ("a:", Proportion::Ratio(1.0)),
        ("a::/p", Proportion::Ratio(1.0)),
        ("a: .5 ", Proportion::Ratio(0.5)),
        ("a:1_0", Proportion::Ratio(10.0)),
        ("a:-0.5", Proportion::Ratio(-0.5)),
        ("a:1 / 4", Proportion::Ratio(0.25)),
        ("a:1/-1.0", Proportion::Ratio(-1.0)),
        ("a:inf", Proportion::Ratio(f64::INFINITY)),
        ("a: 100 / -1 ", Proportion::Count(100)),
        ("a:-3/-1", Proportion::Count(-3)),
        ("a:0/-1", Proportion::Ratio(0.0)),
    ] {
        assert_eq!(proportion(text), expected, "{text:?}");
    }
    for text in ["a: ", "a:x", "a:1/0", "a:1.5/-1", "a:1/2/-1", "a:/", "a:nan", "a:1__0", "a:_1"] {
        assert!(matches!(spec(text), Err(MixtureError::Proportion { .. })), "{text:?}");
    }
    assert!(matches!(spec("a:1:p:q"), Err(MixtureError::Colons { .. })));
    for text in ["a:0.5:", "a::"] {
        assert!(matches!(spec(text), Err(MixtureError::NoPath { .. })), "{text:?}");
    }
    let home = Path::new("/home/me");
    for (text, expected) in
        [("a::~/x", "/home/me/x"), ("a::~", "/home/me"), ("a::~me/x", "~me/x"), ("a::/x", "/x")]
    {
        assert_eq!(spec(text).unwrap().path_from(home).unwrap(), Path::new(expected));
    }
    assert_eq!(spec("a").unwrap().path_from(home), None);
}

fn part(size: usize, proportion: Proportion) -> Part {
    Part { name: format!("{size} {proportion:?}"), size, proportion }
}

#[test]
fn selections_repeat_whole_data_sets_and_then_choose() {
    let selected = |size, proportion| select(&part(size, proportion), 7, 0).unwrap();
    // round(4 * 2.5) = 10: twice all four, then two.
    let ten = selected(4, Proportion::Ratio(2.5));
    assert_eq!(ten[..8], [0, 1, 2, 3, 0, 1, 2, 3]);
    assert_eq!(ten.len(), 10);
    assert_ne!(ten[8], ten[9]);
    // Halves to even: 0.5 is 0, 1.5 is 2, 2.5 is 2.
    for (size, expected) in [(1, 0), (3, 2), (5, 2)] {
        assert_eq!(selected(size, Proportion::Ratio(0.5)).len(), expected);
    }
    assert_eq!(selected(3, Proportion::Ratio(1.0)), [0, 1, 2]);
    assert_eq!(selected(3, Proportion::Count(3)), [0, 1, 2]);
    assert_eq!(selected(3, Proportion::Count(4)).len(), 4);
    assert!(selected(0, Proportion::Ratio(3.0)).is_empty());
    for proportion in [
        Proportion::Ratio(-0.1),
        Proportion::Ratio(f64::INFINITY),
        Proportion::Ratio(f64::NAN),
        Proportion::Count(-3),
    ] {
        let refused = select(&part(3, proportion), 7, 0);
        assert!(matches!(refused, Err(MixtureError::OutOfRange { .. })), "{proportion:?}");
    }
    let none = select(&part(0, Proportion::Count(2)), 7, 0).unwrap_err();
    assert!(matches!(none, MixtureError::NoSamples { asked: 2, .. }));
    let twice = [part(2, Proportion::default()), part(2, Proportion::default())];
    assert!(matches!(merge(&twice, 7), Err(MixtureError::SameName { .. })));
}

#[test]
fn the_choice_is_the_documented_one() {
    // ChaCha8, seed 42, stream 1: pinned, so that a run can be repeated with a later version.
    let chosen = select(&part(1000, Proportion::Count(4)), 42, 1).unwrap();
    assert_eq!(chosen, PINNED);
    assert_ne!(select(&part(1000, Proportion::Count(4)), 42, 0).unwrap(), PINNED);
    assert_ne!(select(&part(1000, Proportion::Count(4)), 43, 1).unwrap(), PINNED);
}

const PINNED: [usize; 4] = [716, 167, 483, 846];

#[test]
fn the_last_samples_are_the_test() {
    let plain = TestSplit { share: 0.5, shuffle: false, ..TestSplit::default() };
    // round(5 * 0.5) = 2.
    assert_eq!(plain.split(5).unwrap(), (vec![0, 1, 2], vec![3, 4]));
    assert_eq!(plain.split(0).unwrap(), (vec![], vec![]));
    let all = TestSplit { share: 1.0, ..plain };
    assert_eq!(all.split(2).unwrap(), (vec![], vec![0, 1]));
    // round(1 * 0.5) = 0: all for training, or, by the original's slices, all for the test.
    assert_eq!(plain.split(1).unwrap(), (vec![0], vec![]));
    let compat = TestSplit { no_test: NoTest::CompatSlice, ..plain };
    assert_eq!(compat.split(1).unwrap(), (vec![], vec![0]));
    assert_eq!(compat.split(5).unwrap(), (vec![0, 1, 2], vec![3, 4]));
    // [:-15] of 10 is nothing; -2 test samples cut after the first two.
    assert_eq!(TestSplit { share: 1.5, ..compat }.split(10).unwrap().0.len(), 0);
    assert_eq!(TestSplit { share: -0.2, ..compat }.split(10).unwrap().0, [0, 1]);
    for share in [-0.2, 1.5, f64::NAN] {
        let refused = TestSplit { share, ..plain }.split(10);
        assert!(matches!(refused, Err(MixtureError::TestShare { .. })), "{share}");
    }
    assert!(TestSplit { share: f64::NAN, ..compat }.split(10).is_err());
}
