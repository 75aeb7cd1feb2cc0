//! Typed access to the keys of a `config.json`, with errors that name key and value.

use std::path::Path;

use serde_json::{Map, Value};

use crate::error::{ModelError, Result};

/// Largest size accepted for any dimension; keeps products of two within i64 and refuses
/// nonsense before it becomes an allocation.
const MAX_DIMENSION: i64 = 1 << 30;

/// A JSON object, the file it came from, and the prefix of its keys in messages.
#[derive(Clone, Copy)]
pub(crate) struct Fields<'a> {
    path: &'a Path,
    prefix: &'a str,
    map: &'a Map<String, Value>,
}

impl<'a> Fields<'a> {
    pub(crate) fn new(path: &'a Path, prefix: &'a str, map: &'a Map<String, Value>) -> Self {
        Self { path, prefix, map }
    }

    pub(crate) fn path(&self) -> &'a Path {
        self.path
    }

    /// The value, with an explicit JSON null read as absent.
    pub(crate) fn value(&self, key: &str) -> Option<&'a Value> {
        self.map.get(key).filter(|v| !v.is_null())
    }

    pub(crate) fn object(&self, key: &str) -> Result<Option<&'a Map<String, Value>>> {
        self.value(key)
            .map(|v| v.as_object().ok_or_else(|| self.wrong(key, "an object")))
            .transpose()
    }

    pub(crate) fn text(&self, key: &str) -> Result<Option<&'a str>> {
        self.value(key).map(|v| v.as_str().ok_or_else(|| self.wrong(key, "a string"))).transpose()
    }

    pub(crate) fn flag(&self, key: &str, default: bool) -> Result<bool> {
        self.value(key)
            .map_or(Ok(default), |v| v.as_bool().ok_or_else(|| self.wrong(key, "true or false")))
    }

    pub(crate) fn number(&self, key: &str) -> Result<Option<f64>> {
        self.value(key)
            .map(|v| {
                v.as_f64().filter(|x| x.is_finite()).ok_or_else(|| self.wrong(key, "a number"))
            })
            .transpose()
    }

    pub(crate) fn positive_number(&self, key: &str) -> Result<Option<f64>> {
        match self.number(key)? {
            Some(x) if x <= 0.0 => Err(self.wrong(key, "a number above 0")),
            other => Ok(other),
        }
    }

    pub(crate) fn size(&self, key: &str) -> Result<Option<i64>> {
        self.value(key)
            .map(|v| {
                v.as_i64()
                    .filter(|n| (1..=MAX_DIMENSION).contains(n))
                    .ok_or_else(|| self.wrong(key, "a whole number from 1 to 2^30"))
            })
            .transpose()
    }

    pub(crate) fn required_size(&self, key: &str) -> Result<i64> {
        self.size(key)?.ok_or_else(|| self.wrong(key, "a whole number from 1 to 2^30"))
    }

    /// The error for a key whose value (or absence) is not what is needed.
    pub(crate) fn wrong(&self, key: &str, expected: impl Into<String>) -> ModelError {
        let found = self.map.get(key).map_or_else(|| "missing".to_owned(), Value::to_string);
        ModelError::Config {
            path: self.path.to_owned(),
            key: format!("{}{key}", self.prefix),
            found: shorten(found),
            expected: expected.into(),
        }
    }

    /// The error for something known by name that this implementation does not have.
    pub(crate) fn unsupported(
        &self,
        what: &'static str,
        name: impl Into<String>,
        supported: impl Into<String>,
    ) -> ModelError {
        ModelError::Unsupported {
            path: self.path.to_owned(),
            what,
            name: shorten(name.into()),
            supported: supported.into(),
        }
    }
}

/// Keeps an error line readable when a file holds something huge.
fn shorten(text: String) -> String {
    if text.chars().count() <= 120 {
        return text;
    }
    let mut short: String = text.chars().take(117).collect();
    short.push_str("...");
    short
}
