//! Turn scores as the original reads them: anything that looks like a number counts, anything
//! else is passed over, and what cannot be answered is no score rather than an error.

use super::Aggregation;
use crate::AlgoError;
use crate::json::{Json, JsonError, float_of_text};

const FUNCTION: &str = "turn aggregation";

/// Why there is neither a score nor none.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum CompatError {
    /// The score is not a number.
    #[error(transparent)]
    Algo(#[from] AlgoError),
    /// A number is too large.
    #[error(transparent)]
    Json(#[from] JsonError),
    /// A weight that is no number.
    #[error("turn aggregation: weights[{index}] is no number")]
    Weight {
        /// Which.
        index: usize,
    },
}

/// The method of that name with the original's parameters (alpha 0.4); `None` for another name.
#[must_use]
pub fn method(name: &str) -> Option<Aggregation> {
    match name {
        "min_mean" => Some(Aggregation::MIN_MEAN_COMPAT),
        name => name.parse().ok(),
    }
}

/// A trajectory's reward by the original's rules: a number is its own score; of a list, nulls and
/// what is no number are left out, and numbers in strings are converted; a lone score is the
/// reward. Non-empty `weights` go before `method`. `None` where there is no score, `method` is
/// `None`, the weights are not one for each score, or their sum is not positive.
///
/// Source: SaFeR-Steer `aggregate_turn_scores`.
///
/// # Errors
/// [`AlgoError::NonFinite`] where the original's score is not a number (infinite ones stand);
/// [`CompatError::Weight`]; an integer too large.
pub fn reward(
    turn_scores: &Json,
    method: Option<&Aggregation>,
    weights: &[Json],
) -> Result<Option<f64>, CompatError> {
    if let Some(score) = turn_scores.number()? {
        return defined(score).map(Some);
    }
    let Json::List(items) = turn_scores else { return Ok(None) };
    let mut scores = Vec::with_capacity(items.len());
    for item in items {
        scores.extend(item.number()?.or_else(|| item.as_text().and_then(float_of_text)));
    }
    match (scores.as_slice(), method) {
        ([], _) => Ok(None),
        ([score], _) => defined(*score).map(Some),
        (scores, _) if !weights.is_empty() => weighted(scores, weights),
        (_, None) => Ok(None),
        (scores, Some(method)) => defined(method.combine(scores)).map(Some),
    }
}

fn weighted(scores: &[f64], weights: &[Json]) -> Result<Option<f64>, CompatError> {
    if weights.len() != scores.len() {
        return Ok(None);
    }
    let mut numbers = Vec::with_capacity(weights.len());
    for (index, weight) in weights.iter().enumerate() {
        numbers.push(weight.number()?.ok_or(CompatError::Weight { index })?);
    }
    let total: f64 = numbers.iter().sum();
    // A sum that is NaN is not positive either.
    if total > 0.0 {
        return defined(Aggregation::Weights(numbers).combine(scores)).map(Some);
    }
    Ok(None)
}

fn defined(score: f64) -> Result<f64, CompatError> {
    if !score.is_nan() {
        return Ok(score);
    }
    let nan =
        AlgoError::NonFinite { function: FUNCTION, argument: "score", index: 0, value: score };
    Err(nan.into())
}

/// The reward of a trajectory from what its dialogue left in `extra_info`: the first of
/// `turn_scores`, `interaction_reward` and `interaction_score` that is there, even if null;
/// sought in `extra_info` itself, then in its `tool_extra_fields`, then in its
/// `rollout_reward_scores`. 0 where there is no score.
///
/// Source: SaFeR-Steer `compute_score`, whose default method is `min_mean`.
///
/// # Errors
/// As [`reward`].
pub fn trajectory_score(
    extra_info: &Json,
    method: Option<&Aggregation>,
) -> Result<f64, CompatError> {
    let places = [
        Some(extra_info),
        extra_info.get("tool_extra_fields"),
        extra_info.get("rollout_reward_scores"),
    ];
    for place in places.into_iter().flatten() {
        for key in ["turn_scores", "interaction_reward", "interaction_score"] {
            if let Some(scores) = place.get(key) {
                return Ok(reward(scores, method, &[])?.unwrap_or(0.0));
            }
        }
    }
    Ok(0.0)
}
