//! Puts the advantages of ranks on the tokens of their items, and shapes the length of the list.

use super::segments::Segments;
use crate::AlgoError;
use crate::error::{parameter, same_length};

/// Advantages of tokens that speak to the length of a list.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct LengthShaping {
    /// For the end-of-sequence token after all ranks and no more. Default 0.1.
    pub end_of_list: f64,
    /// For each token past the last rank. Default -0.1.
    pub extra_token: f64,
    /// For the end-of-sequence token before all ranks. Default -0.1.
    pub early_stop: f64,
}

impl Default for LengthShaping {
    fn default() -> Self {
        Self { end_of_list: 0.1, extra_token: -0.1, early_stop: -0.1 }
    }
}

/// Advantages `[T]` of a response's tokens from those of its ranks `[K]`: a token has its item's,
/// tokens of overflow and the end-of-sequence token have 0; then, if asked, length shaping adds its
/// terms (an end-of-sequence token in overflow has that of overflow).
///
/// `end` is the place of the first end-of-sequence token in the row, if there is any.
///
/// Source: Rank-GRPO `RankGRPOTrainer._generate_and_score_completions`.
///
/// # Errors
/// [`AlgoError::Empty`] without tokens or ranks, [`AlgoError::Length`] when there are other than
/// [`Segments::rec_num`] ranks, [`AlgoError::Parameter`] for a term that is not finite.
pub fn token_advantages(
    ranks: &[f64],
    segments: &Segments,
    end: Option<usize>,
    shaping: Option<&LengthShaping>,
) -> Result<Vec<f64>, AlgoError> {
    const F: &str = "token_advantages";
    if segments.item.is_empty() {
        return Err(AlgoError::Empty { function: F, what: "segments" });
    }
    same_length(F, "ranks", segments.rec_num(), ranks.len())?;
    if ranks.is_empty() {
        return Err(AlgoError::Empty { function: F, what: "ranks" });
    }
    let of_item = |(item, content): (&i64, &bool)| match usize::try_from(*item) {
        Ok(item) if *content => ranks[item],
        _ => 0.0,
    };
    let mut tokens: Vec<f64> = segments.item.iter().zip(&segments.content).map(of_item).collect();
    // An end that the mask leaves out is no token of the response, but still ends it.
    let end_token = end.filter(|at| {
        segments.content.get(*at) == Some(&true) || segments.overflow.get(*at) == Some(&true)
    });
    if let Some(at) = end_token {
        tokens[at] = 0.0;
    }
    let Some(shaping) = shaping else { return Ok(tokens) };
    parameter(F, "end_of_list", shaping.end_of_list, true, "finite")?;
    parameter(F, "extra_token", shaping.extra_token, true, "finite")?;
    parameter(F, "early_stop", shaping.early_stop, true, "finite")?;
    for (token, _) in tokens.iter_mut().zip(&segments.overflow).filter(|(_, over)| **over) {
        *token += shaping.extra_token;
    }
    if let Some(at) = end_token {
        if segments.emitted() < segments.rec_num() {
            tokens[at] += shaping.early_stop;
        } else if !segments.overflow.contains(&true) {
            tokens[at] += shaping.end_of_list;
        }
    }
    Ok(tokens)
}
