//! `{"rule": "keywords"}`: given words or phrases occur.

use serde::{Deserialize, Serialize};

use super::{Answer, Part, RuleError, check, text};

/// How many of the phrases must occur.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Quantifier {
    /// 1 when at least one occurs, else 0.
    #[default]
    Any,
    /// 1 when all occur, else 0.
    All,
    /// The share of phrases that occur.
    Share,
}

/// Looks for phrases as whole words, without regard to case, punctuation and the kind of
/// apostrophe ([`text::words`]): "I can't help" is found in "Sorry, I can’t help!".
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Keywords {
    /// The phrases.
    pub phrases: Vec<String>,
    /// How many must occur. Default any.
    #[serde(default)]
    pub need: Quantifier,
    /// Which text. Default the response.
    #[serde(default)]
    pub part: Part,
    /// Look at this many words from the start only. Default all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub first_words: Option<usize>,
}

impl Keywords {
    pub(super) fn validate(&self) -> Result<(), RuleError> {
        check("keywords", "phrases", "[]", !self.phrases.is_empty(), "at least one phrase")?;
        let blank = self.phrases.iter().find(|p| text::words(p).next().is_none());
        let shown = format!("{:?}", blank.map_or("", String::as_str));
        check("keywords", "phrases", shown, blank.is_none(), "phrases with a word each")?;
        let first = self.first_words.unwrap_or(1);
        check("keywords", "first_words", first, first > 0, "at least 1")
    }

    pub(super) fn score(&self, answer: &Answer<'_>) -> f64 {
        let limit = self.first_words.unwrap_or(usize::MAX);
        let words = text::words(self.part.of(answer)).take(limit);
        let haystack = spaced(words);
        let found = self.phrases.iter().filter(|p| haystack.contains(&spaced(text::words(p))));
        let found = found.count();
        match self.need {
            Quantifier::Any => f64::from(found > 0),
            Quantifier::All => f64::from(found == self.phrases.len()),
            Quantifier::Share => found as f64 / self.phrases.len().max(1) as f64,
        }
    }
}

/// Words with a blank before and after each, so that a phrase is found at word borders only.
fn spaced(words: impl Iterator<Item = String>) -> String {
    let mut text = String::from(" ");
    for word in words {
        text.push_str(&word);
        text.push(' ');
    }
    text
}
