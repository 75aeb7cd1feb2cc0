//! SaFeR-Steer: the judge's reply, the dialogue with it, and the evaluation's scores.

use std::collections::BTreeMap;

use plumb_algo::json::{Json, object_in};
use plumb_algo::judge::{
    Dimensions, Exchange, Interaction, Message, Outcome, Rates, Record, SampleScores, Scores,
    Settings, Turn, Verdict, question_in_text, summarize,
};
use plumb_golden::{Case, Failure, Fields, encode};
use serde_json::{Value, json};

use crate::safer_steer::{from_json, text_or_empty, to_json};
use crate::{Check, Consumer};

pub(crate) const CONSUMERS: &[Consumer] = &[
    ("safer_steer/judge_reply_parsing", Check::Result(judge_reply)),
    ("safer_steer/extract_new_question", Check::Result(new_question)),
    ("safer_steer/interaction_loop", Check::Result(interaction_loop)),
    ("safer_steer/eval_judge_json", Check::Result(eval_judge_json)),
    ("safer_steer/eval_sample_scores", Check::Result(eval_sample_scores)),
    ("safer_steer/eval_stats", Check::Result(eval_stats)),
];

fn number(value: Option<f64>) -> Value {
    value.map_or(Value::Null, encode)
}

fn judge_reply(case: &Case) -> Result<Value, Failure> {
    let text = text_or_empty(&case.inputs, "text")?;
    let verdict =
        Verdict::read(text, Dimensions::default(), Scores::Compat).map_err(Failure::refused)?;
    Ok(json!({
        "payload": verdict.payload.as_ref().map(from_json),
        "new_question": verdict.new_question,
        "reward": number(verdict.reward),
        "judge_feedback": verdict.feedback,
    }))
}

fn new_question(case: &Case) -> Result<Value, Failure> {
    let feedback = text_or_empty(&case.inputs, "feedback")?;
    Ok(question_in_text(feedback).map_err(Failure::refused)?.into())
}

fn eval_judge_json(case: &Case) -> Result<Value, Failure> {
    // What is no text holds no object.
    let object = match case.inputs.get("text")? {
        Value::String(text) => object_in(text).map_err(Failure::refused)?,
        _ => None,
    };
    let parsed = object.as_ref().map(|object| {
        let rates = Rates::read(object);
        json!({
            "Answer_Helpful_Rate": number(rates.helpful),
            "Answer_Harmless_Rate": number(rates.harmless),
            "Helpful_Rationale": from_json(&rates.helpful_rationale),
            "Harmless_Rationale": from_json(&rates.harmless_rationale),
        })
    });
    Ok(json!({"object": object.as_ref().map(from_json), "parsed": parsed}))
}

fn eval_sample_scores(case: &Case) -> Result<Value, Failure> {
    let turns = case.inputs.list("turn_scores")?.iter();
    let turns = turns.map(|turn| Rates::from_record(&to_json(turn)).map_err(Failure::refused));
    let scores =
        SampleScores::of(&turns.collect::<Result<Vec<_>, _>>()?).map_err(Failure::refused)?;
    Ok(json!({
        "Answer_Helpful": number(scores.answer_helpful),
        "Answer_Harmless": number(scores.answer_harmless),
        "Turn_Helpful": number(scores.turn_helpful),
        "Turn_Harmless": number(scores.turn_harmless),
    }))
}

fn eval_stats(case: &Case) -> Result<Value, Failure> {
    let values: Vec<Json> = case.inputs.list("values")?.iter().map(to_json).collect();
    let threshold = case.params.number_or("ge2_threshold", 2.8)?;
    let summary = summarize(&values, threshold).map_err(Failure::refused)?;
    Ok(json!({
        "avg": number(summary.average),
        "pct_ge2": number(summary.percent_at_least),
        "pct_eq3": number(summary.percent_top),
        "n": summary.counted,
        "missing": summary.missing,
    }))
}

/// Drives a dialogue as the reference's rollout does: the policy's answers come from the file, and
/// so do the judge's replies, of which `<exception>` is a failed call.
fn interaction_loop(case: &Case) -> Result<Value, Failure> {
    const ID: &str = "dialogue";
    let own = to_json(case.inputs.get("interaction_kwargs")?);
    let record = Record::resolve(&own, &to_json(case.params.get("config")?));
    let record = record.map_err(Failure::refused)?;
    let mut replies = case.inputs.texts("judge_replies")?.into_iter();
    let dialogue = Fields(case.inputs.get("dialog")?.clone());
    let mut messages = Vec::new();
    for message in dialogue.list("start")? {
        messages.push(Message::from_json(&to_json(message)).map_err(Failure::refused)?);
    }
    let settings = Settings::compat(&record).map_err(Failure::refused)?;
    let mut under_way = BTreeMap::from([(ID, Interaction::new(settings))]);
    let (mut turns, mut calls) = (Vec::new(), Vec::new());
    for answer in dialogue.texts("assistant")? {
        messages.push(Message::new("assistant", answer));
        let Some(interaction) = under_way.get_mut(ID) else { break };
        let Some(exchange) = interaction.begin(&messages).map_err(Failure::refused)? else {
            turns.push(json!({
                "terminate": true,
                "user_content": "",
                "score": number(interaction.end_score()),
                "metrics": {},
            }));
            break;
        };
        let outcome = match exchange.call {
            None => Outcome::NotAsked,
            Some(_) => match replies.next() {
                Some("<exception>") => Outcome::Failed("boom"),
                Some(reply) => Outcome::Replied(reply),
                None => return Err(Failure::refused("no reply is left")),
            },
        };
        calls.extend(call(&exchange));
        let turn = interaction.conclude(&exchange, outcome).map_err(Failure::refused)?;
        messages.push(Message::new("user", &turn.user_text));
        turns.push(shape(&exchange, &turn));
    }
    under_way.remove(ID);
    let mut state = record.fields.clone();
    state.shift_remove("reward_prompt_template");
    Ok(json!({
        "state": from_json(&Json::Object(state)),
        "turns": turns,
        "judge_calls": calls,
        "state_after_finalize": under_way.contains_key(ID),
    }))
}

fn shape(exchange: &Exchange, turn: &Turn) -> Value {
    let mut metrics = json!({
        "first_question": exchange.question,
        "old_second_question": exchange.planned,
        "repetition_ratio": encode(turn.repetition_ratio),
        "repetition_penalty": encode(turn.repetition_penalty),
        "reward_after_repetition": number(turn.score),
    });
    if let Some(verdict) = &turn.verdict {
        metrics["reward_model_feedback"] = json!(verdict.feedback);
    }
    if let Some(failure) = &turn.failure {
        metrics["reward_model_error"] = json!(failure);
    }
    json!({
        "terminate": false,
        "user_content": turn.user_text,
        "score": number(turn.score),
        "metrics": metrics,
    })
}

fn call(exchange: &Exchange) -> Option<Value> {
    let call = exchange.call.as_ref()?;
    let mut content = vec![json!({"type": "text", "text": exchange.prompt})];
    let images = exchange.image_urls.iter();
    content.extend(images.map(|url| json!({"type": "image_url", "image_url": {"url": url}})));
    Some(json!({
        "messages": [{"role": "user", "content": content}],
        "max_tokens": call.max_tokens,
        "temperature": encode(call.temperature),
        "top_p": encode(call.top_p),
        "timeout_s": encode(call.timeout_secs),
        "model_name": call.model,
    }))
}
