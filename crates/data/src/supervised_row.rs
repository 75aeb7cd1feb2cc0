//! Conversations to learn by heart.

use plumb_domain::ChatMessage;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::messages::{ROLES, alternating, brief, either, message, messages, missing, present};
use crate::prompts::input_messages;
use crate::rank_row::RankRow;
use crate::{RawSample, RowFault, SampleError};

/// A conversation of which the assistant's messages are learned.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SupervisedRow {
    /// At least one of them is the assistant's and has text in it.
    pub messages: Vec<ChatMessage>,
}

impl SupervisedRow {
    /// From a row with `messages`, or with `prompt` (text or messages) and `response` (or
    /// `answer`); other fields are passed over.
    ///
    /// # Errors
    /// What is missing or of another type.
    pub fn from_row(row: &Value) -> Result<Self, RowFault> {
        match (present(row, "messages"), present(row, "prompt")) {
            (Some(list), None) => Self::new(messages("messages", list)?),
            (None, Some(prompt)) => {
                let (field, answer) = either(row, ["response", "answer"])?;
                let text = answer.as_str().ok_or_else(|| {
                    RowFault::new(
                        format!("field {field:?} of another type"),
                        format!("field {field:?} is {}, expected text", brief(answer)),
                    )
                })?;
                let answer = message("assistant", text);
                let mut conversation = messages("prompt", prompt)?;
                conversation.push(answer);
                Self::new(conversation)
            }
            (Some(_), Some(_)) => Err(RowFault::plain("both prompt and messages; give one")),
            (None, None) if row.is_object() => {
                Err(RowFault::plain("neither prompt nor messages; give one"))
            }
            (None, None) => Err(missing(row, "prompt")),
        }
    }

    /// From one of safe-rlhf's samples: `input` and `answer`, or a `dialogue`.
    ///
    /// # Errors
    /// As [`crate::preprocess::supervised`].
    pub fn from_raw(sample: &RawSample) -> Result<Self, RowFault> {
        let input = match (&sample.input, &sample.dialogue) {
            (None, None) => return Err(SampleError::NoInput.into()),
            (Some(_), Some(_)) => return Err(SampleError::InputAndDialogue.into()),
            (None, Some(turns)) => return Self::new(alternating(turns)),
            (Some(input), None) => input,
        };
        let answer = sample.answer.as_ref().ok_or(SampleError::Missing { field: "answer" })?;
        let mut conversation = input_messages(input)?;
        conversation.push(message("assistant", answer));
        Self::new(conversation)
    }

    /// From a row of Rank-GRPO: prompt and completion.
    ///
    /// # Errors
    /// A row without a completion.
    pub fn from_rank(row: RankRow) -> Result<Self, RowFault> {
        let completion =
            row.completion.ok_or_else(|| RowFault::plain("no field \"completion\""))?;
        let mut conversation = row.prompt;
        conversation.push(completion);
        Self::new(conversation)
    }

    fn new(messages: Vec<ChatMessage>) -> Result<Self, RowFault> {
        if let Some(other) = messages.iter().find(|m| !ROLES.contains(&m.role.as_str())) {
            return Err(RowFault::new(
                "an unknown role",
                format!("role {:?}; use system, user or assistant", other.role),
            ));
        }
        let answers = |m: &ChatMessage| m.role == "assistant" && !m.content.trim().is_empty();
        if messages.iter().any(answers) {
            Ok(Self { messages })
        } else {
            Err(RowFault::plain("no message of the assistant's with text in it"))
        }
    }

    /// The messages up to the user's last one.
    #[must_use]
    pub fn prompt(mut self) -> Vec<ChatMessage> {
        let last = self.messages.iter().rposition(|m| m.role == "user");
        self.messages.truncate(last.map_or(0, |at| at + 1));
        self.messages
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Input;
    use serde_json::json;

    #[test]
    fn prompt_and_response_or_messages() {
        for row in [
            json!({"prompt": "q", "response": "a", "id": 3}),
            json!({"id": "d", "prompt": "q", "answer": "a"}),
        ] {
            let row = SupervisedRow::from_row(&row).unwrap();
            assert_eq!(row.messages, [message("user", "q"), message("assistant", "a")]);
        }
        let list = json!([{"role": "system", "content": "s"}, {"role": "user", "content": "q"},
            {"role": "assistant", "content": "a"}]);
        let row = SupervisedRow::from_row(&json!({"messages": list, "prompt": null})).unwrap();
        assert_eq!(row.messages.len(), 3);
        assert_eq!(row.prompt().last().unwrap().content, "q");
    }

    #[test]
    fn what_nothing_can_be_learned_from_is_named() {
        for (row, cause) in [
            (json!({"prompt": "q"}), "no field \"response\""),
            (json!({"prompt": "q", "response": 3}), "expected text"),
            (json!({"prompt": "q", "response": "a", "answer": "a"}), "both response and answer"),
            (json!({"prompt": "q", "response": " "}), "no message of the assistant's"),
            (json!({"messages": [{"role": "user", "content": "q"}]}), "assistant's"),
            (json!({"messages": [{"role": "bot", "content": "q"}]}), "expected role"),
            (json!({"text": "q"}), "neither prompt nor messages"),
            (json!([1]), "expected an object"),
        ] {
            let fault = SupervisedRow::from_row(&row).unwrap_err();
            assert!(fault.problem.contains(cause), "{fault}");
        }
    }

    #[test]
    fn a_dialogue_may_end_with_the_user() {
        let turns = ["q", "a", "r"].map(str::to_owned).to_vec();
        let dialogue = RawSample { dialogue: Some(turns), ..RawSample::default() };
        assert_eq!(SupervisedRow::from_raw(&dialogue).unwrap().messages.len(), 3);
        let input = RawSample {
            input: Some(Input::Question("q".into())),
            answer: Some("a".into()),
            ..RawSample::default()
        };
        assert_eq!(SupervisedRow::from_raw(&input).unwrap().messages[1].content, "a");
    }
}
