//! Which tokens of a generated row belong to the response.

/// True up to and including the first end token, false after it; all true without one.
///
/// Source: verl `get_response_mask` (torch_functional.py). `response_ids` is `[T]`; `end_ids` may
/// hold any number of ids.
#[must_use]
pub fn response_mask(response_ids: &[i64], end_ids: &[i64]) -> Vec<bool> {
    let end = response_ids.iter().position(|id| end_ids.contains(id));
    let kept = end.map_or(response_ids.len(), |at| at + 1);
    (0..response_ids.len()).map(|t| t < kept).collect()
}
