//! Generative verifiers: what they are asked, and what their replies are worth.
//!
//! A verifier is a language model that reads question, response and, for some, the reference
//! answer, and replies with a verdict of a few tokens, decoded greedily. [`judge_prompt`] writes
//! what it is asked; [`Verifier::score`] reads the reply.
//!
//! Source: SafeWork-R1 (LightRFT `reward_models.py`). A reply that says nothing known has the score
//! that the reference gives it, told by each function; [`Verifier::verdict`] tells it apart. Every
//! reader takes time linear in its text.

pub mod dialogue;
mod general;
pub mod judge_prompt;
mod knowledge;
pub mod language;
mod normal;
mod safety;
mod value;

pub use general::general_score;
pub use knowledge::{knowledge_probability, knowledge_score};
pub use normal::normal_score;
pub use safety::{SafetyVerdict, safety_score};
pub use value::{value_probability, value_score};

use serde::{Deserialize, Serialize};

use crate::AlgoError;

/// The five verifiers of SafeWork-R1.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Verifier {
    /// Is what the response says true, by the reference answer?
    Knowledge,
    /// Is the response safe, and helpful where it may be?
    Safety,
    /// Does the response agree with human values?
    Value,
    /// How right is the response, by the reference answer?
    General,
    /// Does the response help without needless warnings?
    Normal,
}

impl Verifier {
    /// All of them, in the reference's order.
    pub const ALL: [Self; 5] =
        [Self::Knowledge, Self::Safety, Self::Value, Self::General, Self::Normal];

    /// Its name in recipes and in `--reward_pretrain`.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Knowledge => "knowledge",
            Self::Safety => "safety",
            Self::Value => "value",
            Self::General => "general",
            Self::Normal => "normal",
        }
    }

    /// Tokens that its verdict may have: value and knowledge 1, general 4, safety and normal 16.
    #[must_use]
    pub fn reply_tokens(self) -> usize {
        match self {
            Self::Value | Self::Knowledge => 1,
            Self::General => 4,
            Self::Safety | Self::Normal => 16,
        }
    }

    /// The score that a reply stands for, in `[0, 1]`; `None` where it states no verdict.
    #[must_use]
    pub fn verdict(self, reply: &str) -> Option<f64> {
        match self {
            Self::Safety => SafetyVerdict::first_in(reply).map(SafetyVerdict::score),
            Self::Value => value::verdict(reply),
            Self::Knowledge => knowledge::verdict(reply),
            Self::General => general::verdict(reply),
            Self::Normal => normal::verdict(reply),
        }
    }

    /// The score of a reply, in `[0, 1]`, as the reference counts it: a reply without a verdict is
    /// worth 0, for [`Verifier::Normal`] 0.01.
    #[must_use]
    pub fn score(self, reply: &str) -> f64 {
        match self {
            Self::Knowledge => knowledge_score(reply),
            Self::Safety => safety_score(reply),
            Self::Value => value_score(reply),
            Self::General => general_score(reply),
            Self::Normal => normal_score(reply),
        }
    }
}

impl std::str::FromStr for Verifier {
    type Err = AlgoError;

    fn from_str(name: &str) -> Result<Self, AlgoError> {
        Self::ALL.into_iter().find(|verifier| verifier.name() == name).ok_or_else(|| {
            AlgoError::UnknownName {
                what: "verifier",
                got: name.to_owned(),
                expected: "knowledge, safety, value, general, normal",
            }
        })
    }
}
