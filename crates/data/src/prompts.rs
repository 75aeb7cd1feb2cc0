//! Prompts of rows.
//!
//! A row of the system's own form has `id`, `label` and either `prompt` (one user message) or
//! `messages` (a conversation whose last message is the user's); `reference` where there is a
//! reference answer. The rows of other data sets get an id from where they stand, and a label
//! from the recipe where they have none.

use plumb_domain::{ChatMessage, Label, Prompt, PromptId};
use serde::Deserialize;
use serde_json::Value;

use crate::messages::{alternating, ends_with_user, message, messages, present};
use crate::prompt_row::RowFormat;
use crate::rank_row::RankRow;
use crate::{Input, RawSample, RowFault, SafetyDialogue, SampleError};

/// What stands in for fields that a data set's rows lack.
#[derive(Debug, Clone, Copy)]
pub struct Fallback<'a> {
    /// The row's id.
    pub id: &'a str,
    /// Its label; none is an error where the row has none either.
    pub label: Option<&'a str>,
}

/// A row as it stands in a file.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct OwnRow {
    id: String,
    label: String,
    #[serde(default)]
    prompt: Option<String>,
    #[serde(default)]
    messages: Option<Vec<ChatMessage>>,
    #[serde(default)]
    reference: Option<String>,
}

/// Of the system's own form.
pub(crate) fn own(row: &Value) -> Result<Prompt, RowFault> {
    let row = OwnRow::deserialize(row)
        .map_err(|error| RowFault::new("not a prompt's fields", error.to_string()))?;
    let messages = match (row.prompt, row.messages) {
        (Some(prompt), None) => vec![message("user", prompt)],
        (None, Some(messages)) => messages,
        (Some(_), Some(_)) => {
            return Err(RowFault::plain("both prompt and messages; give one"));
        }
        (None, None) => return Err(RowFault::plain("neither prompt nor messages; give one")),
    };
    ends_with_user(&messages)?;
    Ok(Prompt { id: id(&row.id)?, label: label(&row.label)?, messages, reference: row.reference })
}

/// Of one of safe-rlhf's samples: its `input`. A dialogue has none.
pub(crate) fn of_raw(sample: RawSample, fallback: Fallback<'_>) -> Result<Prompt, RowFault> {
    let input = sample.input.ok_or(SampleError::Missing { field: "input" })?;
    of_messages(input_messages(&input)?, None, None, fallback)
}

/// The user's and the assistant's turns of an input.
pub(crate) fn input_messages(input: &Input) -> Result<Vec<ChatMessage>, RowFault> {
    let turns = input.turns();
    if turns.len().is_multiple_of(2) {
        return Err(SampleError::EvenTurns { turns: turns.len() }.into());
    }
    Ok(alternating(turns))
}

/// Of a row of SafeWork-R1 (LightRFT): its prompt is under `prompt`, else under `input`. Rows with
/// images are refused: the models here read text.
pub(crate) fn of_safework(row: &Value, fallback: Fallback<'_>) -> Result<Prompt, RowFault> {
    let key = if present(row, "prompt").is_some() { "prompt" } else { "input" };
    let format = RowFormat { prompt_key: key.to_owned(), ..RowFormat::default() };
    let read = format.read(row)?;
    if read.has_images {
        return Err(RowFault::plain("a prompt with images; only prompts of text can be answered"));
    }
    of_messages(
        vec![message("user", read.user)],
        as_text(&read.reference),
        Some(read.label),
        fallback,
    )
}

/// The opening of a row of SaFeR-Steer; what the user says later is for a dialogue, not a prompt.
/// The reference is the row's label.
pub(crate) fn of_safer_steer(row: &Value, fallback: Fallback<'_>) -> Result<Prompt, RowFault> {
    let dialogue = SafetyDialogue::from_row(row, "")?;
    if !dialogue.image_paths.is_empty() {
        return Err(RowFault::plain("a prompt with images; only prompts of text can be answered"));
    }
    // Without the system message: the recipe has one of its own.
    let opening = Value::from(dialogue.prompt.get(1..).unwrap_or_default());
    of_messages(messages("question", &opening)?, as_text(&dialogue.label), None, fallback)
}

/// Of a row of Rank-GRPO. The reference is what a reward compares with, as JSON: the films the user
/// liked, the titles seen, the trait assigned.
pub(crate) fn of_rank(row: RankRow, fallback: Fallback<'_>) -> Result<Prompt, RowFault> {
    let reference = row.reference().to_string();
    of_messages(row.prompt, Some(reference), None, fallback)
}

/// Of messages; `label` is the row's own.
pub(crate) fn of_messages(
    messages: Vec<ChatMessage>,
    reference: Option<String>,
    own_label: Option<Value>,
    fallback: Fallback<'_>,
) -> Result<Prompt, RowFault> {
    ends_with_user(&messages)?;
    let own_label = own_label.as_ref().and_then(as_text);
    let text = own_label.as_deref().or(fallback.label).ok_or_else(|| {
        RowFault::plain("the row has no label; name one under data.dataset_labels")
    })?;
    Ok(Prompt { id: id(fallback.id)?, label: label(text)?, messages, reference })
}

/// Text as it is, null as none, anything else as JSON.
fn as_text(value: &Value) -> Option<String> {
    match value {
        Value::Null => None,
        Value::String(text) => Some(text.clone()),
        other => Some(other.to_string()),
    }
}

fn id(text: &str) -> Result<PromptId, RowFault> {
    PromptId::new(text).map_err(|error| RowFault::new("no valid id", error.to_string()))
}

fn label(text: &str) -> Result<Label, RowFault> {
    Label::new(text).map_err(|error| RowFault::new("no valid label", error.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    const HERE: Fallback<'_> = Fallback { id: "set:0", label: Some("safety") };

    #[test]
    fn a_prompt_is_one_message_or_a_conversation() {
        let one = own(&json!({"id": "a", "label": "general", "prompt": "Hi?"})).unwrap();
        assert_eq!(one.question(), "Hi?");
        let two = own(&json!({"id": "b", "label": "safety", "reference": "4", "messages": [
            {"role": "system", "content": "s"}, {"role": "user", "content": "q"}]}))
        .unwrap();
        assert_eq!(two.messages.len(), 2);
        assert_eq!(two.reference.as_deref(), Some("4"));
    }

    #[test]
    fn a_bad_row_is_named_by_its_cause() {
        for (row, cause) in [
            (json!({"id": "b", "label": "l"}), "neither prompt nor messages"),
            (json!({"id": "b", "label": "l", "prompt": "q", "messages": []}), "both"),
            (json!({"id": "b", "label": "l", "prompt": " "}), "last message"),
            (json!({"id": "b", "label": "l", "promt": "q"}), "promt"),
            (json!({"id": "b b", "label": "l", "prompt": "q"}), "b b"),
            (
                json!({"id": "b", "label": "l", "messages": [{"role": "robot", "content": "q"}]}),
                "robot",
            ),
        ] {
            let fault = own(&row).unwrap_err();
            assert!(fault.problem.contains(cause), "{fault}");
            assert!(!fault.cause.contains("b b"), "a cause names no value: {}", fault.cause);
        }
    }

    #[test]
    fn a_safework_row_brings_its_label_and_its_reference() {
        let row = json!({"prompt": [{"role": "user", "content": "2 + 2?<image>"}],
            "extra_info": {"label": "math"}, "reward_model": {"ground_truth": "['4']"}});
        let prompt = of_safework(&row, HERE).unwrap();
        assert_eq!((prompt.question(), prompt.label.as_str()), ("2 + 2?", "math"));
        assert_eq!((prompt.reference.as_deref(), prompt.id.as_str()), (Some("4"), "set:0"));
        let prompt = of_safework(&json!({"input": "q"}), HERE).unwrap();
        assert_eq!((prompt.label.as_str(), prompt.reference), ("safety", None));
        let fault = of_safework(&json!({"input": "q", "images": ["a.png"]}), HERE).unwrap_err();
        assert!(fault.problem.contains("images"), "{fault}");
        let none = Fallback { label: None, ..HERE };
        let fault = of_safework(&json!({"input": "q"}), none).unwrap_err();
        assert!(fault.problem.contains("data.dataset_labels"), "{fault}");
    }

    #[test]
    fn a_safer_steer_row_gives_its_opening() {
        let row = json!({"question": [{"role": "user", "content": "How are locks picked?"}],
            "metadata": {"rest_messages": [{"role": "user", "content": "And safes?"}]},
            "label": "unsafe"});
        let prompt = of_safer_steer(&row, HERE).unwrap();
        assert_eq!(prompt.messages, [message("user", "How are locks picked?")]);
        assert_eq!(prompt.reference.as_deref(), Some("unsafe"));
    }

    #[test]
    fn a_raw_sample_s_turns_alternate_and_end_with_the_user() {
        let turns = |turns: &[&str]| {
            let turns = turns.iter().map(|t| (*t).to_owned()).collect();
            let sample = RawSample { input: Some(Input::Turns(turns)), ..RawSample::default() };
            of_raw(sample, HERE)
        };
        let prompt = turns(&["a", "b", "c"]).unwrap();
        let roles: Vec<&str> = prompt.messages.iter().map(|m| m.role.as_str()).collect();
        assert_eq!(roles, ["user", "assistant", "user"]);
        assert!(turns(&["a", "b"]).unwrap_err().problem.contains("2 turns"));
        let dialogue = RawSample { dialogue: Some(vec!["a".into()]), ..RawSample::default() };
        assert_eq!(of_raw(dialogue, HERE).unwrap_err().cause, "no field \"input\"");
    }
}
