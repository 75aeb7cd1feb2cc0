//! Answer equality: what is the same answer, and what is not.

use std::collections::BTreeSet;

use crate::mix::Mix;
use crate::rule::{Answer, Equality, Rule};

/// Groups of answers: all of one group are the same, two of different groups are not.
const BY_VALUE: [&[&str]; 22] = [
    &["1/2", "0.5", r"\frac{1}{2}", r"\dfrac12", "2/4", "50%", r"50\%", ".5", "$ 1 / 2 $", "5e-1"],
    &["4", "4.0", "8/2", "x=4", "$4$", "4 cm", "2^2", "(4)", r"\text{4}", "+4", r"\sqrt{16}", "4."],
    &["1,234,567", "1234567.0", r"1{,}234{,}567", r"1,\!234,\!567", r"1.234567 \times 10^{6}"],
    &[r"2\sqrt{3}", r"\sqrt{12}", "√12", "2*sqrt(3)", r"\frac{6}{\sqrt{3}}", r"12^{\frac{1}{2}}"],
    &["(1,2)", r"\left( 1, \frac{4}{2} \right)", "(1.0,2)"],
    &["(2,1)"],
    &["[1,2]"],
    &["(1,2]", "(1, 4/2]"],
    &[r"\{1,2\}", "{2, 1}", "1 or 2", "2,1", "1 and 2"],
    &["x^2+2x+1", "(x+1)^2", "(1+x)(x+1)", "x(x+2)+1"],
    &["a^2-b^2", "(a-b)(a+b)", "(a - b)*(b + a)"],
    &["abc", "a*b*c", "cab"],
    &["7/2 + 0", r"3\frac{1}{2}", "3 1/2", "3.5"],
    &[r"-3\frac{1}{2}", "-3 1/2", "-7/2", "−3.5"],
    &["pi", "π", r"\pi", r"\frac{2\pi}{2}"],
    &["3.14159"],
    &[r"\frac{x+1}{y}", "(x+1)/y", "x/y+1/y", r"y^{-1}(x+1)"],
    &["x/y+1", r"1+\frac xy"],
    &["30°", r"30^\circ", r"30^{\circ}", "30 degrees", r"30 \text{ degrees}"],
    &[r"\text{Paris}", "paris"],
    &["1/3", "2/6"],
    &["0.3333333333"],
];

#[test]
fn equal_values_are_equal_answers_and_others_are_not() {
    let all =
        || BY_VALUE.iter().enumerate().flat_map(|(g, group)| group.iter().map(move |a| (g, a)));
    for (g, a) in all() {
        for (h, b) in all() {
            assert_eq!(Equality::Value.holds(a, b), g == h, "{a} and {b}");
        }
    }
}

#[test]
fn what_is_no_answer_equals_nothing_and_variables_are_not_units() {
    for (a, b) in [
        ("", ""),
        ("$$", ""),
        ("1/0", "2/0"),
        ("5 cm", "5 kg"),
        ("30 cm", "30 cm^2"),
        ("x=5", "y=5"),
        ("2m", "2"),
        ("x+1", "x+"),
        ("sqrt(x^2)", "x"),
        ("12,34", "1234"),
        ("Yes", "No"),
    ] {
        assert!(!Equality::Value.holds(a, b), "{a} and {b}");
    }
    // Bounds on length and depth.
    let long = "1+".repeat(1000) + "1";
    assert!(!Equality::Value.holds(&long, "1001") && Equality::Value.holds(&long, &long));
    assert!(!Equality::Value.holds(&("(".repeat(200) + "1" + &")".repeat(200)), "1"));
}

/// Pairs that mathruler 0.1.0 with sympy 1.14 was asked about, and what it said.
#[test]
fn mathruler_has_its_own_idea_of_equality() {
    for (given, reference, equal) in [
        ("2/4", "1/2", false),
        ("0.5", "1/2", true),
        ("8/2", "4", false),
        ("4.00000000001", "4", true),
        ("50%", "50", true),
        ("50%", "0.5", false),
        ("4 cm", "4 meters", true),
        ("1,000,000", "1000000", true),
        ("1,000,000,000", "1000000000", false),
        (r"\frac{1+x}{2}", r"\frac{x+1}{2}", false),
        ("(x+1)^2", "x^2+2x+1", true),
        ("a^2-b^2+c-c", "a^2-b^2", false),
        (r"\sqrt{12}", r"2\sqrt{3}", true),
        ("√12", r"2\sqrt{3}", false),
        ("ab^-1", "a/b", true),
        ("x2", "2x", true),
        ("(1, 2/2)", "(1,1)", false),
        ("(0.5,1)", r"(\frac{1}{2},1)", true),
        ("[1,2]", "(1,2)", false),
        ("1 or 2", "1,2", true),
        ("2,1", "1,2", false),
        (r"3\frac{1}{2}", "3.5", true),
        (r"\pi", "π", false),
        ("pi/2.0", r"\frac{\pi}{2}", true),
        ("x = 5", "5", true),
        ("xy=5", "5", true),
        ("2^{10}", "1024", false),
        ("", "", true),
        ("PARIS", r"\text{Paris}", true),
        ("1 million", "10^6", true),
    ] {
        assert_eq!(Equality::Mathruler.holds(given, reference), equal, "{given} for {reference}");
    }
}

fn score(rule: &str, response: &str, reference: Option<&str>) -> f64 {
    let answer = Answer { question: "", response, reference, response_tokens: 0 };
    Rule::from_json(rule).unwrap().score(&answer).unwrap()
}

#[test]
fn the_box_is_found_as_the_original_finds_it() {
    let rule = r#"{"rule": "boxed_answer", "equality": "mathruler"}"#;
    assert_eq!(score(rule, r"</think> \boxed{3} \boxed{ 4 }", Some("4")), 1.0);
    // The last box is not closed: the answer is "None".
    assert_eq!(score(rule, r"\boxed{4} \boxed{3", Some("4")), 0.0);
    assert_eq!(score(rule, "no box", Some("none")), 1.0);
    assert_eq!(score(rule, r"\boxed{4}</think>", Some("4")), 0.0);
    assert_eq!(score(rule, r"\boxed{4}", None), 0.0);
    let whole = r#"{"rule": "boxed_answer", "equality": "mathruler", "part": "response"}"#;
    assert_eq!(score(whole, r"\boxed{4}</think>", Some("4")), 1.0);
    assert!(Rule::from_json(r#"{"rule": "boxed_answer", "part": "question"}"#).is_err());
}

#[test]
fn geo3k_asks_that_the_first_block_closes_before_the_first_box() {
    let rule = r#"{"rule": "format", "boxed": true}"#;
    for (response, holds) in [
        (r"<think></think>\boxed{1}", 1.0),
        (r"<think>a</think> then <think>\boxed{1}", 1.0),
        (r"\boxed{1} <think>a</think> \boxed{1}", 0.0),
        (r"<think>\boxed{1}</think> \boxed{1}", 0.0),
        (r"<think>a</think> \boxed{1", 0.0),
        (r"<think>a \boxed{1}", 0.0),
    ] {
        assert_eq!(score(rule, response, None), holds, "{response}");
    }
}

#[test]
fn safework_mixes_by_label() {
    let page = include_str!("../../../../docs/safework.md");
    let block = page.split("```json").nth(1).and_then(|rest| rest.split("```").next()).unwrap();
    let mix: Mix = serde_json::from_str(block).unwrap();
    let total = |label: &str| {
        let score = |component: &str| match component {
            "format" => Ok(1.0),
            "maths" => Ok(0.9),
            "safety" => Ok(0.1),
            "normal" | "knowledge" | "rule" | "if_rule" => Ok(0.5),
            other => Err(other.to_owned()),
        };
        mix.reward(label, score).map(|mixed| mixed.total)
    };
    // format 1 + safety 0.1; format 1 + 0.5 + 0.5, three times; maths alone; format alone.
    assert_eq!(total("safety"), Ok(1.1));
    for label in ["knowledge", "knowledge_rule", "muldimif"] {
        assert_eq!(total(label), Ok(2.0), "{label}");
    }
    assert_eq!((total("geo3k_rule"), total("gsm8k_rule")), (Ok(0.9), Ok(0.9)));
    assert_eq!(total("unheard of"), Ok(1.0));
    assert!(total("value").is_err());
    let labels: BTreeSet<&str> = mix.labels.keys().map(String::as_str).collect();
    assert_eq!(labels.len(), 10);
}
