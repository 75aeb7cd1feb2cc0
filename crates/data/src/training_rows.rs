//! Dialogues and preference pairs as JSON lines.
//!
//! A dialogue has `id` and either `prompt` and `answer` or `messages`, of which at least one is
//! the assistant's. A pair has `id`, either `prompt` or `messages` that end with the user's, the
//! answers `better` and `worse`, and, where it is known, `better_safe` and `worse_safe`.

use std::collections::BTreeMap;
use std::path::Path;

use plumb_domain::ChatMessage;
use serde::Deserialize;
use serde::de::DeserializeOwned;

use crate::{At, DataError, Place, RowFault};

/// A conversation to learn from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Dialogue {
    /// Unique in its file.
    pub id: String,
    /// The turns; at least one is the assistant's.
    pub messages: Vec<ChatMessage>,
}

/// A prompt with two answers of which the first is better.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PreferencePair {
    /// Unique in its file.
    pub id: String,
    /// The turns before the answer; the last is the user's.
    pub messages: Vec<ChatMessage>,
    /// The better answer; of a pair about safety, the safer one.
    pub better: String,
    /// The worse answer.
    pub worse: String,
    /// Whether the better and the worse answer are safe.
    pub safe: Option<[bool; 2]>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct DialogueRow {
    id: String,
    #[serde(default)]
    prompt: Option<String>,
    #[serde(default)]
    answer: Option<String>,
    #[serde(default)]
    messages: Option<Vec<ChatMessage>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct PairRow {
    id: String,
    #[serde(default)]
    prompt: Option<String>,
    #[serde(default)]
    messages: Option<Vec<ChatMessage>>,
    better: String,
    worse: String,
    #[serde(default)]
    better_safe: Option<bool>,
    #[serde(default)]
    worse_safe: Option<bool>,
}

/// Reads a file of dialogues.
///
/// # Errors
/// [`DataError`] names the file, the line and what is wrong with it.
pub fn read_dialogues(path: &Path) -> Result<Vec<Dialogue>, DataError> {
    parse_dialogues(&text(path)?, path)
}

/// Parses the text of such a file; `path` stands in errors. Blank lines are passed over.
///
/// # Errors
/// As [`read_dialogues`].
pub fn parse_dialogues(text: &str, path: &Path) -> Result<Vec<Dialogue>, DataError> {
    rows(text, path, DialogueRow::into_dialogue, |dialogue| &dialogue.id)
}

/// Reads a file of preference pairs.
///
/// # Errors
/// [`DataError`] names the file, the line and what is wrong with it.
pub fn read_preference_pairs(path: &Path) -> Result<Vec<PreferencePair>, DataError> {
    parse_preference_pairs(&text(path)?, path)
}

/// Parses the text of such a file; `path` stands in errors. Blank lines are passed over.
///
/// # Errors
/// As [`read_preference_pairs`].
pub fn parse_preference_pairs(text: &str, path: &Path) -> Result<Vec<PreferencePair>, DataError> {
    rows(text, path, PairRow::into_pair, |pair| &pair.id)
}

fn text(path: &Path) -> Result<String, DataError> {
    std::fs::read_to_string(path)
        .map_err(|source| DataError::Read { path: path.to_owned(), source })
}

fn rows<Row: DeserializeOwned, Sample>(
    text: &str,
    path: &Path,
    convert: impl Fn(Row) -> Result<Sample, String>,
    id: impl Fn(&Sample) -> &str,
) -> Result<Vec<Sample>, DataError> {
    let mut samples: Vec<Sample> = Vec::new();
    let mut lines: BTreeMap<String, usize> = BTreeMap::new();
    for (index, text) in text.lines().enumerate().filter(|(_, text)| !text.trim().is_empty()) {
        let line = index + 1;
        let wrong = |problem: String| DataError::Row {
            place: Place { path: path.into(), at: At::Line(line as u64) },
            fault: RowFault::new(problem.clone(), problem),
        };
        let row = serde_json::from_str(text).map_err(|error| wrong(error.to_string()))?;
        let sample = convert(row).map_err(wrong)?;
        if let Some(first) = lines.insert(id(&sample).to_owned(), line) {
            return Err(wrong(format!("id {:?} stands in line {first} too", id(&sample))));
        }
        samples.push(sample);
    }
    match samples.is_empty() {
        true => Err(DataError::Empty { path: path.to_owned() }),
        false => Ok(samples),
    }
}

impl DialogueRow {
    fn into_dialogue(self) -> Result<Dialogue, String> {
        let messages = match (self.prompt, self.answer, self.messages) {
            (Some(prompt), Some(answer), None) => {
                vec![message("user", prompt), message("assistant", answer)]
            }
            (None, None, Some(messages)) => messages,
            _ => return Err("give prompt and answer, or messages alone".to_owned()),
        };
        check_turns(&messages)?;
        if !messages.iter().any(|m| m.role == "assistant") {
            return Err("no message is the assistant's, so there is nothing to learn".to_owned());
        }
        Ok(Dialogue { id: self.id, messages })
    }
}

impl PairRow {
    fn into_pair(self) -> Result<PreferencePair, String> {
        let messages = match (self.prompt, self.messages) {
            (Some(prompt), None) => vec![message("user", prompt)],
            (None, Some(messages)) => messages,
            _ => return Err("give either prompt or messages".to_owned()),
        };
        check_turns(&messages)?;
        if messages.last().is_none_or(|m| m.role != "user") {
            return Err("the last message is not the user's".to_owned());
        }
        if self.better == self.worse {
            return Err("better and worse are the same text".to_owned());
        }
        let safe = match (self.better_safe, self.worse_safe) {
            (Some(better), Some(worse)) => Some([better, worse]),
            (None, None) => None,
            _ => return Err("give both of better_safe and worse_safe, or neither".to_owned()),
        };
        let Self { id, better, worse, .. } = self;
        Ok(PreferencePair { id, messages, better, worse, safe })
    }
}

fn message(role: &str, content: String) -> ChatMessage {
    ChatMessage { role: role.to_owned(), content }
}

fn check_turns(messages: &[ChatMessage]) -> Result<(), String> {
    let known = ["system", "user", "assistant"];
    match messages.iter().find(|m| !known.contains(&m.role.as_str())) {
        Some(message) => Err(format!("role {:?}; use system, user or assistant", message.role)),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn dialogues(text: &str) -> Result<Vec<Dialogue>, DataError> {
        parse_dialogues(text, Path::new("d.jsonl"))
    }

    fn pairs(text: &str) -> Result<Vec<PreferencePair>, DataError> {
        parse_preference_pairs(text, Path::new("p.jsonl"))
    }

    #[test]
    fn a_dialogue_is_a_prompt_with_its_answer_or_a_conversation() {
        let text = r#"{"id":"a","prompt":"Hi?","answer":"Yo."}

{"id":"b","messages":[{"role":"user","content":"q"},{"role":"assistant","content":"a"}]}
"#;
        let dialogues = dialogues(text).unwrap();
        assert_eq!(dialogues[0].messages[1], message("assistant", "Yo.".into()));
        assert_eq!(dialogues[1].messages.len(), 2);
    }

    #[test]
    fn a_pair_may_say_which_answers_are_safe() {
        let text = r#"{"id":"a","prompt":"q","better":"x","worse":"y"}
{"id":"b","prompt":"q","better":"x","worse":"y","better_safe":true,"worse_safe":false}"#;
        let pairs = pairs(text).unwrap();
        assert_eq!((pairs[0].safe, pairs[1].safe), (None, Some([true, false])));
    }

    #[test]
    fn a_bad_row_is_named_by_line_and_cause() {
        let good = r#"{"id":"a","prompt":"q","answer":"x"}"#;
        for (row, cause) in [
            ("{", "EOF"),
            (r#"{"id":"b","prompt":"q"}"#, "prompt and answer"),
            (r#"{"id":"b","messages":[{"role":"user","content":"q"}]}"#, "nothing to learn"),
            (r#"{"id":"b","messages":[{"role":"bot","content":"q"}]}"#, "bot"),
            (r#"{"id":"a","prompt":"q","answer":"x"}"#, "line 1 too"),
            (r#"{"id":"b","prompt":"q","anwser":"x"}"#, "anwser"),
        ] {
            let error = dialogues(&format!("{good}\n{row}\n")).unwrap_err().to_string();
            assert!(error.starts_with("d.jsonl line 2: ") && error.contains(cause), "{error}");
        }
        let good = r#"{"id":"a","prompt":"q","better":"x","worse":"y"}"#;
        for (row, cause) in [
            (r#"{"id":"b","prompt":"q","better":"x","worse":"x"}"#, "same text"),
            (r#"{"id":"b","prompt":"q","better":"x"}"#, "worse"),
            (r#"{"id":"b","better":"x","worse":"y"}"#, "either prompt or messages"),
            (r#"{"id":"b","prompt":"q","better":"x","worse":"y","better_safe":true}"#, "both of"),
            (
                r#"{"id":"b","messages":[{"role":"assistant","content":"a"}],"better":"x","worse":"y"}"#,
                "not the user's",
            ),
        ] {
            let error = pairs(&format!("{good}\n{row}\n")).unwrap_err().to_string();
            assert!(error.starts_with("p.jsonl line 2: ") && error.contains(cause), "{error}");
        }
        assert_eq!(pairs("\n").unwrap_err().to_string(), "p.jsonl has no rows");
    }
}
