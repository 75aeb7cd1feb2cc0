//! Rows of the public data sets that safe-rlhf knows by name, as [`RawSample`]s.
//!
//! Source: safe-rlhf `datasets/raw/{alpaca, firefly, hh_rlhf, moss}.py`.

use serde_json::Value;

use crate::hh_transcript::{answers, turns};
use crate::messages::{brief, missing, present, text};
use crate::{Input, RawSample, RowFault};

/// Alpaca: `instruction`, `input` (after a blank, where there is one) and `output`.
///
/// # Errors
/// A missing field, or one that is no text.
pub fn alpaca(row: &Value) -> Result<RawSample, RowFault> {
    let instruction = text(row, "instruction")?;
    let more = present(row, "input").map(|_| text(row, "input")).transpose()?.unwrap_or_default();
    let question =
        if more.is_empty() { instruction.to_owned() } else { format!("{instruction} {more}") };
    Ok(answered(question, text(row, "output")?))
}

/// Firefly: `input` and `target`.
///
/// # Errors
/// A missing field, or one that is no text.
pub fn firefly(row: &Value) -> Result<RawSample, RowFault> {
    Ok(answered(text(row, "input")?.to_owned(), text(row, "target")?))
}

/// HH-RLHF as a dialogue: the turns before and the chosen answer. Both public forms are read: the
/// processed one (`context`: objects with `text`; `chosen`: an object with `text`) and the
/// original one (`chosen`: a transcript).
///
/// # Errors
/// A row of neither form.
pub fn hh_dialogue(row: &Value) -> Result<RawSample, RowFault> {
    let dialogue = match row.get("chosen") {
        Some(Value::String(transcript)) => turns(transcript)?,
        _ => {
            let mut dialogue = context(row)?;
            dialogue.push(text_of(row, "chosen")?);
            dialogue
        }
    };
    Ok(RawSample { dialogue: Some(dialogue), ..RawSample::default() })
}

/// HH-RLHF as a preference: `chosen` is the better one. Forms as in [`hh_dialogue`].
///
/// # Errors
/// A row of neither form; transcripts that differ before their last answer.
pub fn hh_preference(row: &Value) -> Result<RawSample, RowFault> {
    let (input, answer, other_answer) = match (row.get("chosen"), row.get("rejected")) {
        (Some(Value::String(chosen)), Some(Value::String(rejected))) => answers(chosen, rejected)?,
        _ => (context(row)?, text_of(row, "chosen")?, text_of(row, "rejected")?),
    };
    Ok(RawSample {
        input: Some(Input::Turns(input)),
        answer: Some(answer),
        other_answer: Some(other_answer),
        better: Some(true),
        ..RawSample::default()
    })
}

/// MOSS 002: `plain_text`, turns of `[Human]: ...<eoh>` and `[MOSS]: ...<eoa>`.
///
/// # Errors
/// Text without such turns, or whose turns do not alternate.
pub fn moss_002(row: &Value) -> Result<RawSample, RowFault> {
    let mut rest = text(row, "plain_text")?.trim();
    let mut dialogue = Vec::new();
    for (mark, end) in [("[Human]:", "<eoh>"), ("[MOSS]:", "<eoa>")].into_iter().cycle() {
        if rest.is_empty() && !dialogue.is_empty() {
            break;
        }
        let (turn, after) =
            rest.strip_prefix(mark).and_then(|rest| rest.split_once(end)).ok_or_else(|| {
                let near: String = rest.chars().take(80).collect();
                RowFault::new(
                    "plain_text without turns of [Human] and [MOSS]",
                    format!(
                        "field \"plain_text\", turn {}: {near:?}, expected {mark:?} and {end:?} \
                         after the turn",
                        dialogue.len() + 1
                    ),
                )
            })?;
        dialogue.push(turn.trim().to_owned());
        rest = after.trim_start();
    }
    Ok(RawSample { dialogue: Some(dialogue), ..RawSample::default() })
}

/// MOSS 003: `chat`, with `turn_1`, `turn_2`, ... of `Human` and `MOSS` (marks around the texts are
/// taken off), or the shorter form `conversation`, a list of `human` and `assistant`.
///
/// # Errors
/// A row of neither form.
pub fn moss_003(row: &Value) -> Result<RawSample, RowFault> {
    let mut dialogue = Vec::new();
    if let Some(list) = present(row, "conversation") {
        let list = list.as_array().ok_or_else(|| wrong("conversation", "a list", list))?;
        for turn in list {
            dialogue.push(text(turn, "human")?.to_owned());
            dialogue.push(text(turn, "assistant")?.to_owned());
        }
    } else {
        let chat = present(row, "chat").ok_or_else(|| missing(row, "chat"))?;
        let turns = (1..).map_while(|turn: u32| present(chat, &format!("turn_{turn}")));
        for turn in turns {
            dialogue.push(unmarked(text(turn, "Human")?, "<|Human|>:", "<eoh>"));
            dialogue.push(unmarked(text(turn, "MOSS")?, "<|MOSS|>:", "<eom>"));
        }
    }
    if dialogue.is_empty() {
        return Err(RowFault::plain("a conversation without turns"));
    }
    Ok(RawSample { dialogue: Some(dialogue), ..RawSample::default() })
}

fn answered(question: String, answer: &str) -> RawSample {
    RawSample {
        input: Some(Input::Question(question)),
        answer: Some(answer.to_owned()),
        ..RawSample::default()
    }
}

/// The texts of the processed form's context.
fn context(row: &Value) -> Result<Vec<String>, RowFault> {
    let context = present(row, "context").ok_or_else(|| missing(row, "context"))?;
    let turns = context.as_array().ok_or_else(|| wrong("context", "a list of turns", context))?;
    turns.iter().map(|turn| text(turn, "text").map(str::to_owned)).collect()
}

fn text_of(row: &Value, field: &str) -> Result<String, RowFault> {
    let turn = present(row, field).ok_or_else(|| missing(row, field))?;
    text(turn, "text").map(str::to_owned)
}

fn unmarked(text: &str, mark: &str, end: &str) -> String {
    let text = text.trim();
    let text = text.strip_prefix(mark).unwrap_or(text);
    text.strip_suffix(end).unwrap_or(text).trim().to_owned()
}

fn wrong(field: &str, expected: &str, value: &Value) -> RowFault {
    RowFault::new(
        format!("field {field:?} of another type"),
        format!("field {field:?} is {}, expected {expected}", brief(value)),
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn question(sample: &RawSample) -> &str {
        match &sample.input {
            Some(Input::Question(text)) => text,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn alpaca_joins_instruction_and_input_by_a_blank() {
        let sample = alpaca(&json!({"instruction": "Add.", "input": "1 2", "output": "3"}));
        assert_eq!(question(&sample.unwrap()), "Add. 1 2");
        for input in [json!(""), json!(null)] {
            let sample = alpaca(&json!({"instruction": "Add.", "input": input, "output": "3"}));
            let sample = sample.unwrap();
            assert_eq!((question(&sample), sample.answer.as_deref()), ("Add.", Some("3")));
        }
        assert!(alpaca(&json!({"instruction": "Add."})).unwrap_err().cause.contains("output"));
    }

    #[test]
    fn firefly_has_input_and_target() {
        let sample = firefly(&json!({"input": "q", "target": "a", "kind": "MRC"})).unwrap();
        assert_eq!((question(&sample), sample.answer.as_deref()), ("q", Some("a")));
    }

    #[test]
    fn hh_is_read_in_both_public_forms() {
        let processed = json!({"context": [{"role": "human", "text": "q"}],
            "chosen": {"role": "assistant", "text": "a"},
            "rejected": {"role": "assistant", "text": "b"}});
        let original = json!({"chosen": "\n\nHuman: q\n\nAssistant: a",
            "rejected": "\n\nHuman: q\n\nAssistant: b"});
        assert_eq!(hh_preference(&processed).unwrap(), hh_preference(&original).unwrap());
        assert_eq!(hh_dialogue(&processed).unwrap(), hh_dialogue(&original).unwrap());
        let sample = hh_preference(&original).unwrap();
        assert_eq!(sample.input, Some(Input::Turns(vec!["q".into()])));
        assert_eq!((sample.other_answer.as_deref(), sample.better), (Some("b"), Some(true)));
        assert_eq!(hh_dialogue(&original).unwrap().dialogue.unwrap(), ["q", "a"]);
    }

    #[test]
    fn moss_002_is_cut_at_its_marks() {
        let dialogue = |text: &str| moss_002(&json!({"plain_text": text}));
        let sample = dialogue("[Human]: a\nb<eoh> [MOSS]: c<eoa> [Human]: d<eoh> [MOSS]: e<eoa>");
        assert_eq!(sample.unwrap().dialogue.unwrap(), ["a\nb", "c", "d", "e"]);
        for text in ["", "hello", "[MOSS]: a<eoa>", "[Human]: a<eoh> [Human]: b<eoh>"] {
            assert!(dialogue(text).unwrap_err().problem.contains("expected \"["), "{text:?}");
        }
    }

    #[test]
    fn moss_003_is_read_in_both_public_forms() {
        let long = json!({"chat": {
            "turn_2": {"Human": "<|Human|>: c<eoh>\n", "MOSS": "<|MOSS|>: d<eom>\n"},
            "turn_1": {"Human": "<|Human|>: a<eoh>\n", "Inner Thoughts": "None",
                "MOSS": "<|MOSS|>: b<eom>\n"}, "turn_3": null}});
        let short = json!({"conversation": [
            {"human": "a", "assistant": "b"}, {"human": "c", "assistant": "d"}]});
        assert_eq!(moss_003(&long).unwrap().dialogue.unwrap(), ["a", "b", "c", "d"]);
        assert_eq!(moss_003(&short).unwrap(), moss_003(&long).unwrap());
        assert!(moss_003(&json!({"chat": {}})).unwrap_err().problem.contains("without turns"));
        assert!(moss_003(&json!({})).unwrap_err().cause.contains("chat"));
    }
}
