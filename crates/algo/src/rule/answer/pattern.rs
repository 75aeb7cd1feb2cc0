//! Regular expressions compiled once.

use std::sync::LazyLock;

use regex::Regex;

/// A pattern that is compiled on first use.
pub(super) struct Pattern(LazyLock<Option<Regex>>);

/// `pattern!(NAME, "...")`: a static [`Pattern`].
macro_rules! pattern {
    ($name:ident, $pattern:expr) => {
        static $name: Pattern = Pattern::new(|| regex::Regex::new($pattern).ok());
    };
}
pub(super) use pattern;

impl Pattern {
    pub(super) const fn new(compile: fn() -> Option<Regex>) -> Self {
        Self(LazyLock::new(compile))
    }

    pub(super) fn matches(&self, text: &str) -> bool {
        self.0.as_ref().is_some_and(|pattern| pattern.is_match(text))
    }

    pub(super) fn captures<'t>(&self, text: &'t str) -> Option<regex::Captures<'t>> {
        self.0.as_ref()?.captures(text)
    }

    /// The text with every match replaced; `${1}` is the first group.
    pub(super) fn replaced(&self, text: &str, by: &str) -> String {
        match &*self.0 {
            Some(pattern) => pattern.replace_all(text, by).into_owned(),
            None => text.to_owned(),
        }
    }
}
