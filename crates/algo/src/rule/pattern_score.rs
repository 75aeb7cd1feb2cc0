//! `{"rule": "pattern_score"}`: an ordered list of patterns, each with a score.

use serde::{Deserialize, Serialize};

use super::{Answer, Part, Pattern, RuleError, check};

/// The score of the first pattern that matches anywhere in the text, else `otherwise`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PatternScore {
    /// The patterns, in the order in which they are tried; at least one.
    pub patterns: Vec<ScoredPattern>,
    /// Score where none matches. Default 0.
    #[serde(default)]
    pub otherwise: f64,
    /// Which text. Default the response.
    #[serde(default)]
    pub part: Part,
}

/// A pattern and what it is worth.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ScoredPattern {
    /// The pattern; `(?i)` in front makes it case-insensitive.
    pub pattern: Pattern,
    /// The score when it is the first that matches.
    pub score: f64,
}

impl PatternScore {
    pub(super) fn validate(&self) -> Result<(), RuleError> {
        const RULE: &str = "pattern_score";
        check(RULE, "patterns", "[]", !self.patterns.is_empty(), "at least one pattern")?;
        let scores = self.patterns.iter().map(|p| p.score).chain([self.otherwise]);
        for score in scores {
            check(RULE, "score", score, score.is_finite(), "a finite number")?;
        }
        Ok(())
    }

    pub(super) fn score(&self, answer: &Answer<'_>) -> f64 {
        let text = self.part.of(answer);
        let first = self.patterns.iter().find(|p| p.pattern.is_match(text));
        first.map_or(self.otherwise, |p| p.score)
    }
}
