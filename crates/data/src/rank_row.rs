//! Rows of Rank-GRPO's recommendation data.

use plumb_domain::ChatMessage;
use serde_json::{Map, Value};

use crate::RowFault;
use crate::messages::{brief, message, messages, missing, present};

/// Fields that rewards compare a recommendation with; they are handed on unchanged.
const COMPARED: [&str; 4] =
    ["groundtruth_with_release_year", "seen_titles", "assigned_trait", "constraints"];

/// A row of Rank-GRPO and Safe-Rank-GRPO: `prompt` (messages), `completion` (messages or text; only
/// for supervised training), `groundtruth_with_release_year` (`[title, year]` each), `seen_titles`
/// and, where the data has them, `assigned_trait` and `constraints`.
#[derive(Debug, Clone, PartialEq)]
pub struct RankRow {
    /// The conversation; the last message is the user's.
    pub prompt: Vec<ChatMessage>,
    /// The list that stands in the data, as the assistant's message.
    pub completion: Option<ChatMessage>,
    /// `[title, year]` each, years as the row has them (text or numbers).
    pub films: Vec<Value>,
    /// Titles that the user has seen.
    pub seen_titles: Vec<String>,
    /// Trait and constraints, as far as the row has them.
    constraints: Map<String, Value>,
}

impl RankRow {
    /// Reads a row. A row without films or seen titles has none.
    ///
    /// # Errors
    /// A missing prompt, and fields of other types.
    pub fn from_row(row: &Value) -> Result<Self, RowFault> {
        let prompt = present(row, "prompt").ok_or_else(|| missing(row, "prompt"))?;
        let completion = match present(row, "completion") {
            None => None,
            Some(Value::String(text)) => Some(message("assistant", text)),
            Some(value) => match messages("completion", value)?.pop() {
                Some(last) if last.role == "assistant" => Some(last),
                _ => return Err(RowFault::plain("completion does not end with the assistant")),
            },
        };
        let list = |field: &'static str, expected: &str, fits: fn(&Value) -> bool| match present(
            row, field,
        ) {
            None => Ok(Vec::new()),
            Some(Value::Array(items)) if items.iter().all(fits) => Ok(items.clone()),
            Some(other) => Err(RowFault::new(
                format!("field {field:?} of another type"),
                format!("field {field:?} is {}, expected {expected}", brief(other)),
            )),
        };
        let films = list(COMPARED[0], "a list of [title, year]", |film| {
            film.as_array().is_some_and(|parts| parts.len() == 2 && parts[0].is_string())
        })?;
        let seen = list(COMPARED[1], "a list of titles", Value::is_string)?;
        let constraints = COMPARED[2..]
            .iter()
            .filter_map(|field| Some(((*field).to_owned(), present(row, field)?.clone())));
        Ok(Self {
            prompt: messages("prompt", prompt)?,
            completion,
            films,
            seen_titles: seen.iter().filter_map(Value::as_str).map(str::to_owned).collect(),
            constraints: constraints.collect(),
        })
    }

    /// What a reward compares a recommendation with, under the row's own field names.
    #[must_use]
    pub fn reference(&self) -> Value {
        let mut fields = self.constraints.clone();
        fields.insert(COMPARED[0].to_owned(), self.films.clone().into());
        fields.insert(COMPARED[1].to_owned(), self.seen_titles.clone().into());
        Value::Object(fields)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn films_and_seen_titles_are_handed_on() {
        let row = json!({"prompt": [{"role": "user", "content": "films?"}],
            "completion": [{"role": "assistant", "content": "Heat (1995)"}],
            "groundtruth_with_release_year": [["Heat", "1995"], ["Ran", 1985]],
            "seen_titles": ["Alien"], "assigned_trait": "Anti-gore", "sample_id": "x"});
        let read = RankRow::from_row(&row).unwrap();
        assert_eq!(read.completion.as_ref().unwrap().content, "Heat (1995)");
        assert_eq!(
            read.reference(),
            json!({"groundtruth_with_release_year": [["Heat", "1995"], ["Ran", 1985]],
                "seen_titles": ["Alien"], "assigned_trait": "Anti-gore"})
        );
    }

    #[test]
    fn films_that_are_none_are_named() {
        let row = json!({"prompt": "q", "groundtruth_with_release_year": ["Heat"]});
        let fault = RankRow::from_row(&row).unwrap_err();
        assert!(fault.problem.contains("expected a list of [title, year]"), "{fault}");
        assert!(RankRow::from_row(&json!({"a": 1})).unwrap_err().problem.contains("has a"));
    }
}
