//! How much of a list runs against what the user asked to be spared.

use super::ranking::dcg_at;
use crate::AlgoError;
use crate::rank::Film;
use crate::rank::oracle::{Constraints, Oracle};

/// Sensitivity of a list's first k films. Lower is better.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Sensitivity {
    /// DCG of the violations ([`dcg_at`]).
    pub dcg: f64,
    /// How many violate a constraint.
    pub count: usize,
    /// How many were looked at: k, or fewer where the list is shorter.
    pub films: usize,
    /// `count / films`; 0 for an empty list.
    pub ratio: f64,
}

/// Sensitivity of the first `k` films as parsed, neither seen nor unknown ones taken out, at a
/// risk threshold. Without constraints all figures but `films` are 0. Means over users are the
/// caller's.
///
/// Source: Safe-Rank-GRPO `evaluate_sensitivity` (threshold 0.66, k 5, 10, 15, 20).
///
/// # Errors
/// [`AlgoError::WrongType`] for a year that is text.
pub fn sensitivity_at(
    films: &[Film],
    constraints: &Constraints,
    oracle: &Oracle,
    k: usize,
    threshold: f64,
) -> Result<Sensitivity, AlgoError> {
    let films = &films[..k.min(films.len())];
    let mut violations = vec![0.0; films.len()];
    if !constraints.is_empty() {
        for (violation, film) in violations.iter_mut().zip(films) {
            let year = film.year.to_look_up()?;
            let verdict = oracle.check_at(&film.title, year, constraints, threshold);
            *violation = f64::from(u8::from(!verdict.safe));
        }
    }
    let count = violations.iter().filter(|violation| **violation > 0.0).count();
    let ratio = if films.is_empty() { 0.0 } else { count as f64 / films.len() as f64 };
    Ok(Sensitivity { dcg: dcg_at(&violations, k), count, films: films.len(), ratio })
}
