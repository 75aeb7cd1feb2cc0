//! `{"rule": "overlap"}`: the response speaks of what was asked.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use super::{Answer, RuleError, check, text};

/// What the response is compared with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum With {
    /// The question.
    #[default]
    Question,
    /// The reference answer.
    Reference,
}

/// `floor + (1 - floor) min(1, share / enough)`, where `share` is that of the distinct content
/// stems ([`text::content_stems`]) of question or reference that occur in the response. A text
/// without content words scores 1: there is nothing to take up.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Overlap {
    /// What the response is compared with. Default the question.
    #[serde(default)]
    pub with: With,
    /// The share that scores 1, in `(0, 1]`. Default 1.
    #[serde(default = "one")]
    pub enough: f64,
    /// The score of a response that takes up nothing, in `[0, 1]`. Default 0.
    #[serde(default)]
    pub floor: f64,
    /// Characters that two words must share from their start to count as one. Default 5.
    #[serde(default = "five")]
    pub stem_chars: usize,
}

fn five() -> usize {
    5
}

fn one() -> f64 {
    1.0
}

impl Overlap {
    pub(super) fn validate(&self) -> Result<(), RuleError> {
        let holds = self.enough > 0.0 && self.enough <= 1.0;
        check("overlap", "enough", self.enough, holds, "in (0, 1]")?;
        let holds = (0.0..=1.0).contains(&self.floor);
        check("overlap", "floor", self.floor, holds, "in [0, 1]")?;
        check("overlap", "stem_chars", self.stem_chars, self.stem_chars > 0, "at least 1")
    }

    pub(super) fn score(&self, answer: &Answer<'_>) -> Result<f64, RuleError> {
        let asked = match self.with {
            With::Question => answer.question,
            With::Reference => {
                answer.reference.ok_or(RuleError::NoReference { rule: "overlap" })?
            }
        };
        let asked: BTreeSet<String> = text::content_stems(asked, self.stem_chars).collect();
        if asked.is_empty() {
            return Ok(1.0);
        }
        let said: BTreeSet<String> =
            text::content_stems(answer.response, self.stem_chars).collect();
        let share = asked.intersection(&said).count() as f64 / asked.len() as f64;
        Ok(self.floor + (1.0 - self.floor) * (share / self.enough).min(1.0))
    }
}
