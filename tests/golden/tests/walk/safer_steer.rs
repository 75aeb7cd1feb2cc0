//! SaFeR-Steer: a turn's repetition and format, a trajectory's score and tokens, its data.

use std::path::Path;

use plumb_algo::json::Json;
use plumb_algo::rule::repetition_ratio;
use plumb_algo::turn::{
    Aggregation, Assembly, EmptyResponse, Limits, Reply, Step, ThinkingAnswer, TurnEnd, compat,
};
use plumb_data::{ImageBounds, SafetyDialogue};
use plumb_golden::{Case, Failure, Fields, encode, encode_all};
use serde_json::{Value, json};

use crate::{Check, Consumer};

pub(crate) const CONSUMERS: &[Consumer] = &[
    ("safer_steer/repetition_ratio", Check::Result(repetition)),
    ("safer_steer/format_check", Check::Result(format_check)),
    ("safer_steer/aggregate_turn_scores", Check::Result(aggregate)),
    ("safer_steer/min_mean_alpha_0_3", Check::Result(aggregate)),
    ("safer_steer/compute_score", Check::Result(compute_score)),
    ("safer_steer/agent_loop_token_assembly", Check::Result(token_assembly)),
    ("safer_steer/preprocess_row", Check::Result(preprocess_row)),
    ("safer_steer/image_bounds", Check::Result(image_bounds)),
];

/// A text; null is the empty one, as for the reference.
pub(crate) fn text_or_empty<'a>(fields: &'a Fields, key: &str) -> Result<&'a str, Failure> {
    if fields.has(key) { fields.text(key) } else { Ok("") }
}

/// A value as our JSON; the golden files' names of non-finite numbers become numbers.
pub(crate) fn to_json(value: &Value) -> Json {
    match value {
        Value::String(text) => match text.as_str() {
            "NaN" => Json::Float(f64::NAN),
            "inf" => Json::Float(f64::INFINITY),
            "-inf" => Json::Float(f64::NEG_INFINITY),
            text => Json::Text(text.to_owned()),
        },
        Value::Array(items) => Json::List(items.iter().map(to_json).collect()),
        Value::Object(fields) => {
            Json::Object(fields.iter().map(|(key, value)| (key.clone(), to_json(value))).collect())
        }
        other => Json::from(other),
    }
}

/// Our JSON as the golden files write it.
pub(crate) fn from_json(value: &Json) -> Value {
    match value {
        Json::Null => Value::Null,
        Json::Bool(flag) => (*flag).into(),
        Json::Integer(digits) => match digits.parse::<i64>() {
            Ok(whole) => whole.into(),
            Err(_) => digits.parse().map_or(Value::Null, encode),
        },
        Json::Float(number) => encode(*number),
        Json::Text(text) => text.as_str().into(),
        Json::List(items) => items.iter().map(from_json).collect(),
        Json::Object(fields) => {
            Value::Object(fields.iter().map(|(k, v)| (k.clone(), from_json(v))).collect())
        }
    }
}

fn repetition(case: &Case) -> Result<Value, Failure> {
    Ok(encode(repetition_ratio(
        text_or_empty(&case.inputs, "text")?,
        case.params.count("ngram")?,
        case.params.count("min_tokens")?,
    )))
}

fn format_check(case: &Case) -> Result<Value, Failure> {
    let found = ThinkingAnswer::check(text_or_empty(&case.inputs, "text")?);
    Ok(json!([found == ThinkingAnswer::Holds, found.name()]))
}

/// The method of a case with the alpha that it gives.
fn method(params: &Fields, key: &str, default: &str) -> Result<Option<Aggregation>, Failure> {
    let name = if params.has(key) { params.text(key)? } else { default };
    Ok(match compat::method(name) {
        Some(Aggregation::MinMean { alpha }) => {
            Some(Aggregation::MinMean { alpha: params.number_or("alpha", alpha)? })
        }
        other => other,
    })
}

fn aggregate(case: &Case) -> Result<Value, Failure> {
    let scores = to_json(case.inputs.get("turn_scores")?);
    let weights: Vec<Json> = if case.params.has("weights") {
        case.params.list("weights")?.iter().map(to_json).collect()
    } else {
        Vec::new()
    };
    let method = method(&case.params, "method", "mean")?;
    let reward = compat::reward(&scores, method.as_ref(), &weights).map_err(Failure::refused)?;
    Ok(reward.map_or(Value::Null, encode))
}

fn compute_score(case: &Case) -> Result<Value, Failure> {
    let info = case.inputs.0.get("extra_info").map_or(Json::Null, to_json);
    let method = method(&case.params, "aggregation_method", "min_mean")?;
    compat::trajectory_score(&info, method.as_ref()).map(encode).map_err(Failure::refused)
}

fn ids(value: &Value) -> Result<Vec<u32>, Failure> {
    let wrong = || Failure::Malformed("token ids".to_owned());
    let items = value.as_array().ok_or_else(wrong)?;
    items.iter().map(|id| id.as_u64().map(|id| id as u32).ok_or_else(wrong)).collect()
}

fn token_assembly(case: &Case) -> Result<Value, Failure> {
    // 0 is no limit there.
    let limit = |key: &str| -> Result<Option<usize>, Failure> {
        if !case.params.has(key) {
            return Ok(None);
        }
        Ok(Some(case.params.count(key)?).filter(|turns| *turns > 0))
    };
    let limits = Limits {
        response_tokens: case.params.count("response_length")?,
        assistant_turns: limit("max_assistant_turns")?,
        user_turns: limit("max_user_turns")?,
    };
    let mut generated = case.inputs.list("generated_token_ids")?.iter();
    let mut returns = case.inputs.list("interaction_returns")?.iter();
    let mut templates = case.inputs.list("user_turn_template_ids")?.iter();
    let prompt = ids(case.inputs.get("prompt_ids")?)?;
    let mut dialogue = Assembly::new(&prompt, limits, TurnEnd::Compat);
    loop {
        match dialogue.next() {
            Step::Generate => {
                let turn = generated.next().ok_or_else(|| Failure::refused("no turn is left"))?;
                dialogue.generated(&ids(turn)?).map_err(Failure::refused)?;
            }
            Step::Reply => {
                let reply = returns.next().ok_or_else(|| Failure::refused("no reply is left"))?;
                let tokens =
                    templates.next().ok_or_else(|| Failure::refused("no message is left"))?;
                let reply = Fields(json!({"ends": reply[0], "score": reply[2]}));
                let score = if reply.has("score") { Some(reply.number("score")?) } else { None };
                let tokens = ids(tokens)?;
                let reply = Reply { ends: reply.flag("ends")?, score, tokens: &tokens };
                dialogue.replied(reply).map_err(Failure::refused)?;
            }
            Step::Ended(_) => break,
        }
    }
    let trajectory = dialogue.finish(EmptyResponse::Compat);
    Ok(json!({
        "prompt_ids": trajectory.prompt,
        "response_ids": trajectory.response,
        "response_mask": trajectory.mask.iter().map(|m| u8::from(*m)).collect::<Vec<_>>(),
        "turn_scores": encode_all(&trajectory.turn_scores),
        "user_turns": trajectory.user_turns,
        "assistant_turns": trajectory.assistant_turns,
        "num_turns": trajectory.turns(),
    }))
}

fn preprocess_row(case: &Case) -> Result<Value, Failure> {
    let row = SafetyDialogue::from_row(case.inputs.get("example")?, "<SYSTEM_PROMPT>")
        .map_err(Failure::refused)?;
    row.check_images(Path::new("")).map_err(Failure::refused)?;
    let source = if case.params.has("data_source") {
        case.params.text("data_source")?
    } else {
        "safedy/DyS2k1"
    };
    Ok(row.to_record(source, case.params.text("split")?, case.params.count("index")?))
}

fn image_bounds(case: &Case) -> Result<Value, Failure> {
    let side = |fields: &Fields, key: &str, default: u32| -> Result<u32, Failure> {
        if fields.has(key) { fields.count(key).map(|side| side as u32) } else { Ok(default) }
    };
    let usual = ImageBounds::default();
    let bounds = ImageBounds {
        min: side(&case.params, "min_size", usual.min)?,
        max: side(&case.params, "max_size", usual.max)?,
    };
    let plan = bounds.plan(side(&case.inputs, "width", 0)?, side(&case.inputs, "height", 0)?);
    Ok(json!(plan.padded))
}
