//! SafeWork-R1: format and rule rewards, and the mix by label, as a recipe of ours.

use std::collections::BTreeMap;

use plumb_algo::mix::Mix;
use plumb_algo::rule::{Answer, Rule};
use plumb_golden::{Case, Failure, encode, encode_all};
use serde_json::{Value, json};

use crate::{Check, Consumer};

pub(crate) const CONSUMERS: &[Consumer] = &[
    ("safework/format_and_rule_rewards", Check::Result(format_and_rule)),
    ("safework/mix_rewards", Check::Result(mix_rewards)),
];

const FORMAT: &str = r#"{"rule": "format"}"#;
const BOXED: &str = r#"{"rule": "boxed_answer", "equality": "mathruler"}"#;
/// geo3k and gsm8k look for the box in the whole response.
const BOXED_ANYWHERE: &str =
    r#"{"rule": "boxed_answer", "equality": "mathruler", "part": "response"}"#;
const BOXED_FORMAT: &str = r#"{"rule": "format", "boxed": true}"#;
/// geo3k and gsm8k: their own sum of accuracy and format.
const MATHS: &str = r#"{"rule": "weighted", "of": [
    {"weight": 0.9, "rule": {"rule": "boxed_answer", "equality": "mathruler", "part": "response"}},
    {"weight": 0.1, "rule": {"rule": "format", "boxed": true}}]}"#;
/// SafeWork-R1's mix by label.
const PAGE: &str = include_str!("../../../../docs/safework.md");

fn score(rule: &str, solution: &str, reference: Option<&str>) -> Result<f64, Failure> {
    let answer = Answer { question: "", response: solution, reference, response_tokens: 0 };
    let rule = Rule::from_json(rule).map_err(Failure::refused)?;
    rule.score(&answer).map_err(Failure::refused)
}

fn format_and_rule(case: &Case) -> Result<Value, Failure> {
    let solution = case.inputs.text("solution")?;
    let reference = reference(case.inputs.get("ground_truth")?)?;
    let of = |rule: &str| score(rule, solution, reference);
    Ok(json!({
        "format_reward": of(FORMAT)?,
        "rule_reward": of(BOXED)?,
        "geo3k_accuracy": of(BOXED_ANYWHERE)?,
        "geo3k_format": of(BOXED_FORMAT)?,
        "geo3k_combined": of(MATHS)?,
        "gsm8k_combined": of(MATHS)?,
    }))
}

/// A reference answer: text, or none.
fn reference(value: &Value) -> Result<Option<&str>, Failure> {
    match value {
        Value::Null => Ok(None),
        Value::String(text) => Ok(Some(text)),
        other => Err(Failure::refused(format!("{other} is no reference"))),
    }
}

fn recipe() -> Result<Mix, Failure> {
    let block = PAGE.split("```json").nth(1).and_then(|rest| rest.split("```").next());
    serde_json::from_str(block.unwrap_or_default()).map_err(|e| Failure::Malformed(e.to_string()))
}

fn mix_rewards(case: &Case) -> Result<Value, Failure> {
    let recipe = recipe()?;
    let labels = case.inputs.texts("labels")?;
    let solutions = case.inputs.texts("solutions")?;
    let references = case.inputs.list("refs")?;
    let models = case.inputs.matrix("model_scores")?;
    let rows = case.params.get("label_map")?;
    let mut columns: BTreeMap<&str, Vec<f64>> = BTreeMap::new();
    if models.iter().any(|scores| scores.len() != labels.len()) || solutions.len() < labels.len() {
        return Err(Failure::refused("lists of different lengths"));
    }
    for (b, label) in labels.iter().enumerate() {
        // Samples past the end of the references have an empty one. Constraints are a list, and
        // only the stub of the unpublished reward takes them.
        let known = references.get(b).filter(|given| !given.is_array() && !given.is_object());
        let reference = known.map_or(Ok(Some("")), reference)?;
        let of = |rule: &str| score(rule, solutions[b], reference);
        let component = |name: &str| -> Result<f64, String> {
            match name {
                "format" => of(FORMAT).map_err(|e| e.to_string()),
                "rule" => of(BOXED).map_err(|e| e.to_string()),
                "maths" => of(MATHS).map_err(|e| e.to_string()),
                "if_rule" => case.inputs.number("if_reward_stub_value").map_err(|e| e.to_string()),
                // A model that is not loaded counts 1 in the reference.
                model => Ok(rows
                    .get(model)
                    .and_then(Value::as_u64)
                    .and_then(|row| models.get(usize::try_from(row).ok()?))
                    .map_or(1.0, |scores| scores[b])),
            }
        };
        let mixed = recipe.reward(label, component).map_err(Failure::refused)?;
        let sum = |names: &[&str]| names.iter().filter_map(|n| mixed.scores.get(*n)).sum::<f64>();
        let maths = label.starts_with("geo3k") || label.starts_with("gsm8k");
        let format = if maths { of(BOXED_FORMAT)? } else { sum(&["format"]) };
        let accuracy = if maths { of(BOXED_ANYWHERE)? } else { sum(&["rule"]) };
        for (column, value) in [
            ("final_reward", mixed.total),
            ("format_reward", format),
            ("accuracy_reward", accuracy),
            ("model_reward", sum(&["safety", "knowledge", "value", "normal", "general"])),
            ("rule_reward", sum(&["rule", "if_rule"])),
        ] {
            columns.entry(column).or_default().push(value);
        }
    }
    let column = |name: &str| columns.get(name).map_or(encode(0.0), |values| encode_all(values));
    Ok(json!({
        "final_reward": column("final_reward"),
        "metrics": {
            "format_reward": column("format_reward"),
            "accuracy_reward": column("accuracy_reward"),
            "model_reward": column("model_reward"),
            "rule_reward": column("rule_reward"),
        },
    }))
}
