//! What the rules read in a response: repetition, the boxed answer, numbers, the format, and the
//! words.

#![no_main]

use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use plumb_algo::rule::{Answer, Rule, answers_equal, last_boxed, repetition_ratio, text};

/// Rules whose scores lie in `[0, 1]`.
static RULES: LazyLock<Vec<Rule>> = LazyLock::new(|| {
    [
        r#"{"rule": "format"}"#,
        r#"{"rule": "format", "boxed": true}"#,
        r#"{"rule": "repetition"}"#,
        r#"{"rule": "boxed_answer"}"#,
        r#"{"rule": "length", "min": 3, "max": 9, "ramp": 2}"#,
        r#"{"rule": "overlap"}"#,
        r#"{"rule": "keywords", "phrases": ["I can't help", "bread"], "need": "share"}"#,
        r#"{"rule": "regex", "pattern": "(a+)+ (a+)+$", "part": "final_answer"}"#,
    ]
    .map(|json| Rule::from_json(json).expect("a rule"))
    .into()
});

fuzz_target!(|data: &[u8]| plumb_fuzz::check(data, |text| {
    for (ngram, min_tokens) in [(0, 0), (1, 2), (3, 12), (64, 0)] {
        let ratio = repetition_ratio(text, ngram, min_tokens);
        assert!((0.0..1.0).contains(&ratio), "ratio {ratio} of {ngram}-grams");
    }
    let boxed = last_boxed(text);
    assert!(boxed.is_none_or(|inner| text.contains(inner)));
    let (given, reference) = text.split_once('\n').unwrap_or((text, text));
    assert_eq!(answers_equal(given, reference), answers_equal(reference, given));
    assert!(text::words(text).all(|word| !word.is_empty()));
    let answer =
        Answer { question: given, response: text, reference: Some(reference), response_tokens: 1 };
    for rule in RULES.iter() {
        let score = rule.score(&answer).expect("the reference is given");
        assert!((0.0..=1.0).contains(&score), "{rule:?} scored {score}");
    }
}));
