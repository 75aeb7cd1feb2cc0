//! What cannot be judged.

use crate::json::JsonError;

/// A reply, setting or message that cannot be used.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum JudgeError {
    /// The reply's JSON is not read.
    #[error(transparent)]
    Json(#[from] JsonError),
    /// A score that is none.
    #[error("judge score {dimension} is {got}, expected {expected}")]
    Score {
        /// Which.
        dimension: &'static str,
        /// What stands there.
        got: String,
        /// What would be right.
        expected: &'static str,
    },
    /// Scores, NaN or opposite infinities among them, whose mean is not a number.
    #[error("the mean of the judge's scores is not a number")]
    NotANumber,
    /// A rate of an evaluation that is none.
    #[error("judge rate {name} is {got}, expected {expected}")]
    Rate {
        /// Which.
        name: &'static str,
        /// What stands there.
        got: String,
        /// What would be right.
        expected: &'static str,
    },
    /// A setting of the wrong type.
    #[error("judge setting {name} is {got}, expected {expected}")]
    Setting {
        /// Which.
        name: &'static str,
        /// What stands there.
        got: String,
        /// What would be right.
        expected: &'static str,
    },
    /// A message that is none.
    #[error("message {part} is {got}, expected {expected}")]
    Message {
        /// Which part of it.
        part: &'static str,
        /// What stands there.
        got: String,
        /// What would be right.
        expected: &'static str,
    },
    /// A `$` in a template that starts no slot.
    #[error("judge template: the $ at byte {at} starts no slot; write $$ for the sign itself")]
    Template {
        /// Where.
        at: usize,
    },
    /// A slot that nothing fills.
    #[error("judge template: no slot ${name}; there are {expected}")]
    Slot {
        /// Its name.
        name: String,
        /// The names there are.
        expected: &'static str,
    },
}
