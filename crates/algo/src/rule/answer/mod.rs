//! Are two answers to a question of mathematics the same?

mod double;
mod expression;
mod mathruler;
mod pattern;
mod plain_latex;
mod value;

use serde::{Deserialize, Serialize};

/// Who decides whether an answer equals the reference.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Equality {
    /// Equal values are equal answers, however they are written: `docs/rules.md` lists the forms.
    #[default]
    Value,
    /// As the Python package mathruler 0.1.0 decides, which SafeWork-R1 asks: `2/4` is not `1/2`,
    /// `4/2` is not `2`, `50%` is `50`, `5 cm` is `5 m`. For comparison with the original.
    Mathruler,
}

impl Equality {
    /// Does an answer equal the reference? Of answers over 1 KiB only the same text is equal. Time
    /// linear in longer texts.
    #[must_use]
    pub fn holds(self, given: &str, reference: &str) -> bool {
        match self {
            Self::Value => value::equal(given, reference),
            Self::Mathruler => mathruler::equal(given, reference),
        }
    }
}

/// [`Equality::Value`] of two answers. Nothing equals an empty answer.
#[must_use]
pub fn answers_equal(given: &str, reference: &str) -> bool {
    Equality::Value.holds(given, reference)
}
