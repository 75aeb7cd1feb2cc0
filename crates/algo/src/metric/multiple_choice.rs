//! Multiple choice by the log-prob of each answer, as BIG-bench asks for it.

use crate::AlgoError;
use crate::error::{all_finite, same_length};

/// `sum_t target_t logp_t`, the log-prob of one answer given the question.
///
/// Source: BIG-bench `cond_log_prob`, as in safe-rlhf `evaluate/bigbench/model.py`. Both slices are
/// `[T]` over next-token positions; `target` marks the tokens of the answer.
///
/// # Errors
/// [`AlgoError::Length`]; [`AlgoError::Empty`] for an answer without tokens (the reference
/// asserts); [`AlgoError::NonFinite`] for a target's log-prob that is NaN or above any number.
pub fn choice_log_prob(logp: &[f64], target: &[bool]) -> Result<f64, AlgoError> {
    const F: &str = "choice_log_prob";
    same_length(F, "target", logp.len(), target.len())?;
    let (mut sum, mut tokens) = (0.0, 0usize);
    for (index, (value, _)) in logp.iter().zip(target).enumerate().filter(|(_, (_, keep))| **keep) {
        if value.is_nan() || *value == f64::INFINITY {
            return Err(AlgoError::NonFinite {
                function: F,
                argument: "logp",
                index,
                value: *value,
            });
        }
        sum += value;
        tokens += 1;
    }
    if tokens == 0 {
        return Err(AlgoError::Empty { function: F, what: "the answer" });
    }
    Ok(sum)
}

/// The choices of one question, scored.
#[derive(Debug, Clone, PartialEq)]
pub struct MultipleChoice {
    /// `s_i`, as [`choice_log_prob`] gives them.
    pub log_probs: Vec<f64>,
    /// `s_i - logsumexp_j s_j`: their log-probs if one of them must be the answer.
    pub normalised: Vec<f64>,
}

impl MultipleChoice {
    /// Normalises the log-probs of the choices over the choices.
    ///
    /// # Errors
    /// [`AlgoError::Empty`] for no choices; [`AlgoError::NonFinite`] for log-probs that are not
    /// finite.
    pub fn of(log_probs: Vec<f64>) -> Result<Self, AlgoError> {
        const F: &str = "MultipleChoice::of";
        if log_probs.is_empty() {
            return Err(AlgoError::Empty { function: F, what: "choices" });
        }
        all_finite(F, "log_probs", &log_probs)?;
        let most = log_probs.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let sum: f64 = log_probs.iter().map(|s| (s - most).exp()).sum();
        let normaliser = most + sum.ln();
        let normalised = log_probs.iter().map(|s| s - normaliser).collect();
        Ok(Self { log_probs, normalised })
    }

    /// Index of the most probable choice, the first of equals.
    #[must_use]
    pub fn best(&self) -> usize {
        let mut best = 0;
        for (index, score) in self.log_probs.iter().enumerate() {
            if *score > self.log_probs[best] {
                best = index;
            }
        }
        best
    }
}
