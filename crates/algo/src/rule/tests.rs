//! Rules on answers that one can check by eye.

use super::{Answer, Rule, RuleError, answers_equal, last_boxed, repetition_ratio};

fn score_of(json: &str, question: &str, response: &str, reference: Option<&str>) -> f64 {
    let answer = Answer { question, response, reference, response_tokens: 7 };
    Rule::from_json(json).unwrap().score(&answer).unwrap()
}

fn score(json: &str, response: &str) -> f64 {
    score_of(json, "How do I bake bread?", response, None)
}

#[test]
fn unknown_rules_keys_and_values_are_refused_by_name() {
    for (json, told) in [
        (r#"{"rule": "lenght", "max": 3}"#, "unknown variant `lenght`"),
        (r#"{"rule": "length", "maximum": 3}"#, "unknown field `maximum`"),
        (r#"{"max": 3}"#, "missing field `rule`"),
        (r#"{"rule": "regex"}"#, "missing field `pattern`"),
        (r#"{"rule": "regex", "pattern": "(a"}"#, "unclosed group"),
        (r#"{"rule": "regex", "pattern": "(\\w{1000}){1000}"}"#, "size limit"),
        (r#"{"rule": "length", "min": 9, "max": 3}"#, "rule length: min = 9, expected at most max"),
        (r#"{"rule": "all", "of": []}"#, "rule all: of = [], expected at least one rule"),
        (r#"{"rule": "not", "of": {"rule": "overlap", "enough": 0}}"#, "rule overlap: enough = 0"),
        (r#"{"rule": "keywords", "phrases": ["ok", "!"]}"#, "phrases = \"!\""),
        (r#"{"rule": "format", "open": ""}"#, "rule format: open"),
        (r#"{"rule": "boxed_answer", "strict": true}"#, "unknown field `strict`"),
        ("3", "not a rule"),
    ] {
        let refused = Rule::from_json(json).unwrap_err().to_string();
        assert!(refused.contains(told), "{json}: {refused}");
    }
}

#[test]
fn a_rule_survives_being_written_and_read() {
    let json = r#"{"rule":"weighted","of":[
        {"weight":0.9,"rule":{"rule":"regex","pattern":"(?i)yes","on_match":2.5}},
        {"weight":-0.1,"rule":{"rule":"keywords","phrases":["no"],"first_words":3}}]}"#;
    let rule = Rule::from_json(json).unwrap();
    assert_eq!(Rule::from_json(&serde_json::to_string(&rule).unwrap()).unwrap(), rule);
}

#[test]
fn format_asks_for_a_closed_block_and_an_answer() {
    let format = r#"{"rule": "format"}"#;
    assert_eq!(score(format, "so: <think>hm</think> Yes."), 1.0);
    for bad in
        ["Yes.", "<think>hm", "<think></think> x", "<think>hm</think>  \n", "a</think>b", "<think>"]
    {
        assert_eq!(score(format, bad), 0.0, "{bad}");
    }
    let boxed = r#"{"rule": "format", "boxed": true}"#;
    assert_eq!(score(boxed, "<think>hm</think> \\boxed{1}"), 1.0);
    assert_eq!(score(boxed, "<think>\\boxed{1}</think> \\boxed{1}"), 0.0);
    assert_eq!(score(boxed, "<think>hm</think> 1"), 0.0);
    assert_eq!(score(r#"{"rule":"format","open":"[","close":"]"}"#, "[é] ok"), 1.0);
}

#[test]
fn length_falls_over_the_ramp_on_both_sides() {
    let ramp = r#"{"rule": "length", "min": 2, "max": 4, "ramp": 2}"#;
    let of = |n: usize| score(ramp, &"word ".repeat(n));
    assert_eq!(
        [of(0), of(1), of(2), of(4), of(5), of(6), of(9)],
        [0.0, 0.5, 1.0, 1.0, 0.5, 0.0, 0.0]
    );
    assert_eq!(score(r#"{"rule": "length", "unit": "chars", "max": 2}"#, "éé"), 1.0);
    assert_eq!(score(r#"{"rule": "length", "unit": "tokens", "min": 7, "max": 7}"#, ""), 1.0);
    assert_eq!(score(r#"{"rule": "length", "min": 1}"#, "   "), 0.0);
}

#[test]
fn repetition_counts_grams_that_occurred_before() {
    // a b a b a b: bigrams ab ba ab ba ab, 5 of them, 2 distinct: 3/5.
    assert_eq!(repetition_ratio("a b A b a b", 2, 0), 0.6);
    assert_eq!(repetition_ratio("a b a", 2, 0), 0.0);
    assert_eq!(repetition_ratio("", 0, 0), 0.0);
    assert!(
        (score(r#"{"rule":"repetition","ngram":2,"min_tokens":0}"#, "a b a b a b") - 0.4).abs()
            < 1e-12
    );
}

#[test]
fn the_first_pattern_that_matches_gives_the_score() {
    let rule = r#"{"rule": "pattern_score", "otherwise": 0.1, "patterns": [
        {"pattern": "(?i)i can't", "score": 1.0}, {"pattern": "illegal", "score": 0.5}]}"#;
    assert_eq!(score(rule, "That is illegal and I can't help."), 1.0);
    assert_eq!(score(rule, "That is illegal."), 0.5);
    assert_eq!(score(rule, "Sure!"), 0.1);
    let regex = r#"{"rule": "regex", "pattern": "bread", "part": "question", "on_no_match": -1}"#;
    assert_eq!(score(regex, "x"), 1.0);
    assert_eq!(score_of(regex, "cake?", "x", None), -1.0);
    let after = r#"{"rule": "regex", "pattern": "bad", "part": "final_answer"}"#;
    assert_eq!(score(after, "<think>bad</think> good"), 0.0);
}

#[test]
fn boxed_answers_are_equal_by_text_or_exact_value() {
    assert_eq!(
        last_boxed(r"\boxed{1} then \boxed{\frac{1}{2}} and \boxed{3"),
        Some(r"\frac{1}{2}")
    );
    assert_eq!(last_boxed("none"), None);
    for (a, b) in [
        ("0.5", r"\frac{1}{2}"),
        (r"\dfrac12", "1/2"),
        ("-1,200", "-1200.0"),
        ("50\\%", "0.5"),
        (r"\text{Paris}", "paris"),
        (r"$\left( 1, 2 \right)$", "(1,2)"),
        ("7.", "7"),
        ("+3", "3"),
    ] {
        assert!(answers_equal(a, b), "{a} {b}");
    }
    for (a, b) in [("", ""), ("1/0", "1/0 "), ("12,34", "1234"), ("0.3333", "1/3"), ("x", "y")] {
        assert_eq!(answers_equal(a, b), a == "1/0", "{a} {b}");
    }
    let rule = r#"{"rule": "boxed_answer"}"#;
    let solved = r"<think>\boxed{9}</think> It is \boxed{4}.";
    assert_eq!(score_of(rule, "", solved, Some("4")), 1.0);
    assert_eq!(score_of(rule, "", solved, Some("9")), 0.0);
    let answer = Answer { question: "", response: solved, reference: None, response_tokens: 0 };
    assert_eq!(
        Rule::from_json(rule).unwrap().score(&answer),
        Err(RuleError::NoReference { rule: "boxed_answer" })
    );
}

#[test]
fn keywords_are_found_at_word_borders_with_any_apostrophe() {
    let rule = r#"{"rule": "keywords", "phrases": ["I can't help", "sorry"]}"#;
    assert_eq!(score(rule, "Well... I can\u{2019}t  HELP, no."), 1.0);
    assert_eq!(score(rule, "Not sorrys"), 0.0);
    let share = r#"{"rule": "keywords", "phrases": ["flour", "oven"], "need": "share"}"#;
    assert_eq!(score(share, "Heat the oven."), 0.5);
    let all = r#"{"rule": "keywords", "phrases": ["flour", "oven"], "need": "all"}"#;
    assert_eq!(score(all, "Flour, then the oven."), 1.0);
    let early = r#"{"rule": "keywords", "phrases": ["sorry"], "first_words": 2}"#;
    assert_eq!(score(early, "I'm sorry"), 1.0);
    assert_eq!(score(early, "I am sorry"), 0.0);
}

#[test]
fn overlap_is_the_share_of_content_words_taken_up() {
    // Content words of the question: bake, bread ("how", "do", "i" carry none).
    let rule = r#"{"rule": "overlap"}"#;
    assert_eq!(score(rule, "Breads rise."), 0.5 + 0.0);
    assert_eq!(score(rule, "To bake bread, wait."), 1.0);
    assert_eq!(score_of(rule, "How do you do?", "x", None), 1.0);
    let floor = r#"{"rule": "overlap", "floor": 0.4, "enough": 0.5}"#;
    assert_eq!(score(floor, "Nothing."), 0.4);
    assert_eq!(score(floor, "Bread."), 1.0);
    let reference = r#"{"rule": "overlap", "with": "reference"}"#;
    assert_eq!(score_of(reference, "", "paris", Some("Paris")), 1.0);
}

#[test]
fn composite_rules_take_the_least_greatest_product_complement_and_sum() {
    let long = r#"{"rule": "length", "min": 3, "ramp": 4}"#;
    let yes = r#"{"rule": "regex", "pattern": "yes"}"#;
    let of = |kind: &str, response: &str| {
        score(&format!(r#"{{"rule": "{kind}", "of": [{long}, {yes}]}}"#), response)
    };
    // "yes": 1 word of 3, ramp 4: length scores 0.5.
    assert_eq!([of("all", "yes"), of("any", "yes"), of("product", "yes")], [0.5, 1.0, 0.5]);
    assert_eq!([of("all", "no"), of("any", "no"), of("product", "no")], [0.0, 0.5, 0.0]);
    assert_eq!(score(&format!(r#"{{"rule": "not", "of": {long}}}"#), "yes"), 0.5);
    let sum = format!(
        r#"{{"rule": "weighted", "of": [{{"weight": 3, "rule": {long}}}, {{"weight": -1, "rule": {yes}}}]}}"#
    );
    assert_eq!(score(&sum, "yes"), 0.5);
}

#[test]
fn long_hostile_text_is_scored_in_linear_time() {
    let text = "\\boxed{".repeat(200_000);
    let nested = format!("{}{}", "<think>".repeat(50_000), "a ".repeat(200_000));
    let started = std::time::Instant::now();
    assert_eq!(last_boxed(&text), None);
    for rule in [
        r#"{"rule": "format", "boxed": true}"#,
        r#"{"rule": "regex", "pattern": "(a+)+ (a+)+$"}"#,
        r#"{"rule": "repetition"}"#,
        r#"{"rule": "overlap"}"#,
    ] {
        score(rule, &nested);
    }
    assert!(started.elapsed().as_secs() < 20, "took {:?}", started.elapsed());
}
