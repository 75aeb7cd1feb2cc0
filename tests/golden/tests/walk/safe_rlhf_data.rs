//! safe-rlhf: the text of conversations, samples, and how data sets are mixed and split.

use std::collections::BTreeSet;

use plumb_data::preprocess::{self, Tokenizer};
use plumb_data::{
    DatasetSpec, Input, NoTest, Part, Proportion, RawSample, SafeFlags, TestSplit, format_prompt,
    merge, split_prompt_response,
};
use plumb_golden::{Case, Failure, Fields, encode};
use serde_json::{Value, json};

use crate::{Check, Consumer};

pub(crate) const CONSUMERS: &[Consumer] = &[
    ("safe_rlhf/dataset_preprocess", Check::Result(sample)),
    ("safe_rlhf/format_prompt", Check::Result(prompt)),
    ("safe_rlhf/merge_raw_datasets", Check::Invariants(mixture)),
    ("safe_rlhf/parse_dataset", Check::Result(dataset_spec)),
    ("safe_rlhf/pku_saferlhf_raw_sample", Check::Result(pku_row)),
    ("safe_rlhf/split_prompt_response", Check::Result(conversations)),
    ("safe_rlhf/split_train_test", Check::Invariants(train_test)),
];

/// The golden file's: 1, then `3 + code mod 250` for each character, 2 for `</s>`.
struct Toy;

impl Tokenizer for Toy {
    fn encode(&self, text: &str) -> Result<Vec<u32>, String> {
        let mut ids = vec![1];
        for (index, part) in text.split(self.eos_token()).enumerate() {
            if index > 0 {
                ids.push(2);
            }
            ids.extend(part.chars().map(|c| 3 + u32::from(c) % 250));
        }
        Ok(ids)
    }

    fn eos_token(&self) -> &str {
        "</s>"
    }
}

fn sample(case: &Case) -> Result<Value, Failure> {
    let raw = RawSample::from_json(case.inputs.get("raw_sample")?).map_err(Failure::refused)?;
    match case.params.text("dataset")? {
        "supervised" => {
            let ours = preprocess::supervised(&raw, &Toy).map_err(Failure::refused)?;
            Ok(json!({ "input_ids": ours.input_ids, "labels": ours.labels }))
        }
        "preference" => {
            let ours = preprocess::preference(&raw, &Toy).map_err(Failure::refused)?;
            Ok(json!({
                "better_input_ids": ours.better_input_ids,
                "worse_input_ids": ours.worse_input_ids,
            }))
        }
        "safety_preference" => {
            let ours = preprocess::safety_preference(&raw, &Toy).map_err(Failure::refused)?;
            Ok(json!({
                "safer_input_ids": ours.safer_input_ids,
                "safer_sign": ours.safer_sign,
                "unsafer_input_ids": ours.unsafer_input_ids,
                "unsafer_sign": ours.unsafer_sign,
            }))
        }
        "prompt_only" => {
            let ours = preprocess::prompt_only(&raw, &Toy).map_err(Failure::refused)?;
            Ok(json!({ "input_ids": ours }))
        }
        other => Err(Failure::Malformed(format!("dataset {other:?}"))),
    }
}

fn prompt(case: &Case) -> Result<Value, Failure> {
    let input = Input::from_json(case.inputs.get("input")?).map_err(Failure::refused)?;
    let eos = case.params.text("eos_token")?;
    Ok(format_prompt(&input.turns(), eos).map_err(Failure::refused)?.into())
}

fn pku_row(case: &Case) -> Result<Value, Failure> {
    let raw = RawSample::from_pku_saferlhf(case.inputs.get("row")?, SafeFlags::CompatTruthy)
        .map_err(Failure::refused)?;
    let input = raw.input.as_ref().map(Input::turns).unwrap_or_default();
    Ok(json!({
        "input": input.first(),
        "answer": raw.answer,
        "other_answer": raw.other_answer,
        "better": raw.better,
        "safer": raw.safer,
        "is_safe": raw.is_safe,
        "is_other_safe": raw.is_other_safe,
    }))
}

/// Two lists, prompts and responses; Python's `zip` of no texts gives no lists at all.
fn conversations(case: &Case) -> Result<Value, Failure> {
    let token = case.params.text("split_token")?;
    let texts = case.inputs.texts("texts")?;
    let pairs = texts.iter().map(|text| split_prompt_response(text, token));
    let pairs: Vec<_> = pairs.collect::<Result<_, _>>().map_err(Failure::refused)?;
    if pairs.is_empty() {
        return Ok(json!([]));
    }
    let (prompts, responses): (Vec<&str>, Vec<&str>) = pairs.into_iter().unzip();
    Ok(json!([prompts, responses]))
}

fn dataset_spec(case: &Case) -> Result<Value, Failure> {
    let spec: DatasetSpec = case.inputs.text("string")?.parse().map_err(Failure::refused)?;
    let proportion = match spec.proportion {
        Proportion::Ratio(ratio) => json!({ "kind": "ratio", "value": encode(ratio) }),
        Proportion::Count(count) => {
            json!({ "kind": "count", "num_samples": count.unsigned_abs() })
        }
    };
    let mut shaped = json!({ "name": spec.name, "proportion": proportion });
    if let Some(path) = spec.path {
        shaped["path"] = path.into();
    }
    Ok(shaped)
}

/// Compared: how many samples of each data set, its whole copies, and that the rest repeats none.
fn mixture(case: &Case, expected: &Value) -> Result<(Value, Value), Failure> {
    let mut parts = Vec::new();
    for dataset in case.inputs.list("datasets")? {
        let dataset = Fields(dataset.clone());
        let count = dataset.get("proportion")?.get("count").and_then(Value::as_i64);
        let proportion = match count {
            Some(count) => Proportion::Count(count),
            None => Proportion::Ratio(dataset.number("proportion")?),
        };
        let name = dataset.text("name")?.to_owned();
        parts.push(Part { name, size: dataset.count("size")?, proportion });
    }
    let seed = case.params.count("seed")? as u64;
    let ours = merge(&parts, seed).map_err(Failure::refused)?;
    let ours = parts.iter().zip(ours).map(|(part, indices)| {
        json!({ "name": part.name, "num_selected": indices.len(), "indices": indices })
    });
    let sizes: Vec<(&str, usize)> = parts.iter().map(|p| (p.name.as_str(), p.size)).collect();
    let ours = without_choice(&Value::Array(ours.collect()), &sizes)?;
    Ok((ours, without_choice(expected, &sizes)?))
}

/// A selection less what the random choice decided. Data sets that give nothing are left out: the
/// reference drops them before it selects.
fn without_choice(selected: &Value, sizes: &[(&str, usize)]) -> Result<Value, Failure> {
    let Value::Array(datasets) = selected else { return Ok(selected.clone()) };
    let mut rows = Vec::new();
    for dataset in datasets {
        let dataset = Fields(dataset.clone());
        let (name, count) = (dataset.text("name")?, dataset.count("num_selected")?);
        let indices = dataset.vector("indices")?;
        if count == 0 {
            continue;
        }
        let size = sizes.iter().find(|(known, _)| *known == name).map_or(0, |(_, size)| *size);
        let copies = indices.len().checked_div(size).unwrap_or(0) * size;
        let (copies, rest) = indices.split_at(copies);
        let distinct: BTreeSet<u64> = rest.iter().map(|index| *index as u64).collect();
        rows.push(json!({
            "name": name,
            "num_selected": count,
            "copies": copies,
            "distinct": distinct.len(),
            "in_range": distinct.iter().all(|index| *index < size as u64),
        }));
    }
    Ok(Value::Array(rows))
}

/// Compared: both lists; after a shuffle, their sizes and all indices in order.
fn train_test(case: &Case, expected: &Value) -> Result<(Value, Value), Failure> {
    let shuffle = case.params.flag("shuffle")?;
    let split = TestSplit {
        share: case.params.number("split_ratio")?,
        shuffle,
        seed: case.params.number_or("seed", 42.0)? as u64,
        no_test: NoTest::CompatSlice,
    };
    let (train, test) = split.split(case.inputs.count("num_samples")?).map_err(Failure::refused)?;
    let ours = json!({ "train": train, "test": test });
    if !shuffle || expected.is_null() {
        return Ok((ours, expected.clone()));
    }
    Ok((without_order(&Fields(ours))?, without_order(&Fields(expected.clone()))?))
}

fn without_order(split: &Fields) -> Result<Value, Failure> {
    let (train, test) = (split.vector("train")?, split.vector("test")?);
    let mut all: Vec<u64> = train.iter().chain(&test).map(|index| *index as u64).collect();
    all.sort_unstable();
    Ok(json!({ "train": train.len(), "test": test.len(), "all": all }))
}
