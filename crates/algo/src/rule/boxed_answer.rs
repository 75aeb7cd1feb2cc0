//! `{"rule": "boxed_answer"}`: the final answer is right.

use plumb_domain::text::strip;
use serde::{Deserialize, Serialize};

use super::answer::Equality;
use super::{Answer, Part, RuleError, check};

/// 1 when the last `\boxed{...}` of the text equals the reference, else 0.
///
/// Source: SafeWork-R1 `rule_reward_fn`; `geo3k_accuracy_reward_fn` and `gsm8k_accuracy_reward_fn`
/// with `part` `response`. The original is `equality` `mathruler`, which also differs in how it
/// finds the box: only the last `\boxed{` counts, escaped braces count as braces, and a response
/// without a box has the answer `None`. There a sample without a reference scores 0.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BoxedAnswer {
    /// Who decides whether two answers are equal. Default `value`.
    #[serde(default)]
    pub equality: Equality,
    /// Where the box is looked for. Default `final_answer`: after the last `</think>`.
    #[serde(default = "final_answer")]
    pub part: Part,
}

fn final_answer() -> Part {
    Part::FinalAnswer
}

impl Default for BoxedAnswer {
    fn default() -> Self {
        Self { equality: Equality::default(), part: final_answer() }
    }
}

impl BoxedAnswer {
    pub(super) fn validate(&self) -> Result<(), RuleError> {
        let holds = self.part != Part::Question;
        check("boxed_answer", "part", "question", holds, "response or final_answer")
    }

    pub(super) fn score(&self, answer: &Answer<'_>) -> Result<f64, RuleError> {
        let text = self.part.of(answer);
        let right = match (self.equality, answer.reference) {
            (Equality::Mathruler, None) => false,
            (Equality::Mathruler, Some(reference)) => {
                self.equality.holds(rightmost_box(text).unwrap_or("None"), reference)
            }
            (Equality::Value, None) => return Err(RuleError::NoReference { rule: "boxed_answer" }),
            (Equality::Value, Some(reference)) => {
                last_boxed(text).is_some_and(|given| self.equality.holds(given, reference))
            }
        };
        Ok(f64::from(right))
    }
}

const OPEN: &str = "\\boxed{";

/// The content of the last `\boxed{...}` whose braces are balanced. One pass over the text.
#[must_use]
pub fn last_boxed(text: &str) -> Option<&str> {
    let mut last = None;
    let mut from = 0;
    while let Some(found) = text[from..].find(OPEN) {
        let start = from + found + OPEN.len();
        let Some(length) = balanced(&text[start..], true) else { break };
        last = Some(&text[start..start + length]);
        from = start + length;
    }
    last
}

/// The content of the last `\boxed{` without blanks at its ends; `None` where it is not closed.
fn rightmost_box(text: &str) -> Option<&str> {
    let start = text.rfind(OPEN)? + OPEN.len();
    let length = balanced(&text[start..], false)?;
    Some(strip(&text[start..start + length]))
}

/// Bytes up to the brace that closes an already opened one; escaped braces need not count.
fn balanced(text: &str, skip_escaped: bool) -> Option<usize> {
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
        escaped = skip_escaped && c == '\\' && !escaped;
    }
    None
}
