//! Samples as data sets hold them, before a tokenizer sees them.

use serde_json::{Map, Value};

use crate::SampleError;

/// What the user asked: one question, or turns that end with the user's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Input {
    /// One question.
    Question(String),
    /// User and assistant in turn.
    Turns(Vec<String>),
}

impl Input {
    /// The turns, a single one for a question.
    #[must_use]
    pub fn turns(&self) -> Vec<&str> {
        match self {
            Self::Question(text) => vec![text],
            Self::Turns(lines) => lines.iter().map(String::as_str).collect(),
        }
    }

    /// A string, or a list of strings.
    ///
    /// # Errors
    /// [`SampleError::FieldType`].
    pub fn from_json(json: &Value) -> Result<Self, SampleError> {
        match json {
            Value::String(text) => Ok(Self::Question(text.clone())),
            other => Ok(Self::Turns(lines("input", other)?)),
        }
    }
}

/// One sample of safe-rlhf's data; which fields there must be depends on what it is made into
/// (see [`crate::preprocess`]).
///
/// Source: safe-rlhf `RawSample`.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct RawSample {
    /// The prompt.
    pub input: Option<Input>,
    /// An answer.
    pub answer: Option<String>,
    /// Another answer to the same prompt.
    pub other_answer: Option<String>,
    /// A whole conversation, user first.
    pub dialogue: Option<Vec<String>>,
    /// Is `answer` better than `other_answer`?
    pub better: Option<bool>,
    /// Is `answer` safer than `other_answer`?
    pub safer: Option<bool>,
    /// Is `answer` safe?
    pub is_safe: Option<bool>,
    /// Is `other_answer` safe?
    pub is_other_safe: Option<bool>,
}

/// What may stand for a safety flag of a row.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum SafeFlags {
    /// `true`, `false`, 1 and 0.
    #[default]
    Strict,
    /// Anything, as safe-rlhf: null, 0 and what is empty are false, all else is true, the text
    /// `"false"` as well.
    CompatTruthy,
}

impl RawSample {
    /// From a row with the fields' names; null is a missing field, other fields are passed over.
    /// Flags may be 0 and 1.
    ///
    /// # Errors
    /// [`SampleError::NotAnObject`], [`SampleError::FieldType`].
    pub fn from_json(json: &Value) -> Result<Self, SampleError> {
        let row = object(json)?;
        let input = present(row, "input").map(Input::from_json).transpose()?;
        let dialogue = present(row, "dialogue").map(|v| lines("dialogue", v)).transpose()?;
        let text = |field| present(row, field).map(|v| text(field, v)).transpose();
        let flag = |field| present(row, field).map(|v| flag(field, v)).transpose();
        Ok(Self {
            input,
            answer: text("answer")?,
            other_answer: text("other_answer")?,
            dialogue,
            better: flag("better")?,
            safer: flag("safer")?,
            is_safe: flag("is_safe")?,
            is_other_safe: flag("is_other_safe")?,
        })
    }

    /// From a row of PKU-SafeRLHF: `prompt`, `response_0`, `response_1`, `better_response_id`,
    /// `safer_response_id`, `is_response_0_safe`, `is_response_1_safe`; other fields are passed
    /// over. `answer` is response 0. `safe_flags` says what may stand for true and false.
    ///
    /// Source: safe-rlhf `SafeRLHFDataset.__getitem__`. An id of 0 means response 0, any other
    /// number response 1, as there; a number in a string is one too.
    ///
    /// # Errors
    /// [`SampleError::NotAnObject`], [`SampleError::Missing`], [`SampleError::FieldType`].
    pub fn from_pku_saferlhf(json: &Value, safe_flags: SafeFlags) -> Result<Self, SampleError> {
        let row = object(json)?;
        let required = |field| row.get(field).ok_or(SampleError::Missing { field });
        let text = |field| text(field, required(field)?);
        let flag = |field| match safe_flags {
            SafeFlags::Strict => flag(field, required(field)?),
            SafeFlags::CompatTruthy => Ok(truthy(required(field)?)),
        };
        let first = |field| Ok::<bool, SampleError>(whole(field, required(field)?)? == 0);
        Ok(Self {
            input: Some(Input::Question(text("prompt")?)),
            answer: Some(text("response_0")?),
            other_answer: Some(text("response_1")?),
            dialogue: None,
            better: Some(first("better_response_id")?),
            safer: Some(first("safer_response_id")?),
            is_safe: Some(flag("is_response_0_safe")?),
            is_other_safe: Some(flag("is_response_1_safe")?),
        })
    }
}

fn object(json: &Value) -> Result<&Map<String, Value>, SampleError> {
    json.as_object().ok_or_else(|| SampleError::NotAnObject { got: brief(json) })
}

/// A field that is there and not null.
fn present<'a>(row: &'a Map<String, Value>, field: &str) -> Option<&'a Value> {
    row.get(field).filter(|value| !value.is_null())
}

fn wrong(field: &'static str, expected: &'static str, value: &Value) -> SampleError {
    SampleError::FieldType { field, expected, got: brief(value) }
}

fn text(field: &'static str, value: &Value) -> Result<String, SampleError> {
    value.as_str().map(str::to_owned).ok_or_else(|| wrong(field, "a string", value))
}

fn lines(field: &'static str, value: &Value) -> Result<Vec<String>, SampleError> {
    let refused = || wrong(field, "a list of strings", value);
    let items = value.as_array().ok_or_else(refused)?;
    items.iter().map(|item| item.as_str().map(str::to_owned).ok_or_else(refused)).collect()
}

/// true, false, 1 or 0.
fn flag(field: &'static str, value: &Value) -> Result<bool, SampleError> {
    match (value.as_bool(), value.as_f64()) {
        (Some(flag), _) => Ok(flag),
        (None, Some(0.0)) => Ok(false),
        (None, Some(1.0)) => Ok(true),
        _ => Err(wrong(field, "true or false", value)),
    }
}

/// Python's `bool`.
fn truthy(value: &Value) -> bool {
    match value {
        Value::Null => false,
        Value::Bool(flag) => *flag,
        Value::Number(number) => number.as_f64() != Some(0.0),
        Value::String(text) => !text.is_empty(),
        Value::Array(items) => !items.is_empty(),
        Value::Object(fields) => !fields.is_empty(),
    }
}

/// A number without its fraction; also written as a flag or, without a fraction, in a string.
fn whole(field: &'static str, value: &Value) -> Result<i64, SampleError> {
    let number = match value {
        Value::Bool(flag) => Some(i64::from(*flag)),
        Value::Number(number) => number.as_i64().or(number.as_f64().map(|n| n as i64)),
        Value::String(text) => text.trim().parse().ok(),
        _ => None,
    };
    number.ok_or_else(|| wrong(field, "a whole number", value))
}

fn brief(value: &Value) -> String {
    value.to_string().chars().take(200).collect()
}
