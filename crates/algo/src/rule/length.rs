//! `{"rule": "length"}`: neither too short nor too long.

use serde::{Deserialize, Serialize};

use super::{Answer, RuleError, check, text};

/// What a length counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LengthUnit {
    /// Words ([`text::words`]).
    #[default]
    Words,
    /// Characters (Unicode scalar values).
    Chars,
    /// Tokens of the policy's tokenizer.
    Tokens,
}

/// 1 for a response of `min ..= max` units; outside, the score falls in a straight line to 0 over
/// `ramp` units (at once where `ramp` is 0).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Length {
    /// What is counted. Default words.
    #[serde(default)]
    pub unit: LengthUnit,
    /// Least length of full score. Default 0.
    #[serde(default)]
    pub min: u32,
    /// Greatest length of full score. Default: no bound.
    #[serde(default = "no_bound")]
    pub max: u32,
    /// Units over which the score falls to 0 on either side. Default 0.
    #[serde(default)]
    pub ramp: u32,
}

fn no_bound() -> u32 {
    u32::MAX
}

impl Length {
    pub(super) fn validate(&self) -> Result<(), RuleError> {
        check("length", "min", self.min, self.min <= self.max, "at most max")
    }

    pub(super) fn score(&self, answer: &Answer<'_>) -> f64 {
        let length = match self.unit {
            LengthUnit::Words => text::words(answer.response).count(),
            LengthUnit::Chars => answer.response.chars().count(),
            LengthUnit::Tokens => answer.response_tokens,
        };
        let (min, max) = (self.min as usize, self.max as usize);
        let outside = min.saturating_sub(length) + length.saturating_sub(max);
        match (outside, self.ramp) {
            (0, _) => 1.0,
            (_, 0) => 0.0,
            (outside, ramp) => (1.0 - outside as f64 / f64::from(ramp)).max(0.0),
        }
    }
}
