//! Rows of data sets: LightRFT's prompts and references, UPS-RM's PKU-SafeRLHF.

use plumb_data::prompt_row::RowFormat;
use plumb_data::reference::normalise_reference;
use plumb_data::safety_row::{Split, safety_rows};
use plumb_golden::{Case, Failure};
use serde_json::{Value, json};

use crate::{Check, Consumer};

pub(crate) const CONSUMERS: &[Consumer] = &[
    ("lightrft/normalize_reference", Check::Result(reference)),
    ("lightrft/preprocess_prompt_row", Check::Result(prompt_row)),
    ("ups_rm/preprocess_rows", Check::Result(rows)),
    // The order of shuffled rows is Python's random generator's; without a shuffle the order counts.
    ("ups_rm/train_val_split", Check::Invariants(split)),
];

fn reference(case: &Case) -> Result<Value, Failure> {
    Ok(normalise_reference(case.inputs.get("value")?))
}

fn prompt_row(case: &Case) -> Result<Value, Failure> {
    let given = |key: &str| case.params.0.get(key).and_then(Value::as_str).map(str::to_owned);
    let format = RowFormat {
        prompt_key: given("prompt_key").unwrap_or_else(|| "prompt".to_owned()),
        images_key: given("images_key").unwrap_or_else(|| "images".to_owned()),
        reference_key: given("reference_key"),
        label_key: given("label_key"),
        system_prompt: given("system_prompt"),
        input_template: given("input_template"),
    };
    let row = format.read(case.inputs.get("data")?).map_err(Failure::refused)?;
    Ok(json!({
        "rendered_messages": row.segments(),
        "images": row.images,
        "reference": row.reference,
        "label": row.label,
    }))
}

fn rows(case: &Case) -> Result<Value, Failure> {
    let rows = safety_rows(case.inputs.list("examples")?, case.params.text("split")?);
    Ok(json!(rows.map_err(Failure::refused)?))
}

fn split(case: &Case, expected: &Value) -> Result<(Value, Value), Failure> {
    let named = |letter: char, key: &str| -> Result<Vec<String>, Failure> {
        Ok((0..case.inputs.count(key)?).map(|row| format!("{letter}{row}")).collect())
    };
    let shuffle = case.params.flag("shuffle")?;
    let seed = case.params.0.get("seed").and_then(Value::as_u64).unwrap_or(42);
    let split = Split {
        train_ratio: case.params.number("train_ratio")?,
        shuffle_seed: shuffle.then_some(seed),
    };
    let (train, val) = split
        .divide(named('t', "num_train")?, named('v', "num_test")?)
        .map_err(Failure::refused)?;
    let ours = json!({"train": train, "val": val});
    if !shuffle {
        return Ok((ours, expected.clone()));
    }
    Ok((sorted(&ours), sorted(expected)))
}

/// Every list of names sorted.
fn sorted(splits: &Value) -> Value {
    let Value::Object(splits) = splits else { return splits.clone() };
    let sort = |(side, rows): (&String, &Value)| {
        let mut rows = rows.as_array().cloned().unwrap_or_default();
        rows.sort_by_key(Value::to_string);
        (side.clone(), Value::Array(rows))
    };
    Value::Object(splits.iter().map(sort).collect())
}
