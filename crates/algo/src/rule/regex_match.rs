//! `{"rule": "regex"}`: a pattern that should (or should not) match.

use serde::{Deserialize, Serialize};

use super::{Answer, Part, Pattern, RuleError, check};

/// `on_match` when the pattern matches anywhere in the text, else `on_no_match`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RegexMatch {
    /// The pattern; `(?i)` in front makes it case-insensitive.
    pub pattern: Pattern,
    /// Which text. Default the response.
    #[serde(default)]
    pub part: Part,
    /// Score on a match. Default 1.
    #[serde(default = "one")]
    pub on_match: f64,
    /// Score without a match. Default 0.
    #[serde(default)]
    pub on_no_match: f64,
}

fn one() -> f64 {
    1.0
}

impl RegexMatch {
    pub(super) fn validate(&self) -> Result<(), RuleError> {
        let expected = "a finite number";
        check("regex", "on_match", self.on_match, self.on_match.is_finite(), expected)?;
        check("regex", "on_no_match", self.on_no_match, self.on_no_match.is_finite(), expected)
    }

    pub(super) fn score(&self, answer: &Answer<'_>) -> f64 {
        if self.pattern.is_match(self.part.of(answer)) { self.on_match } else { self.on_no_match }
    }
}
