//! Pairs of answers of which one is preferred.

use plumb_domain::ChatMessage;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::messages::{brief, ends_with_user, messages, missing, present};
use crate::prompts::input_messages;
use crate::{RawSample, RowFault, SampleError};

/// By which judgement one answer is preferred.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PreferredBy {
    /// The more helpful one (safe-rlhf's `better`).
    Better,
    /// The safer one (safe-rlhf's `safer`).
    Safer,
}

/// A prompt, the preferred answer and the other one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PreferenceRow {
    /// The conversation so far; the last message is the user's.
    pub prompt: Vec<ChatMessage>,
    /// The preferred answer.
    pub chosen: String,
    /// The other one; never the same text.
    pub rejected: String,
    /// Is the preferred answer safe? `None` where the data does not say.
    pub chosen_safe: Option<bool>,
    /// Is the other answer safe? `None` where the data does not say.
    pub rejected_safe: Option<bool>,
}

impl PreferenceRow {
    /// From a row with `prompt` (text or messages), `chosen` and `rejected` (text, or messages that
    /// end with the assistant's) and, where the data says so, `chosen_safe` and `rejected_safe`;
    /// other fields are passed over. Answers of messages may repeat the prompt before their last
    /// message.
    ///
    /// # Errors
    /// What is missing or of another type; answers that are the same.
    pub fn from_row(row: &Value) -> Result<Self, RowFault> {
        let prompt = present(row, "prompt").ok_or_else(|| missing(row, "prompt"))?;
        let prompt = messages("prompt", prompt)?;
        Self {
            chosen: answer(row, "chosen", &prompt)?,
            rejected: answer(row, "rejected", &prompt)?,
            chosen_safe: flag(row, "chosen_safe")?,
            rejected_safe: flag(row, "rejected_safe")?,
            prompt,
        }
        .checked()
    }

    /// From one of safe-rlhf's samples.
    ///
    /// # Errors
    /// [`SampleError::Missing`] as a fault; answers that are the same; with [`PreferredBy::Safer`]
    /// a safer answer that is unsafe beside a safe one.
    pub fn from_raw(sample: RawSample, by: PreferredBy) -> Result<Self, RowFault> {
        let (field, first) = match by {
            PreferredBy::Better => ("better", sample.better),
            PreferredBy::Safer => ("safer", sample.safer),
        };
        let missing = |field| SampleError::Missing { field };
        let input = sample.input.as_ref().ok_or(missing("input"))?;
        let prompt = input_messages(input)?;
        let mut row = Self {
            prompt,
            chosen: sample.answer.ok_or(missing("answer"))?,
            rejected: sample.other_answer.ok_or(missing("other_answer"))?,
            chosen_safe: sample.is_safe,
            rejected_safe: sample.is_other_safe,
        };
        if !first.ok_or(missing(field))? {
            std::mem::swap(&mut row.chosen, &mut row.rejected);
            std::mem::swap(&mut row.chosen_safe, &mut row.rejected_safe);
        }
        if by == PreferredBy::Safer
            && (row.chosen_safe, row.rejected_safe) == (Some(false), Some(true))
        {
            return Err(SampleError::SaferIsUnsafe.into());
        }
        row.checked()
    }

    fn checked(self) -> Result<Self, RowFault> {
        ends_with_user(&self.prompt)?;
        if self.chosen == self.rejected {
            return Err(RowFault::plain("both answers are the same text"));
        }
        Ok(self)
    }
}

fn answer(row: &Value, field: &str, prompt: &[ChatMessage]) -> Result<String, RowFault> {
    let value = present(row, field).ok_or_else(|| missing(row, field))?;
    if let Some(text) = value.as_str() {
        return Ok(text.to_owned());
    }
    let mut list = messages(field, value)?;
    match list.pop() {
        Some(last) if last.role == "assistant" && (list.is_empty() || list == prompt) => {
            Ok(last.content)
        }
        _ => Err(RowFault::new(
            format!("field {field:?} is no answer to the prompt"),
            format!(
                "field {field:?} is {}, expected text, or the prompt's messages and one of the \
                 assistant's",
                brief(value)
            ),
        )),
    }
}

fn flag(row: &Value, field: &str) -> Result<Option<bool>, RowFault> {
    let Some(value) = present(row, field) else { return Ok(None) };
    value.as_bool().map(Some).ok_or_else(|| {
        RowFault::new(
            format!("field {field:?} of another type"),
            format!("field {field:?} is {}, expected true or false", brief(value)),
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Input;
    use crate::messages::message;
    use serde_json::json;

    #[test]
    fn answers_are_text_or_messages_after_the_prompt() {
        let text = json!({"prompt": "q", "chosen": "a", "rejected": "b", "chosen_safe": true});
        let row = PreferenceRow::from_row(&text).unwrap();
        assert_eq!((row.chosen.as_str(), row.rejected.as_str()), ("a", "b"));
        assert_eq!((row.chosen_safe, row.rejected_safe), (Some(true), None));
        let q = json!({"role": "user", "content": "q"});
        let a = json!({"role": "assistant", "content": "a"});
        let whole = json!({"prompt": [q], "chosen": [q, a], "rejected": "b"});
        assert_eq!(PreferenceRow::from_row(&whole).unwrap().chosen, "a");
        let other = json!({"prompt": "p", "chosen": [q, a], "rejected": "b"});
        let fault = PreferenceRow::from_row(&other).unwrap_err();
        assert!(fault.problem.contains("expected text, or the prompt's messages"), "{fault}");
    }

    #[test]
    fn the_same_answers_and_missing_ones_are_named() {
        for (row, cause) in [
            (json!({"prompt": "q", "chosen": "a", "rejected": "a"}), "same text"),
            (json!({"prompt": "q", "chosen": "a"}), "no field \"rejected\"; the row has"),
            (json!({"prompt": "q", "chosen": "a", "rejected": 1}), "\"rejected\" is 1"),
            (json!({"prompt": "q", "chosen": "a", "rejected": "b", "chosen_safe": 2}), "2"),
        ] {
            let fault = PreferenceRow::from_row(&row).unwrap_err();
            assert!(fault.problem.contains(cause), "{fault}");
        }
    }

    #[test]
    fn a_raw_sample_is_turned_so_that_the_preferred_answer_is_first() {
        let sample = RawSample {
            input: Some(Input::Question("q".into())),
            answer: Some("a".into()),
            other_answer: Some("b".into()),
            better: Some(true),
            safer: Some(false),
            is_safe: Some(false),
            is_other_safe: Some(true),
            dialogue: None,
        };
        let row = PreferenceRow::from_raw(sample.clone(), PreferredBy::Better).unwrap();
        assert_eq!((row.chosen.as_str(), row.chosen_safe), ("a", Some(false)));
        assert_eq!(row.prompt, [message("user", "q")]);
        let row = PreferenceRow::from_raw(sample.clone(), PreferredBy::Safer).unwrap();
        assert_eq!((row.chosen.as_str(), row.chosen_safe), ("b", Some(true)));
        let wrong = RawSample { safer: Some(true), ..sample };
        let fault = PreferenceRow::from_raw(wrong, PreferredBy::Safer).unwrap_err();
        assert!(fault.problem.contains("marked unsafe"), "{fault}");
    }
}
