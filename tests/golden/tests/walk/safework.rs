//! SafeWork-R1: format and rule rewards, and the mix by label, as a recipe of ours.

use std::collections::BTreeMap;

use plumb_algo::mix::{Mix, UnknownLabel, Weights};
use plumb_algo::rule::{Answer, Rule};
use plumb_golden::{Case, Failure, encode, encode_all};
use serde_json::{Value, json};

use crate::{Check, Consumer};

pub(crate) const CONSUMERS: &[Consumer] = &[
    ("safework/format_and_rule_rewards", Check::Result(format_and_rule)),
    ("safework/mix_rewards", Check::Result(mix_rewards)),
];

const FORMAT: &str = r#"{"rule": "format"}"#;
const BOXED: &str = r#"{"rule": "boxed_answer"}"#;
const BOXED_FORMAT: &str = r#"{"rule": "format", "boxed": true}"#;
/// geo3k and gsm8k: their own sum of accuracy and format.
const MATHS: &str = r#"{"rule": "weighted", "of": [
    {"weight": 0.9, "rule": {"rule": "boxed_answer"}},
    {"weight": 0.1, "rule": {"rule": "format", "boxed": true}}]}"#;

fn score(rule: &str, solution: &str, reference: &str) -> Result<f64, Failure> {
    let answer =
        Answer { question: "", response: solution, reference: Some(reference), response_tokens: 0 };
    let rule = Rule::from_json(rule).map_err(Failure::refused)?;
    rule.score(&answer).map_err(Failure::refused)
}

fn format_and_rule(case: &Case) -> Result<Value, Failure> {
    let solution = case.inputs.text("solution")?;
    let reference = case.inputs.text("ground_truth")?;
    let of = |rule: &str| score(rule, solution, reference);
    Ok(json!({
        "format_reward": of(FORMAT)?,
        "rule_reward": of(BOXED)?,
        "geo3k_accuracy": of(BOXED)?,
        "geo3k_format": of(BOXED_FORMAT)?,
        "geo3k_combined": of(MATHS)?,
        "gsm8k_combined": of(MATHS)?,
    }))
}

/// SafeWork-R1's recipe.
fn recipe() -> Mix {
    let mix = |terms: &[(&str, f64)]| -> Weights {
        terms.iter().map(|(component, weight)| ((*component).to_owned(), *weight)).collect()
    };
    let labels: &[(&str, &[(&str, f64)])] = &[
        ("safety", &[("safety", 1.0)]),
        ("knowledge", &[("knowledge", 1.0), ("normal", 1.0)]),
        ("knowledge_rule", &[("rule", 1.0), ("normal", 1.0)]),
        ("value", &[("value", 1.0)]),
        ("normal", &[("normal", 1.0)]),
        ("general", &[("general", 1.0)]),
        ("general_rule", &[("rule", 1.0)]),
        ("muldimif", &[("if_rule", 1.0), ("normal", 1.0)]),
        ("geo3k_rule", &[("maths", 1.0)]),
        ("gsm8k_rule", &[("maths", 1.0)]),
    ];
    Mix {
        labels: labels.iter().map(|(label, terms)| ((*label).to_owned(), mix(terms))).collect(),
        common: mix(&[("format", 1.0)]),
        without_common: ["geo3k_rule", "gsm8k_rule"].map(str::to_owned).into(),
        unknown_label: UnknownLabel::CommonOnly,
    }
}

fn mix_rewards(case: &Case) -> Result<Value, Failure> {
    let recipe = recipe();
    let labels = case.inputs.texts("labels")?;
    let solutions = case.inputs.texts("solutions")?;
    let references = case.inputs.texts("refs")?;
    let models = case.inputs.matrix("model_scores")?;
    let rows = case.params.get("label_map")?;
    let mut columns: BTreeMap<&str, Vec<f64>> = BTreeMap::new();
    for (b, label) in labels.iter().enumerate() {
        let of = |rule: &str| score(rule, solutions[b], references[b]);
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
                    .map_or(1.0, |row| models[row as usize][b])),
            }
        };
        let mixed = recipe.reward(label, component).map_err(Failure::refused)?;
        let sum = |names: &[&str]| names.iter().filter_map(|n| mixed.scores.get(*n)).sum::<f64>();
        let maths = label.starts_with("geo3k") || label.starts_with("gsm8k");
        let format = if maths { of(BOXED_FORMAT)? } else { sum(&["format"]) };
        let accuracy = if maths { of(BOXED)? } else { sum(&["rule"]) };
        for (column, value) in [
            ("final_reward", mixed.total),
            ("format_reward", format),
            ("accuracy_reward", accuracy),
            ("model_reward", sum(&["safety", "knowledge", "value", "normal", "general"])),
            ("rule_reward", sum(&["rule", "if_rule", "maths"])),
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
