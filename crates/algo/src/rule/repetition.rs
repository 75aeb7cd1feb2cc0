//! `{"rule": "repetition"}`: the response does not go round in circles.

use std::collections::HashMap;
use std::sync::LazyLock;

use regex::Regex;
use serde::{Deserialize, Serialize};

use super::{Answer, RuleError, check};

/// 1 - [`repetition_ratio`] of the response.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Repetition {
    /// Words of an n-gram. Default 3.
    #[serde(default = "three")]
    pub ngram: usize,
    /// Shorter responses have ratio 0. Default 12.
    #[serde(default = "twelve")]
    pub min_tokens: usize,
}

fn three() -> usize {
    3
}

fn twelve() -> usize {
    12
}

impl Default for Repetition {
    fn default() -> Self {
        Self { ngram: three(), min_tokens: twelve() }
    }
}

impl Repetition {
    pub(super) fn validate(&self) -> Result<(), RuleError> {
        check("repetition", "ngram", self.ngram, (1..=64).contains(&self.ngram), "1 to 64")
    }

    pub(super) fn score(&self, answer: &Answer<'_>) -> f64 {
        1.0 - repetition_ratio(answer.response, self.ngram, self.min_tokens)
    }
}

/// Share of n-grams that occurred before: `sum over distinct n-grams of (count - 1) / number of
/// n-grams`. Tokens are runs of word characters and single other non-blank characters of the
/// lower-cased text; with fewer than `max(min_tokens, 2 ngram)` of them the ratio is 0.
///
/// Source: SaFeR-Steer `_compute_repetition_ratio` (saferdy_interaction.py). With an `ngram` of 0
/// there is an empty n-gram at each border of a token, all of them equal.
#[must_use]
pub fn repetition_ratio(text: &str, ngram: usize, min_tokens: usize) -> f64 {
    let lower = text.to_lowercase();
    let tokens: Vec<&str> = TOKEN.find_iter(&lower).map(|m| m.as_str()).collect();
    if tokens.len() < min_tokens.max(ngram.saturating_mul(2)) {
        return 0.0;
    }
    if ngram == 0 {
        return tokens.len() as f64 / (tokens.len() + 1) as f64;
    }
    let mut counts: HashMap<&[&str], usize> = HashMap::new();
    for gram in tokens.windows(ngram) {
        *counts.entry(gram).or_insert(0) += 1;
    }
    let total = tokens.len() - ngram + 1;
    (total - counts.len()) as f64 / total as f64
}

/// Python's `\w+|\S`: letters and numbers of any script, underscore; U+001C to U+001F are blanks.
#[allow(clippy::expect_used, reason = "a constant pattern, compiled in every test run")]
static TOKEN: LazyLock<Regex> =
    LazyLock::new(|| Regex::new(r"[\p{L}\p{N}_]+|[^\s\x1c-\x1f]").expect("a constant pattern"));
