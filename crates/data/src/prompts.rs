//! Prompts as JSON lines.
//!
//! A row has `id`, `label` and either `prompt` (one user message) or `messages` (a conversation
//! whose last message is the user's); `reference` where there is a reference answer.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use plumb_domain::{ChatMessage, Label, Prompt, PromptId};
use serde::Deserialize;

/// Prompt data that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum DataError {
    /// The file could not be read.
    #[error("{} cannot be read", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// A row that is no prompt.
    #[error("{} line {line}: {problem}", path.display())]
    Row {
        /// The file.
        path: PathBuf,
        /// Counted from 1.
        line: usize,
        /// What is wrong, and what would be right.
        problem: String,
    },
    /// No rows.
    #[error("{} has no rows", path.display())]
    Empty {
        /// The file.
        path: PathBuf,
    },
}

/// A row as it stands in a file.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Row {
    id: String,
    label: String,
    #[serde(default)]
    prompt: Option<String>,
    #[serde(default)]
    messages: Option<Vec<ChatMessage>>,
    #[serde(default)]
    reference: Option<String>,
}

/// Reads a file of prompts.
///
/// # Errors
/// [`DataError`] names the file, the line and what is wrong with it.
pub fn read_prompts(path: &Path) -> Result<Vec<Prompt>, DataError> {
    let text = std::fs::read_to_string(path)
        .map_err(|source| DataError::Read { path: path.to_owned(), source })?;
    parse_prompts(&text, path)
}

/// Parses the text of such a file; `path` stands in errors. Blank lines are passed over.
///
/// # Errors
/// As [`read_prompts`].
pub fn parse_prompts(text: &str, path: &Path) -> Result<Vec<Prompt>, DataError> {
    let mut prompts: Vec<Prompt> = Vec::new();
    let mut lines: BTreeMap<PromptId, usize> = BTreeMap::new();
    for (index, text) in text.lines().enumerate().filter(|(_, text)| !text.trim().is_empty()) {
        let line = index + 1;
        let wrong = |problem| DataError::Row { path: path.to_owned(), line, problem };
        let row: Row = serde_json::from_str(text).map_err(|e| wrong(e.to_string()))?;
        let prompt = row.into_prompt().map_err(wrong)?;
        if let Some(first) = lines.insert(prompt.id.clone(), line) {
            let problem = format!("id {:?} stands in line {first} too", prompt.id.as_str());
            return Err(wrong(problem));
        }
        prompts.push(prompt);
    }
    if prompts.is_empty() {
        return Err(DataError::Empty { path: path.to_owned() });
    }
    Ok(prompts)
}

impl Row {
    fn into_prompt(self) -> Result<Prompt, String> {
        let messages = match (self.prompt, self.messages) {
            (Some(prompt), None) => vec![ChatMessage { role: "user".to_owned(), content: prompt }],
            (None, Some(messages)) => messages,
            (Some(_), Some(_)) => return Err("both prompt and messages; give one".to_owned()),
            (None, None) => return Err("neither prompt nor messages; give one".to_owned()),
        };
        let known = ["system", "user", "assistant"];
        if let Some(message) = messages.iter().find(|m| !known.contains(&m.role.as_str())) {
            return Err(format!("role {:?}; use system, user or assistant", message.role));
        }
        match messages.last() {
            Some(last) if last.role == "user" && !last.content.trim().is_empty() => {}
            _ => return Err("the last message is not a user's with text in it".to_owned()),
        }
        Ok(Prompt {
            id: PromptId::new(self.id).map_err(|e| e.to_string())?,
            label: Label::new(self.label).map_err(|e| e.to_string())?,
            messages,
            reference: self.reference,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Vec<Prompt>, DataError> {
        parse_prompts(text, Path::new("p.jsonl"))
    }

    #[test]
    fn a_prompt_is_one_message_or_a_conversation() {
        let text = r#"{"id":"a","label":"general","prompt":"Hi?"}

{"id":"b","label":"safety","messages":[{"role":"system","content":"s"},{"role":"user","content":"q"}],"reference":"4"}
"#;
        let prompts = parse(text).unwrap();
        assert_eq!(prompts[0].question(), "Hi?");
        assert_eq!(prompts[1].messages.len(), 2);
        assert_eq!(prompts[1].reference.as_deref(), Some("4"));
    }

    #[test]
    fn a_bad_row_is_named_by_line_and_cause() {
        let good = r#"{"id":"a","label":"l","prompt":"q"}"#;
        for (row, cause) in [
            ("{", "EOF"),
            (r#"{"id":"b","label":"l"}"#, "neither prompt nor messages"),
            (r#"{"id":"b","label":"l","prompt":"q","messages":[]}"#, "both"),
            (r#"{"id":"b","label":"l","prompt":" "}"#, "last message"),
            (r#"{"id":"b","label":"l","promt":"q"}"#, "promt"),
            (r#"{"id":"b b","label":"l","prompt":"q"}"#, "b b"),
            (r#"{"id":"a","label":"l","prompt":"q"}"#, "line 1 too"),
            (r#"{"id":"b","label":"l","messages":[{"role":"robot","content":"q"}]}"#, "robot"),
        ] {
            let error = parse(&format!("{good}\n{row}\n")).unwrap_err().to_string();
            assert!(error.starts_with("p.jsonl line 2: ") && error.contains(cause), "{error}");
        }
    }

    #[test]
    fn an_empty_or_missing_file_is_named() {
        assert_eq!(parse("\n").unwrap_err().to_string(), "p.jsonl has no rows");
        let error = read_prompts(Path::new("/no/such.jsonl")).unwrap_err();
        assert_eq!(error.to_string(), "/no/such.jsonl cannot be read");
    }
}
