//! Regular expressions from a recipe.

use regex::{Regex, RegexBuilder};
use serde::{Deserialize, Serialize};

/// Bound on the memory of a compiled pattern.
const SIZE_LIMIT_BYTES: usize = 1 << 20;

/// A pattern in the syntax of the `regex` crate (no look-around, no back-references), compiled
/// when it is read. `(?i)` in front makes it case-insensitive.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Pattern(Regex);

/// A pattern that does not compile.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[error("pattern {pattern:?}: {cause}")]
pub struct PatternError {
    pattern: String,
    cause: String,
}

impl Pattern {
    /// Compiles a pattern.
    ///
    /// # Errors
    /// [`PatternError`] for wrong syntax or a pattern whose compiled form is over 1 MiB.
    pub fn new(pattern: &str) -> Result<Self, PatternError> {
        let built = RegexBuilder::new(pattern).size_limit(SIZE_LIMIT_BYTES).build();
        built
            .map(Self)
            .map_err(|error| PatternError { pattern: pattern.to_owned(), cause: error.to_string() })
    }

    /// Does it match anywhere in `text`?
    #[must_use]
    pub fn is_match(&self, text: &str) -> bool {
        self.0.is_match(text)
    }
}

impl PartialEq for Pattern {
    fn eq(&self, other: &Self) -> bool {
        self.0.as_str() == other.0.as_str()
    }
}

impl TryFrom<String> for Pattern {
    type Error = PatternError;

    fn try_from(pattern: String) -> Result<Self, PatternError> {
        Self::new(&pattern)
    }
}

impl From<Pattern> for String {
    fn from(pattern: Pattern) -> Self {
        pattern.0.as_str().to_owned()
    }
}
