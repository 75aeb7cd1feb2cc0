//! Rewards by rule: data in a recipe, not code, so that anyone can read what was rewarded.
//!
//! A rule is a JSON (or TOML) table with a `rule` key that names it:
//!
//! ```
//! use plumb_algo::rule::{Answer, Rule};
//!
//! let rule = Rule::from_json(r#"{"rule": "length", "unit": "words", "min": 2, "max": 5}"#)?;
//! let answer = Answer { question: "?", response: "Yes, gladly.", reference: None, response_tokens: 4 };
//! assert_eq!(rule.score(&answer)?, 1.0);
//! # Ok::<(), plumb_algo::rule::RuleError>(())
//! ```
//!
//! Every rule is a pure function of question, response and reference. Scores are in `[0, 1]`
//! unless a rule's own parameters say otherwise (`regex`, `pattern_score`, `weighted`). Regular expressions run in
//! time linear in the text, with a bound on the size of the compiled pattern.

mod answer;
mod boxed_answer;
mod composite;
mod format;
mod keywords;
mod length;
mod overlap;
mod pattern;
mod pattern_score;
mod regex_match;
mod repetition;
pub mod text;

pub use answer::{Equality, answers_equal};
pub use boxed_answer::{BoxedAnswer, last_boxed};
pub use composite::{All, Any, Not, Product, Term, Weighted};
pub use format::Format;
pub use keywords::{Keywords, Quantifier};
pub use length::{Length, LengthUnit};
pub use overlap::{Overlap, With};
pub use pattern::{Pattern, PatternError};
pub use pattern_score::{PatternScore, ScoredPattern};
pub use regex_match::RegexMatch;
pub use repetition::{Repetition, repetition_ratio};

use serde::{Deserialize, Serialize};

/// What a rule looks at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Answer<'a> {
    /// The last user message.
    pub question: &'a str,
    /// The response, without special tokens.
    pub response: &'a str,
    /// The reference answer, where the data has one.
    pub reference: Option<&'a str>,
    /// Tokens of the response.
    pub response_tokens: usize,
}

/// Which text a rule reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Part {
    /// The whole response.
    #[default]
    Response,
    /// The response after its last `</think>`; all of it where there is none.
    FinalAnswer,
    /// The question.
    Question,
}

impl Part {
    /// That text.
    #[must_use]
    pub fn of<'a>(self, answer: &Answer<'a>) -> &'a str {
        match self {
            Self::Response => answer.response,
            Self::FinalAnswer => text::after_thinking(answer.response),
            Self::Question => answer.question,
        }
    }
}

/// A rule with its parameters. Unknown keys are refused.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "rule", rename_all = "snake_case")]
pub enum Rule {
    /// A closed, non-empty thinking block, then an answer.
    Format(Format),
    /// Length within bounds.
    Length(Length),
    /// Little repetition of word n-grams.
    Repetition(Repetition),
    /// A regular expression that matches or does not.
    Regex(RegexMatch),
    /// An ordered list of patterns with scores.
    PatternScore(PatternScore),
    /// The last `\boxed{...}` equals the reference.
    BoxedAnswer(BoxedAnswer),
    /// Given words or phrases occur.
    Keywords(Keywords),
    /// The response takes up the content words of the question or reference.
    Overlap(Overlap),
    /// The least of several rules.
    All(All),
    /// The greatest of several rules.
    Any(Any),
    /// Several rules multiplied.
    Product(Product),
    /// 1 - a rule.
    Not(Not),
    /// The weighted sum of several rules.
    Weighted(Weighted),
}

/// A rule that cannot be read, or cannot score an answer.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum RuleError {
    /// Not a rule: wrong JSON, unknown rule, unknown or missing key, bad pattern.
    #[error("not a rule: {0}")]
    Parse(String),
    /// A parameter out of range.
    #[error("rule {rule}: {parameter} = {value}, expected {expected}")]
    Parameter {
        /// Which rule.
        rule: &'static str,
        /// Which parameter.
        parameter: &'static str,
        /// Its value.
        value: String,
        /// What would be right.
        expected: &'static str,
    },
    /// The rule compares with a reference answer and the sample has none.
    #[error("rule {rule}: the sample has no reference answer")]
    NoReference {
        /// Which rule.
        rule: &'static str,
    },
}

impl Rule {
    /// Reads a rule and checks its parameters.
    ///
    /// # Errors
    /// [`RuleError::Parse`], [`RuleError::Parameter`].
    pub fn from_json(json: &str) -> Result<Self, RuleError> {
        let rule: Self =
            serde_json::from_str(json).map_err(|error| RuleError::Parse(error.to_string()))?;
        rule.validate()?;
        Ok(rule)
    }

    /// Checks the parameters, of nested rules too.
    ///
    /// # Errors
    /// [`RuleError::Parameter`] names rule, parameter, value and range.
    pub fn validate(&self) -> Result<(), RuleError> {
        match self {
            Self::Format(rule) => rule.validate(),
            Self::Length(rule) => rule.validate(),
            Self::Repetition(rule) => rule.validate(),
            Self::Regex(rule) => rule.validate(),
            Self::PatternScore(rule) => rule.validate(),
            Self::BoxedAnswer(rule) => rule.validate(),
            Self::Keywords(rule) => rule.validate(),
            Self::Overlap(rule) => rule.validate(),
            Self::All(rule) => rule.validate(),
            Self::Any(rule) => rule.validate(),
            Self::Product(rule) => rule.validate(),
            Self::Not(rule) => rule.of.validate(),
            Self::Weighted(rule) => rule.validate(),
        }
    }

    /// The score of an answer.
    ///
    /// # Errors
    /// [`RuleError::NoReference`] where the rule needs one and there is none.
    pub fn score(&self, answer: &Answer<'_>) -> Result<f64, RuleError> {
        match self {
            Self::Format(rule) => Ok(rule.score(answer)),
            Self::Length(rule) => Ok(rule.score(answer)),
            Self::Repetition(rule) => Ok(rule.score(answer)),
            Self::Regex(rule) => Ok(rule.score(answer)),
            Self::PatternScore(rule) => Ok(rule.score(answer)),
            Self::BoxedAnswer(rule) => rule.score(answer),
            Self::Keywords(rule) => Ok(rule.score(answer)),
            Self::Overlap(rule) => rule.score(answer),
            Self::All(rule) => rule.score(answer),
            Self::Any(rule) => rule.score(answer),
            Self::Product(rule) => rule.score(answer),
            Self::Not(rule) => Ok(1.0 - rule.of.score(answer)?),
            Self::Weighted(rule) => rule.score(answer),
        }
    }
}

/// `holds`, or an error that names the parameter.
fn check(
    rule: &'static str,
    parameter: &'static str,
    value: impl std::fmt::Display,
    holds: bool,
    expected: &'static str,
) -> Result<(), RuleError> {
    if holds {
        return Ok(());
    }
    Err(RuleError::Parameter { rule, parameter, value: value.to_string(), expected })
}

#[cfg(test)]
mod tests;
