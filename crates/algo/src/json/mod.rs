//! JSON as models write it: read with the grammar of Python's `json` module, which the reference
//! implementations use on model output.
//!
//! Beyond the standard it takes `NaN`, `Infinity` and `-Infinity`; integers have any size; the
//! last of several equal keys wins and keeps the place of the first. A half of a surrogate pair
//! becomes U+FFFD, since strings here are Unicode text. Nesting is bounded by [`MAX_DEPTH`], so no
//! text can overflow the stack.

mod dump;
mod numeral;
mod parser;
mod search;

use indexmap::IndexMap;

pub use numeral::{float_of_text, int_of_text};
#[cfg(test)]
pub(crate) use search::naive_first_object;
pub use search::{first_object, object_in};

/// Deepest nesting that is read. Python's own limit, 1,000 calls, is reached a few levels later.
pub const MAX_DEPTH: usize = 985;

/// Longest integer that is read, as in Python.
pub const MAX_INTEGER_DIGITS: usize = 4300;

/// A JSON value. The order of an object's fields is kept.
#[derive(Debug, Clone, PartialEq)]
pub enum Json {
    /// `null`.
    Null,
    /// `true` or `false`.
    Bool(bool),
    /// An integer of any size, as it is written.
    Integer(String),
    /// A number with a fraction or an exponent, or `NaN` or an infinity.
    Float(f64),
    /// A string.
    Text(String),
    /// A list.
    List(Vec<Json>),
    /// An object.
    Object(IndexMap<String, Json>),
}

/// Text that cannot be read, whatever follows in it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum JsonError {
    /// Nested too deep.
    #[error("JSON nested deeper than {limit} levels at byte {at}")]
    TooDeep {
        /// [`MAX_DEPTH`].
        limit: usize,
        /// Where the level too many opens.
        at: usize,
    },
    /// An integer with too many digits.
    #[error("JSON integer of {digits} digits at byte {at}, at most {MAX_INTEGER_DIGITS} are read")]
    LongInteger {
        /// Its digits.
        digits: usize,
        /// Where it starts.
        at: usize,
    },
    /// An integer too large for a floating-point number.
    #[error("JSON integer of {digits} digits is too large for a floating-point number")]
    LargeInteger {
        /// Its digits.
        digits: usize,
    },
}

impl Json {
    /// A field of an object; `None` for anything else.
    #[must_use]
    pub fn get(&self, key: &str) -> Option<&Self> {
        match self {
            Self::Object(fields) => fields.get(key),
            _ => None,
        }
    }

    /// The text of a string.
    #[must_use]
    pub fn as_text(&self) -> Option<&str> {
        match self {
            Self::Text(text) => Some(text),
            _ => None,
        }
    }

    /// Is it an object?
    #[must_use]
    pub fn is_object(&self) -> bool {
        matches!(self, Self::Object(_))
    }

    /// What Python takes for false: null, false, zero, and what is empty.
    #[must_use]
    pub fn is_falsy(&self) -> bool {
        match self {
            Self::Null => true,
            Self::Bool(flag) => !flag,
            Self::Integer(digits) => digits.bytes().all(|b| matches!(b, b'0' | b'-')),
            Self::Float(value) => *value == 0.0,
            Self::Text(text) => text.is_empty(),
            Self::List(items) => items.is_empty(),
            Self::Object(fields) => fields.is_empty(),
        }
    }

    /// The value of a number; true is 1 and false is 0, as in Python. `None` for anything else.
    ///
    /// # Errors
    /// [`JsonError::LargeInteger`] for an integer beyond the largest `f64`.
    pub fn number(&self) -> Result<Option<f64>, JsonError> {
        match self {
            Self::Bool(flag) => Ok(Some(f64::from(*flag))),
            Self::Float(value) => Ok(Some(*value)),
            Self::Integer(text) => {
                let value = text.parse::<f64>().unwrap_or(f64::INFINITY);
                if value.is_infinite() {
                    return Err(JsonError::LargeInteger { digits: text.len() });
                }
                Ok(Some(value))
            }
            _ => Ok(None),
        }
    }
}

impl From<&serde_json::Value> for Json {
    fn from(value: &serde_json::Value) -> Self {
        use serde_json::Value;
        match value {
            Value::Null => Self::Null,
            Value::Bool(flag) => Self::Bool(*flag),
            Value::Number(n) if n.is_i64() || n.is_u64() => Self::Integer(n.to_string()),
            Value::Number(n) => Self::Float(n.as_f64().unwrap_or(f64::NAN)),
            Value::String(text) => Self::Text(text.clone()),
            Value::Array(items) => Self::List(items.iter().map(Self::from).collect()),
            Value::Object(fields) => {
                Self::Object(fields.iter().map(|(k, v)| (k.clone(), v.into())).collect())
            }
        }
    }
}
