//! Each form of a row by hand: what goes in, what comes out.

use serde_json::{Value, json};

use crate::literal::python_literal;
use crate::prompt_row::{RowError, RowFormat};
use crate::reference::normalise_reference;
use crate::safety_row::{Split, SplitError, safety_rows};

#[test]
fn python_literals_become_json() {
    for (text, value) in [
        ("['9']", json!(["9"])),
        ("(1,)", json!([1])),
        ("(1)", json!(1)),
        ("()", json!([])),
        (
            "[1, -2.5, +3, 1_000, 0x1f, .5, 1., 2e-3]",
            json!([1, -2.5, 3, 1000, 31, 0.5, 1.0, 0.002]),
        ),
        ("[-(1), (-1)]", json!([-1, -1])),
        ("[None, True, False,]", json!([null, true, false])),
        ("{'a': [1], 2: 'b'}", json!({"a": [1], "2": "b"})),
        ("{1, 2}", json!([1, 2])),
        ("{}", json!({})),
        ("()#(1)", json!([])),
        ("[1],[2]", json!([[1], [2]])),
        ("[ # one\n 'a' \"b\"\n]", json!(["ab"])),
        (
            r"['\x41\u00e9\n\101\d', r'\n', u'x', '''a
b''']",
            json!(["Aé\nA\\d", "\\n", "x", "a\nb"]),
        ),
        ("['it''s']", json!(["its"])),
    ] {
        assert_eq!(python_literal(text), Some(value), "{text}");
    }
}

#[test]
fn what_python_refuses_is_no_literal() {
    let nested = "[".repeat(300) + &"]".repeat(300);
    let signs = format!("[{}1]", "-".repeat(100_000));
    for text in [
        "",
        "[",
        "[1",
        "[1 2]",
        "[,]",
        "[1,,2]",
        "[true]",
        "[x]",
        "[1+2]",
        "[007]",
        "[1__0]",
        "[1_]",
        "[--1]",
        "[-True]",
        "[1]\n,[2]",
        "(1)(2)",
        "[1][0]",
        "{1: 2, 3}",
        "['a\nb']",
        "['a",
        r"['\x4']",
        "[b'a']",
        "[f'a']",
        "[1j]",
        "[1a]",
        "[1e999]",
        "[0x]",
        nested.as_str(),
        signs.as_str(),
    ] {
        assert_eq!(python_literal(text), None, "{text}");
    }
}

#[test]
fn references_are_unwrapped_once() {
    for (given, normal) in [
        (json!({"value": " x "}), json!("x")),
        (json!({"value": null, "ground_truth": "g"}), Value::Null),
        (json!({"other": 1}), json!({"other": 1})),
        (json!(["['9']"]), json!("['9']")),
        (json!([" z "]), json!(" z ")),
        (json!("[None]"), Value::Null),
        (json!("[x]"), json!("[x]")),
        (json!("(1, 2)"), json!([1, 2])),
        (json!("[3.50]"), json!(3.5)),
        (json!([]), json!([])),
        (json!(true), json!(true)),
        (json!("\u{1f}\u{3000}a\u{200b}"), json!("a\u{200b}")),
    ] {
        assert_eq!(normalise_reference(&given), normal, "{given}");
    }
}

#[test]
fn a_row_takes_the_first_user_message_and_the_first_reference_there_is() {
    let format = RowFormat {
        system_prompt: Some("S".to_owned()),
        input_template: Some("Q: {}!".to_owned()),
        ..RowFormat::default()
    };
    let row = format
        .read(&json!({
            "input": [
                {"role": "assistant", "content": "no"},
                {"role": "user", "content": [
                    {"type": "text", "text": "a<image>"}, {"type": "image"}, {"type": "text"},
                    {"type": "text", "text": "b"}]},
                {"role": "user", "content": "second"}],
            "images": ["i.png"],
            "reference": "[None]",
            "reward_model": {"ground_truth": null},
            "extra_info": {"constraints": ["c"], "label": "safety"},
        }))
        .unwrap();
    // The texts "a<image>", "" and "b" with blanks between: "a<image>  b".
    assert_eq!(row.user, "Q: a  b!");
    assert_eq!(row.reference, json!("c"));
    assert_eq!(row.label, json!("safety"));
    assert_eq!(
        row.plain(),
        json!([{"role": "system", "content": "S"}, {"role": "user", "content": "<image> Q: a  b!"}])
    );
    assert_eq!(row.segments()[1]["content"][0], json!({"type": "image", "image": ""}));
}

#[test]
fn rows_without_a_user_text_are_refused_by_what_they_hold() {
    let read = |prompt: Value| RowFormat::default().read(&json!({"input": prompt})).unwrap_err();
    assert_eq!(read(json!([{"from": "human", "value": "hi"}])), RowError::NoUserMessage);
    assert_eq!(read(json!({})), RowError::NotAConversation("{}".to_owned()));
    assert_eq!(read(json!(3)), RowError::NotAConversation("3".to_owned()));
    assert_eq!(read(json!({"value": 3})), RowError::NotText("3".to_owned()));
    assert_eq!(read(json!({"content": ["x"]})), RowError::NotText("\"x\"".to_owned()));
    let nothing = RowFormat::default().read(&json!({})).unwrap_err();
    assert_eq!(nothing, RowError::NotAConversation("null".to_owned()));
    let twice = RowFormat { input_template: Some("{}{}".to_owned()), ..RowFormat::default() };
    assert!(matches!(twice.read(&json!({"input": "q"})), Err(RowError::Template(_))));
}

#[test]
fn safety_rows_keep_labels_and_lack_what_the_data_lacks() {
    let examples = [
        json!({"prompt": "p", "is_response_0_safe": false, "safer_response_id": 1}),
        json!({"prompt": ""}),
    ];
    let rows = safety_rows(&examples, "test").unwrap();
    assert_eq!(rows[0].extra_info.is_response_0_safe, json!(false));
    assert_eq!(rows[0].extra_info.better_response_id, Value::Null);
    assert_eq!((rows[1].extra_info.index, rows[1].extra_info.split.as_str()), (1, "test"));
    let missing = safety_rows(&[json!({"prompt": "p"}), json!({})], "train").unwrap_err();
    assert_eq!(missing, RowError::Missing { row: 1, key: "prompt" });
}

#[test]
fn validation_is_the_test_rows_or_the_last_of_the_training_rows() {
    let rows = |n: usize| (0..n).collect::<Vec<_>>();
    // floor(0.9 * 7) = 6.
    assert_eq!(Split::default().divide(rows(7), vec![]), Ok((rows(6), vec![6])));
    assert_eq!(Split::default().divide(rows(2), vec![9]), Ok((rows(2), vec![9])));
    // floor(0.9 * 1) = 0 rows to train on.
    let none = Split::default().divide(rows(1), vec![]);
    assert_eq!(none, Err(SplitError::NoTrainingRows { train: 1, test: 0, ratio: 0.9 }));
    let wrong = Split { train_ratio: 1.5, ..Split::default() }.divide(rows(1), vec![]);
    assert_eq!(wrong, Err(SplitError::Ratio(1.5)));
}

#[test]
fn shuffling_moves_no_row_to_the_other_side_and_hangs_on_the_seed_alone() {
    let divide = |seed| {
        let split = Split { train_ratio: 0.5, shuffle_seed: Some(seed) };
        split.divide((0..100).collect::<Vec<_>>(), vec![]).unwrap()
    };
    let (mut train, mut validation) = divide(1);
    assert_eq!((train.clone(), validation.clone()), divide(1));
    assert_ne!(train, divide(2).0);
    train.sort_unstable();
    validation.sort_unstable();
    assert_eq!((train, validation), ((0..50).collect(), (50..100).collect()));
}
