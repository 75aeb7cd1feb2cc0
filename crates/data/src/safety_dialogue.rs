//! Rows of a data set of safety dialogues: an opening, and the user's further messages.

use std::path::{Path, PathBuf};

use serde_json::{Map, Value, json};

/// A row that is none.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DialogueError {
    /// A field of the wrong type.
    #[error("dialogue row: {field} is {got}, expected {expected}")]
    Field {
        /// Which.
        field: &'static str,
        /// Its type.
        got: &'static str,
        /// What would be right.
        expected: &'static str,
    },
    /// An image that cannot be opened.
    #[error("dialogue row: image {} cannot be opened: {problem}", path.display())]
    Image {
        /// Its file.
        path: PathBuf,
        /// Why.
        problem: String,
    },
}

/// A row as training takes it.
#[derive(Debug, Clone, PartialEq)]
pub struct SafetyDialogue {
    /// The system's message, then the row's question; each with `role` and `content`.
    pub prompt: Vec<Value>,
    /// The user's further messages.
    pub rest: Vec<Value>,
    /// Files of its images.
    pub image_paths: Vec<PathBuf>,
    /// Whether the question is safe, as the data says it; null where it does not.
    pub label: Value,
    /// The row's id; null where it has none.
    pub question_id: Value,
    /// The row's metadata, unchanged; empty where there is none.
    pub metadata: Value,
}

impl SafetyDialogue {
    /// Reads a row `{question, metadata: {rest_messages, question_id, image}, images, label}`.
    /// Of the messages only role and content are kept; those without one of them, and what is no
    /// object, are left out. The system's message goes first even if the row has its own. Images
    /// are those of `images`, else the one of the metadata.
    ///
    /// Source: SaFeR-Steer `process_fn` (examples/data_preprocess/safedy_multiturn.py).
    ///
    /// # Errors
    /// [`DialogueError::Field`] for messages or metadata of the wrong type.
    pub fn from_row(row: &Value, system: &str) -> Result<Self, DialogueError> {
        let Value::Object(row) = row else { return Err(wrong("itself", row, "an object")) };
        let metadata = match row.get("metadata") {
            Some(Value::Object(metadata)) => metadata.clone(),
            Some(other) if !is_falsy(other) => {
                return Err(wrong("metadata", other, "an object or null"));
            }
            _ => Map::new(),
        };
        let mut prompt = vec![json!({"role": "system", "content": system})];
        prompt.extend(messages("question", row.get("question"))?);
        Ok(Self {
            prompt,
            rest: messages("rest_messages", metadata.get("rest_messages"))?,
            image_paths: image_paths(row.get("images"), metadata.get("image"))?,
            label: row.get("label").cloned().unwrap_or(Value::Null),
            question_id: metadata.get("question_id").cloned().unwrap_or(Value::Null),
            metadata: Value::Object(metadata),
        })
    }

    /// Opens every image file, to find out before a run whether it is there.
    ///
    /// # Errors
    /// [`DialogueError::Image`] names the first that cannot be opened.
    pub fn check_images(&self, folder: &Path) -> Result<(), DialogueError> {
        for path in &self.image_paths {
            let path = folder.join(path);
            std::fs::File::open(&path).map_err(|error| DialogueError::Image {
                path: path.clone(),
                problem: error.to_string(),
            })?;
        }
        Ok(())
    }

    /// The row in the original's form, with the paths of its images in place of the images.
    #[must_use]
    pub fn to_record(&self, data_source: &str, split: &str, index: usize) -> Value {
        let paths = self.image_paths.iter().map(|path| path.to_string_lossy());
        json!({
            "data_source": data_source,
            "prompt": self.prompt,
            "images": paths.collect::<Vec<_>>(),
            "ability": "safety",
            "reward_model": {"style": "rule", "ground_truth": self.label},
            "extra_info": {
                "split": split,
                "index": index,
                "label": self.label,
                "question_id": self.question_id,
                "interaction_kwargs": {
                    "name": "saferdy",
                    "rest_messages": self.rest,
                    "feedback_prefix": "Judge feedback:\n",
                },
            },
            "metadata": self.metadata,
        })
    }
}

fn messages(field: &'static str, list: Option<&Value>) -> Result<Vec<Value>, DialogueError> {
    match list {
        // Text and objects are gone through item by item in the original; no item is an object.
        None | Some(Value::String(_) | Value::Object(_)) => Ok(Vec::new()),
        Some(Value::Array(items)) => Ok(items.iter().filter_map(message).collect()),
        Some(other) if is_falsy(other) => Ok(Vec::new()),
        Some(other) => Err(wrong(field, other, "a list of messages")),
    }
}

fn message(item: &Value) -> Option<Value> {
    let part = |key| item.get(key).filter(|value| !value.is_null());
    Some(json!({"role": part("role")?, "content": part("content")?}))
}

fn image_paths(
    images: Option<&Value>,
    single: Option<&Value>,
) -> Result<Vec<PathBuf>, DialogueError> {
    let path = |image: &Value| match image {
        Value::String(path) => Ok(PathBuf::from(path)),
        other => Err(wrong("images", other, "paths")),
    };
    match (images, single) {
        (Some(Value::Array(paths)), _) if !paths.is_empty() => paths.iter().map(path).collect(),
        (Some(other), _) if !is_falsy(other) => Err(wrong("images", other, "a list of paths")),
        (_, Some(single)) if !is_falsy(single) => Ok(vec![path(single)?]),
        _ => Ok(Vec::new()),
    }
}

/// Null, false, zero or empty.
fn is_falsy(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Bool(flag) => !flag,
        Value::Number(number) => number.as_f64() == Some(0.0),
        Value::String(text) => text.is_empty(),
        Value::Array(items) => items.is_empty(),
        Value::Object(fields) => fields.is_empty(),
    }
}

fn wrong(field: &'static str, value: &Value, expected: &'static str) -> DialogueError {
    let got = match value {
        Value::Null => "null",
        Value::Bool(_) => "true or false",
        Value::Number(_) => "a number",
        Value::String(_) => "text",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    };
    DialogueError::Field { field, got, expected }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_keep_role_and_content_and_incomplete_ones_are_left_out() {
        let row = json!({
            "question": [{"role": "system", "content": "own"}, {"role": "user", "content": "q",
                "id": 3}, {"role": "user"}, {"role": "user", "content": null}, "text"],
            "metadata": {"rest_messages": [{"role": "user", "content": "r", "n": 1}],
                "question_id": 7},
            "label": "unsafe",
        });
        let read = SafetyDialogue::from_row(&row, "be safe").unwrap();
        assert_eq!(
            Value::Array(read.prompt),
            json!([{"role": "system", "content": "be safe"}, {"role": "system", "content": "own"},
                {"role": "user", "content": "q"}])
        );
        assert_eq!(read.rest, [json!({"role": "user", "content": "r"})]);
        assert_eq!((read.label, read.question_id), (json!("unsafe"), json!(7)));
        assert_eq!(read.metadata, row["metadata"]);
    }

    #[test]
    fn the_metadata_s_image_stands_in_for_missing_images() {
        let paths = |row: Value| SafetyDialogue::from_row(&row, "s").unwrap().image_paths;
        assert_eq!(
            paths(json!({"images": [], "metadata": {"image": "a.png"}})),
            [Path::new("a.png")]
        );
        assert_eq!(
            paths(json!({"images": ["b.png"], "metadata": {"image": "a.png"}})),
            [Path::new("b.png")]
        );
        assert!(paths(json!({"images": null, "metadata": null})).is_empty());
    }

    #[test]
    fn what_is_no_row_and_an_image_that_is_not_there_are_named() {
        let error = |row: Value| SafetyDialogue::from_row(&row, "s").unwrap_err().to_string();
        assert_eq!(
            error(json!({"metadata": [1]})),
            "dialogue row: metadata is a list, expected an object or null"
        );
        assert_eq!(
            error(json!({"question": 3})),
            "dialogue row: question is a number, expected a list of messages"
        );
        let row = SafetyDialogue::from_row(&json!({"images": ["no.png"]}), "s").unwrap();
        let error = row.check_images(Path::new("/nowhere")).unwrap_err().to_string();
        assert!(
            error.starts_with("dialogue row: image /nowhere/no.png cannot be opened"),
            "{error}"
        );
    }
}
