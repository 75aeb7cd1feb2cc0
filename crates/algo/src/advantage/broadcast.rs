//! A sample's advantage on each of its tokens.

use crate::AlgoError;
use crate::error::{same_length, whole_rows};
use crate::real::Real;

/// Puts each sample's figure on its masked-in tokens, 0 elsewhere: `A_t = m_t a`.
#[must_use]
pub fn broadcast(advantage: f64, mask: &[bool]) -> Vec<f64> {
    let mut tokens = vec![0.0; mask.len()];
    one_row(advantage, mask, &mut tokens);
    tokens
}

/// [`broadcast`] for each of B rows of `tokens` tokens, written to `out`. `advantages` is `[B]`;
/// the other slices are `[B * tokens]`, a row's tokens side by side. Allocates nothing.
///
/// # Errors
/// [`AlgoError::Length`]; [`AlgoError::Parameter`] for `tokens` of 0 or that do not divide the
/// entries.
pub fn broadcast_rows<R: Real>(
    advantages: &[f64],
    tokens: usize,
    mask: &[bool],
    out: &mut [R],
) -> Result<(), AlgoError> {
    const F: &str = "broadcast";
    let entries = mask.len();
    same_length(F, "out", entries, out.len())?;
    whole_rows(F, tokens, entries)?;
    same_length(F, "advantages", entries / tokens, advantages.len())?;
    let rows = mask.chunks(tokens).zip(out.chunks_mut(tokens));
    for (advantage, (mask, out)) in advantages.iter().zip(rows) {
        one_row(*advantage, mask, out);
    }
    Ok(())
}

fn one_row<R: Real>(advantage: f64, mask: &[bool], out: &mut [R]) {
    let (kept, dropped) = (R::of(advantage), R::of(0.0));
    for (out, keep) in out.iter_mut().zip(mask) {
        *out = if *keep { kept } else { dropped };
    }
}
