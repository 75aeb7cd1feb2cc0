//! Which recommendations the user wanted.

use std::collections::{BTreeMap, HashMap, HashSet};

use super::film::Film;
use super::text::collapse_spaces;

/// The films that may be recommended.
#[derive(Debug, Clone, Default)]
pub struct Catalog {
    films: HashMap<String, Vec<Film>>,
}

impl Catalog {
    /// Of these films.
    pub fn new(films: impl IntoIterator<Item = Film>) -> Self {
        let mut catalog = Self::default();
        for film in films {
            catalog.films.entry(film.title.clone()).or_default().push(film);
        }
        catalog
    }

    /// Is there a film of this title, letter for letter, and this year?
    #[must_use]
    pub fn holds(&self, film: &Film) -> bool {
        self.films.get(&film.title).is_some_and(|there| there.iter().any(|own| own.same(film)))
    }

    /// All films.
    pub fn iter(&self) -> impl Iterator<Item = &Film> {
        self.films.values().flatten()
    }
}

/// A title for comparison: case folded (Unicode's full folding), one space for each run of white
/// space.
#[must_use]
pub fn fold_title(title: &str) -> String {
    caseless::default_case_fold_str(&collapse_spaces(title))
}

/// What a list of recommendations is held against.
#[derive(Debug, Clone, Copy)]
pub struct Wanted<'a> {
    /// The films that the user took up.
    pub truth: &'a [Film],
    /// Titles that the user has seen.
    pub seen: &'a HashSet<String>,
    /// Films that may be recommended.
    pub catalog: &'a Catalog,
}

/// For each of `rec_num` ranks, is its film a hit? Ranks past the end of the list are none.
///
/// A recommendation counts unless its title is among `seen` (letter for letter) or it is not in the
/// catalog (title letter for letter, and year). It is a hit if a wanted film that is still free has
/// the same folded title and a year at most `year_tolerance` off: that of the same year first, then
/// 1 later, 1 earlier, 2 later, and so on; the wanted film is then taken. Wanted films without a
/// whole year are left out. A tolerance below 0 counts as 0.
///
/// Source: Rank-GRPO `evaluate_direct_match_aligned`.
#[must_use]
pub fn hits(films: &[Film], wanted: &Wanted<'_>, rec_num: usize, year_tolerance: i64) -> Vec<bool> {
    let mut free: HashMap<String, BTreeMap<i64, usize>> = HashMap::new();
    for film in wanted.truth {
        if let Some(year) = film.year.spelled() {
            *free.entry(fold_title(&film.title)).or_default().entry(year).or_default() += 1;
        }
    }
    let mut hits = vec![false; rec_num];
    for (hit, film) in hits.iter_mut().zip(films) {
        if wanted.seen.contains(&film.title) || !wanted.catalog.holds(film) {
            continue;
        }
        let Some(year) = film.year.spelled() else { continue };
        let Some(years) = free.get_mut(&fold_title(&film.title)) else { continue };
        let Some(taken) = nearest(years, year, year_tolerance) else { continue };
        *hit = true;
        if let Some(copies) = years.get_mut(&taken) {
            *copies -= 1;
            if *copies == 0 {
                years.remove(&taken);
            }
        }
    }
    hits
}

/// The year that is nearest within the tolerance, the later of two equally near.
fn nearest(years: &BTreeMap<i64, usize>, year: i64, tolerance: i64) -> Option<i64> {
    let distance = |candidate: i64| candidate.abs_diff(year);
    let later = years.range(year..).next().map(|(candidate, _)| *candidate);
    let earlier = years.range(..year).next_back().map(|(candidate, _)| *candidate);
    let best = match (later, earlier) {
        (Some(l), Some(e)) => Some(if distance(l) <= distance(e) { l } else { e }),
        (one, other) => one.or(other),
    };
    best.filter(|candidate| distance(*candidate) <= tolerance.max(0).unsigned_abs())
}
