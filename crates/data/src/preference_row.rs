//! Pairs of answers of which one is preferred.

use plumb_domain::ChatMessage;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::messages::{brief, either, ends_with_user, messages, present};
use crate::prompts::input_messages;
use crate::{PreferredBy, RawSample, RowFault, SampleError};

/// What a use asks of every pair beside its answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct PairNeeds {
    /// By which judgement of safe-rlhf's samples one answer is preferred; other rows have one.
    pub by: PreferredBy,
    /// Whether both answers are said to be safe or not.
    pub safety: bool,
    /// Whether there is a margin.
    pub margin: bool,
}

impl PairNeeds {
    /// Refuses a pair that lacks something.
    ///
    /// # Errors
    /// What it lacks, and how rows say it.
    pub fn check(self, pair: &PreferenceRow) -> Result<(), RowFault> {
        if self.safety && (pair.chosen_safe.is_none() || pair.rejected_safe.is_none()) {
            return Err(RowFault::plain(
                "it is not said which answers are safe; give chosen_safe and rejected_safe",
            ));
        }
        if self.margin && pair.margin.is_none() {
            return Err(RowFault::plain(
                "no margin; give margin, or score_chosen and score_rejected",
            ));
        }
        Ok(())
    }
}

/// A prompt, the preferred answer and the other one.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
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
    /// By how much the preferred answer is the better one; `None` where the data does not say.
    pub margin: Option<f64>,
}

impl PreferenceRow {
    /// From a row with `prompt` (text or messages; or `messages`), `chosen` and `rejected` (or
    /// `better` and `worse`; text, or messages that end with the assistant's) and, where the data
    /// says so, `chosen_safe` and `rejected_safe` (or `better_safe` and `worse_safe`), and
    /// `margin`, or `score_chosen` and `score_rejected`, whose difference it then is. Other fields
    /// are passed over. Answers of messages may repeat the prompt before their last message.
    ///
    /// # Errors
    /// What is missing or of another type; answers that are the same.
    pub fn from_row(row: &Value) -> Result<Self, RowFault> {
        let (field, prompt) = either(row, ["prompt", "messages"])?;
        let prompt = messages(field, prompt)?;
        Self {
            chosen: answer(row, ["chosen", "better"], &prompt)?,
            rejected: answer(row, ["rejected", "worse"], &prompt)?,
            chosen_safe: flag(row, ["chosen_safe", "better_safe"])?,
            rejected_safe: flag(row, ["rejected_safe", "worse_safe"])?,
            margin: margin(row)?,
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
            margin: None,
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

fn answer(
    row: &Value,
    names: [&'static str; 2],
    prompt: &[ChatMessage],
) -> Result<String, RowFault> {
    let (field, value) = either(row, names)?;
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

/// A flag that may be missing.
fn flag(row: &Value, names: [&'static str; 2]) -> Result<Option<bool>, RowFault> {
    if names.iter().all(|name| present(row, name).is_none()) {
        return Ok(None);
    }
    let (field, value) = either(row, names)?;
    value.as_bool().map(Some).ok_or_else(|| {
        RowFault::new(
            format!("field {field:?} of another type"),
            format!("field {field:?} is {}, expected true or false", brief(value)),
        )
    })
}

/// A row's own margin, or the difference of its answers' scores (UltraFeedback's columns).
fn margin(row: &Value) -> Result<Option<f64>, RowFault> {
    let number = |field: &str| match present(row, field) {
        None => Ok(None),
        Some(value) => value.as_f64().map(Some).ok_or_else(|| {
            RowFault::new(
                format!("field {field:?} of another type"),
                format!("field {field:?} is {}, expected a number", brief(value)),
            )
        }),
    };
    let scores = (number("score_chosen")?, number("score_rejected")?);
    let difference = scores.0.zip(scores.1).map(|(chosen, rejected)| chosen - rejected);
    Ok(number("margin")?.or(difference))
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
    fn better_and_worse_are_other_names_and_a_margin_is_given_or_follows_from_scores() {
        let row = json!({"id": "a", "messages": [{"role": "user", "content": "q"}], "better": "x",
            "worse": "y", "better_safe": true, "worse_safe": false, "margin": 0.5});
        let row = PreferenceRow::from_row(&row).unwrap();
        assert_eq!((row.chosen.as_str(), row.rejected.as_str()), ("x", "y"));
        assert_eq!((row.chosen_safe, row.rejected_safe), (Some(true), Some(false)));
        assert_eq!(row.margin, Some(0.5));
        let needs = PairNeeds { safety: true, margin: true, ..PairNeeds::default() };
        assert!(needs.check(&row).is_ok());
        let scored = json!({"prompt": "q", "chosen": "a", "rejected": "b", "score_chosen": 7.5,
            "score_rejected": 6});
        let row = PreferenceRow::from_row(&scored).unwrap();
        assert_eq!(row.margin, Some(1.5));
        assert!(needs.check(&row).unwrap_err().problem.contains("chosen_safe"));
        let bare = json!({"prompt": "q", "chosen": "a", "rejected": "b", "score_chosen": 7.5});
        let row = PreferenceRow::from_row(&bare).unwrap();
        let needs = PairNeeds { safety: false, ..needs };
        assert!(needs.check(&row).unwrap_err().problem.contains("no margin"));
    }

    #[test]
    fn the_same_answers_and_missing_ones_are_named() {
        for (row, cause) in [
            (json!({"prompt": "q", "chosen": "a", "rejected": "a"}), "same text"),
            (json!({"prompt": "q", "chosen": "a"}), "no field \"rejected\"; the row has"),
            (json!({"prompt": "q", "chosen": "a", "rejected": 1}), "\"rejected\" is 1"),
            (json!({"prompt": "q", "chosen": "a", "rejected": "b", "chosen_safe": 2}), "2"),
            (json!({"prompt": "q", "chosen": "a", "better": "a", "rejected": "b"}), "both chosen"),
            (json!({"prompt": "q", "chosen": "a", "rejected": "b", "margin": "x"}), "a number"),
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
