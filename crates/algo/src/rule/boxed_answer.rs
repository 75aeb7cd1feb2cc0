//! `{"rule": "boxed_answer"}`: the final answer is right.

use serde::{Deserialize, Serialize};

use super::number::Rational;
use super::{Answer, RuleError, text};

/// 1 when the last `\boxed{...}` after the thinking block equals the reference
/// ([`answers_equal`]), else 0.
///
/// Source: SafeWork-R1 `rule_reward_fn`. The original decides equality with the Python package
/// mathruler (sympy); here it is decided by normalised text or exact rational value.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BoxedAnswer {}

impl BoxedAnswer {
    pub(super) fn score(&self, answer: &Answer<'_>) -> Result<f64, RuleError> {
        let reference = answer.reference.ok_or(RuleError::NoReference { rule: "boxed_answer" })?;
        let given = last_boxed(text::after_thinking(answer.response));
        Ok(f64::from(given.is_some_and(|given| answers_equal(given, reference))))
    }
}

/// The content of the last `\boxed{...}` whose braces are balanced. One pass over the text.
#[must_use]
pub fn last_boxed(text: &str) -> Option<&str> {
    const OPEN: &str = "\\boxed{";
    let mut last = None;
    let mut from = 0;
    while let Some(found) = text[from..].find(OPEN) {
        let start = from + found + OPEN.len();
        let Some(length) = balanced(&text[start..]) else { break };
        last = Some(&text[start..start + length]);
        from = start + length;
    }
    last
}

/// Bytes up to the brace that closes an already opened one; escaped braces do not count.
fn balanced(text: &str) -> Option<usize> {
    let (mut depth, mut escaped) = (1usize, false);
    for (at, c) in text.char_indices() {
        match c {
            '{' if !escaped => depth += 1,
            '}' if !escaped => depth -= 1,
            _ => {}
        }
        if depth == 0 {
            return Some(at);
        }
        escaped = c == '\\' && !escaped;
    }
    None
}

/// Do two answers say the same? Either their normalised texts are equal, or both are numbers
/// (integers, decimals, percentages, `a/b`, `\frac{a}{b}`) of exactly equal value.
#[must_use]
pub fn answers_equal(given: &str, reference: &str) -> bool {
    let (given, reference) = (normalise(given), normalise(reference));
    if given == reference {
        return !given.is_empty();
    }
    match (Rational::parse(&given), Rational::parse(&reference)) {
        (Some(a), Some(b)) => a.equals(b),
        _ => false,
    }
}

/// Without blanks, dollar signs, `\left`/`\right`, thin spaces, `\text{}` around it, a final full
/// stop, and with one spelling of fractions.
fn normalise(answer: &str) -> String {
    let mut text: String = answer.chars().filter(|c| !c.is_whitespace() && *c != '$').collect();
    for (long, short) in [
        ("\\dfrac", "\\frac"),
        ("\\tfrac", "\\frac"),
        ("\\left", ""),
        ("\\right", ""),
        ("\\,", ""),
        ("\\!", ""),
        ("\\%", "%"),
    ] {
        text = text.replace(long, short);
    }
    if let Some(inner) = text.strip_prefix("\\text{").and_then(|t| t.strip_suffix('}'))
        && !inner.contains(['{', '}'])
    {
        text = inner.to_owned();
    }
    text.strip_suffix('.').unwrap_or(&text).to_lowercase()
}
