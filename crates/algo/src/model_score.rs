//! From a reward model's output to per-token scores, as UPS-RM does it.

use crate::AlgoError;
use crate::error::{all_finite, same_length};

/// `sigmoid(-s)`: how safe an answer is, in `[0, 1]`, of the unsafeness logit s of UPS-RM's model.
#[must_use]
pub fn safe_score(unsafeness_logit: f64) -> f64 {
    1.0 / (1.0 + unsafeness_logit.exp())
}

/// Index of the token that carries a sequence's score: the one of the highest position among
/// those attended; the first of several.
///
/// Source: verl `RewardModelWorker._expand_to_token_level` (`argmax(position_ids *
/// attention_mask)`). Works for prompts padded on the left with responses padded on the right. A
/// row without attended tokens has index 0.
///
/// # Errors
/// [`AlgoError::Length`]; [`AlgoError::Empty`] for a row without tokens.
pub fn score_token(position_ids: &[i64], attended: &[bool]) -> Result<usize, AlgoError> {
    const F: &str = "score_token";
    same_length(F, "attended", position_ids.len(), attended.len())?;
    let masked = |at: usize| if attended[at] { position_ids[at] } else { 0 };
    let later = |best: usize, at: usize| if masked(at) > masked(best) { at } else { best };
    (0..position_ids.len()).reduce(later).ok_or(AlgoError::Empty { function: F, what: "the row" })
}

/// One sequence of [`place_score`].
#[derive(Debug, Clone, Copy)]
pub struct ScoredRow<'a> {
    /// The sequence's score.
    pub score: f64,
    /// Positions of the tokens of prompt and response.
    pub position_ids: &'a [i64],
    /// True for tokens that are no padding.
    pub attended: &'a [bool],
}

/// Scores of the last `response_tokens` tokens of a row: 0 but at [`score_token`].
///
/// Source: UPS-RM's `RewardModelWorker.compute_rm_score`, which makes a score of the logit
/// ([`safe_score`]) before it is placed, so that all other tokens have exactly 0. **A row whose
/// response is empty has its score token in the prompt: the score is lost and all is 0.** The
/// caller knows its response lengths and leaves such samples out.
///
/// # Errors
/// As [`score_token`]; [`AlgoError::NonFinite`] for a score that is no number,
/// [`AlgoError::Length`] for more response tokens than the row has.
pub fn place_score(row: ScoredRow<'_>, response_tokens: usize) -> Result<Vec<f64>, AlgoError> {
    const F: &str = "place_score";
    all_finite(F, "score", &[row.score])?;
    let at = score_token(row.position_ids, row.attended)?;
    let Some(prompt_tokens) = row.position_ids.len().checked_sub(response_tokens) else {
        let (expected, got) = (row.position_ids.len(), response_tokens);
        return Err(AlgoError::Length { function: F, argument: "response", expected, got });
    };
    let mut scores = vec![0.0; response_tokens];
    if let Some(slot) = at.checked_sub(prompt_tokens).and_then(|at| scores.get_mut(at)) {
        *slot = row.score;
    }
    Ok(scores)
}
