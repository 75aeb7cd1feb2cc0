//! `critic/score/*` and `critic/rewards/*`: what a training batch scored.

use crate::AlgoError;
use crate::error::{all_finite, same_length};
use crate::statistics::mean;

/// Mean, largest and smallest sum of token scores of a sample.
///
/// Source: verl `compute_data_metrics` (metric_utils.py), whose names UPS-RM reports:
/// `critic/score/*` over the scores, `critic/rewards/*` over the same with the KL penalty in them.
/// Samples without response tokens were aborted and do not count.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct BatchScore {
    /// Samples that count.
    pub samples: usize,
    /// `.../mean`.
    pub mean: f64,
    /// `.../max`.
    pub max: f64,
    /// `.../min`.
    pub min: f64,
}

impl BatchScore {
    /// Over a batch `[B]`: the token scores of each sample `[T]` (summed over all `T`, as there:
    /// scores outside the response are 0) and its response length in tokens.
    ///
    /// # Errors
    /// [`AlgoError::Length`]; [`AlgoError::Empty`] when no sample has a response;
    /// [`AlgoError::NonFinite`] for a counted sample whose sum is no number (`index` is its place
    /// among those that count).
    pub fn of(token_scores: &[&[f64]], response_tokens: &[usize]) -> Result<Self, AlgoError> {
        const F: &str = "BatchScore::of";
        same_length(F, "response_tokens", token_scores.len(), response_tokens.len())?;
        let counted = token_scores.iter().zip(response_tokens).filter(|(_, tokens)| **tokens > 0);
        let sums: Vec<f64> = counted.map(|(scores, _)| scores.iter().sum()).collect();
        if sums.is_empty() {
            return Err(AlgoError::Empty { function: F, what: "samples with a response" });
        }
        all_finite(F, "token_scores", &sums)?;
        let max = sums.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let min = sums.iter().copied().fold(f64::INFINITY, f64::min);
        Ok(Self { samples: sums.len(), mean: mean(&sums), max, min })
    }
}
