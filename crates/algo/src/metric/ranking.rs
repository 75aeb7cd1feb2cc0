//! How well a list of recommendations meets what was wanted.

use std::collections::HashSet;

use crate::AlgoError;
use crate::rank::hits::{Catalog, Wanted};
use crate::rank::reward::discounts;
use crate::rank::{Film, Year};

/// Years by which a hit may be off.
pub const YEAR_TOLERANCE: u64 = 2;

/// `sum of the first k hits / wanted`; 0 for an empty list.
///
/// Source: Rank-GRPO `recall_at_k`.
///
/// # Errors
/// [`AlgoError::Empty`] when nothing was wanted and the list is not empty.
pub fn recall_at(hits: &[f64], wanted: usize, k: usize) -> Result<f64, AlgoError> {
    if hits.is_empty() {
        return Ok(0.0);
    }
    anything_wanted("recall_at", wanted)?;
    Ok(hits.iter().take(k).sum::<f64>() / wanted as f64)
}

/// `h_0 + sum_{0 < i < min(k, n)} h_i / log2(i + 2)`; 0 for an empty list. The first hit counts
/// whatever `k`, also for `k` = 0.
///
/// Source: Rank-GRPO `dcg_at_k`.
#[must_use]
pub fn dcg_at(hits: &[f64], k: usize) -> f64 {
    let count = k.min(hits.len()).max(1);
    hits.iter().zip(discounts(count)).map(|(hit, discount)| hit * discount).sum()
}

/// `DCG / IDCG`, where the ideal list of the same length has its `min(wanted, n)` hits first; 0 for
/// an empty list.
///
/// Source: Rank-GRPO `ndcg_at_k`.
///
/// # Errors
/// [`AlgoError::Empty`] when nothing was wanted and the list is not empty.
pub fn ndcg_at(hits: &[f64], wanted: usize, k: usize) -> Result<f64, AlgoError> {
    if hits.is_empty() {
        return Ok(0.0);
    }
    anything_wanted("ndcg_at", wanted)?;
    let ideal: Vec<f64> = (0..hits.len()).map(|i| f64::from(u8::from(i < wanted))).collect();
    Ok(dcg_at(hits, k) / dcg_at(&ideal, k))
}

fn anything_wanted(function: &'static str, wanted: usize) -> Result<(), AlgoError> {
    if wanted == 0 {
        return Err(AlgoError::Empty { function, what: "the ground truth" });
    }
    Ok(())
}

/// Recall and NDCG of a list.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Ranking {
    /// [`recall_at`].
    pub recall: f64,
    /// [`ndcg_at`].
    pub ndcg: f64,
}

/// Recall@k and NDCG@k of a list for one user: films whose title was seen or that are not in the
/// catalog (title letter for letter, and year) are taken out first; each wanted film makes a hit of
/// the first remaining one with its title, letter for letter, and a year at most 2 off. Two wanted
/// films may make a hit of the same one, which counts once. A list that is empty after the filter
/// has 0 for both.
///
/// Unlike the reward's [`hits`](crate::rank::hits::hits), titles are not folded here. Means over
/// users are the caller's.
///
/// Source: Rank-GRPO `evaluate_direct_match`.
///
/// # Errors
/// [`AlgoError::Empty`] as [`recall_at`], [`AlgoError::WrongType`] for a year without a number.
pub fn ranking_at(films: &[Film], wanted: &Wanted<'_>, k: usize) -> Result<Ranking, AlgoError> {
    let listed: Vec<&Film> = films
        .iter()
        .filter(|film| !wanted.seen.contains(&film.title) && wanted.catalog.holds(film))
        .collect();
    let years = match wanted.truth.is_empty() {
        true => Vec::new(),
        false => listed.iter().map(|film| film.year.truncated()).collect::<Result<_, _>>()?,
    };
    let mut hits = vec![0.0; listed.len()];
    for film in wanted.truth.iter().filter(|_| !listed.is_empty()) {
        let year = film.year.truncated()?;
        let first = listed.iter().zip(&years).position(|(own, own_year)| {
            own.title == film.title && year.abs_diff(*own_year) <= YEAR_TOLERANCE
        });
        if let Some(first) = first {
            hits[first] = 1.0;
        }
    }
    let n = wanted.truth.len();
    Ok(Ranking { recall: recall_at(&hits, n, k)?, ndcg: ndcg_at(&hits, n, k)? })
}

/// Share of the first `limit` (reference: 20) recommendations whose lower-case title is in the
/// catalog with a year at most 2 off; 0 for an empty list.
///
/// Source: Safe-Rank-GRPO `eval_sft_val_safe.py`.
///
/// # Errors
/// [`AlgoError::WrongType`] for a year, among those compared, without a number.
pub fn catalog_match_ratio(
    films: &[Film],
    catalog: &Catalog,
    limit: usize,
) -> Result<f64, AlgoError> {
    let films = &films[..limit.min(films.len())];
    if films.is_empty() {
        return Ok(0.0);
    }
    let wanted: HashSet<String> = films.iter().map(|film| film.title.to_lowercase()).collect();
    let mut known: Vec<(String, &Year)> = Vec::new();
    for film in catalog.iter() {
        let title = film.title.to_lowercase();
        if wanted.contains(&title) {
            known.push((title, &film.year));
        }
    }
    let mut matched = 0;
    for film in films {
        let title = film.title.to_lowercase();
        for (_, year) in known.iter().filter(|(there, _)| *there == title) {
            if film.year.truncated()?.abs_diff(year.truncated()?) <= YEAR_TOLERANCE {
                matched += 1;
                break;
            }
        }
    }
    Ok(f64::from(matched) / films.len() as f64)
}
