//! The knowledge verifier: true or false by the reference answer.

use plumb_domain::text::strip;

use crate::AlgoError;
use crate::error::parameter;

/// 1 for `true`, `"true"` (with the quotes) or `correct`, 0 for their opposites; nothing else may
/// stand beside the word but blanks around it. Letter case does not count.
pub(super) fn verdict(reply: &str) -> Option<f64> {
    match strip(reply).to_lowercase().as_str() {
        "true" | "\"true\"" | "correct" => Some(1.0),
        "false" | "\"false\"" | "incorrect" => Some(0.0),
        _ => None,
    }
}

/// 1 where the reply is `true`, `"true"` or `correct`, else 0. `true.` is 0: the verifier may reply
/// with one token only.
///
/// Source: SafeWork-R1 `Qwen2VLRewardModelKnowledge.forward`, engine branch.
#[must_use]
pub fn knowledge_score(reply: &str) -> f64 {
    verdict(reply).unwrap_or(0.0)
}

/// `(p(TRUE) + 1 - p(FALSE)) / 2` from the probabilities of the two replies; 0 for an empty
/// response.
///
/// Source: SafeWork-R1 `Qwen2VLRewardModelKnowledge._post_process`.
///
/// # Errors
/// [`AlgoError::Parameter`] for what is no probability.
pub fn knowledge_probability(
    true_probability: f64,
    false_probability: f64,
    response_is_empty: bool,
) -> Result<f64, AlgoError> {
    for (name, p) in [("p(TRUE)", true_probability), ("p(FALSE)", false_probability)] {
        let holds = (0.0..=1.0).contains(&p);
        parameter("knowledge_probability", name, p, holds, "a number from 0 to 1")?;
    }
    if response_is_empty {
        return Ok(0.0);
    }
    Ok((true_probability + (1.0 - false_probability)) / 2.0)
}
