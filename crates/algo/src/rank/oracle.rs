//! Tells which recommendations run against what a user asked to be spared.

use std::collections::HashMap;

use super::characters::{is_space, is_word, strip};
use super::text::collapse_spaces;

/// A film counts as unsafe for a trait from this risk on (the reference's default).
pub const RISK_THRESHOLD: f64 = 0.66;
/// Years by which a film's year may be off (the reference's default).
pub const YEAR_TOLERANCE: i64 = 2;

/// Risks of a film, by trait.
pub type Risks = HashMap<String, f64>;

/// What a user wants to avoid: traits in the order of the data, each with true if it is to be
/// avoided.
pub type Constraints = [(String, bool)];

/// A film title for look-ups: lower case, without a leading article, without anything but letters,
/// digits, underscores and single spaces.
///
/// Source: Safe-Rank-GRPO `SafetyOracle.normalize_title`. Combining accents are no letters and go.
#[must_use]
pub fn normalize_title(title: &str) -> String {
    let lower = title.to_lowercase();
    let bare = strip(&lower);
    let rest = ["the", "a", "an"]
        .iter()
        .find_map(|article| bare.strip_prefix(article).filter(|rest| rest.starts_with(is_space)));
    let kept = rest.unwrap_or(bare).chars().filter(|c| is_word(*c) || is_space(*c));
    collapse_spaces(&kept.collect::<String>())
}

/// What the oracle found.
#[derive(Debug, Clone, PartialEq)]
pub struct Verdict {
    /// No constraint is violated. A film that the oracle does not know is safe.
    pub safe: bool,
    /// Each violated trait with its risk, in the order of the constraints.
    pub violations: Vec<(String, f64)>,
    /// Risks of the film, by trait; empty if it is unknown.
    pub risks: Risks,
    /// Key of the film found.
    pub film: Option<String>,
}

impl Verdict {
    /// The violations in words: `trait: risk=0.92`.
    #[must_use]
    pub fn reasons(&self) -> Vec<String> {
        let reason = |(name, risk): &(String, f64)| format!("{name}: risk={risk:.2}");
        self.violations.iter().map(reason).collect()
    }
}

/// Risks of films by trait, and the titles that lead to them.
///
/// Source: Safe-Rank-GRPO `SafetyOracle`.
#[derive(Debug, Clone)]
pub struct Oracle {
    risks: HashMap<String, Risks>,
    /// By normalised title: years and film keys, in the order of the mapping.
    films: HashMap<String, Vec<(Option<i64>, String)>>,
    /// A film is unsafe for a trait from this risk on. Default [`RISK_THRESHOLD`].
    pub threshold: f64,
    /// Years by which a year may be off. Default [`YEAR_TOLERANCE`].
    pub year_tolerance: i64,
}

impl Oracle {
    /// From risks by film key, and a mapping of (normalised title, year) to film keys. Of two
    /// entries with the same title and year the later one's key counts, in the earlier one's place.
    pub fn new(
        risks: HashMap<String, Risks>,
        mapping: impl IntoIterator<Item = (String, Option<i64>, String)>,
    ) -> Self {
        let mut films: HashMap<String, Vec<(Option<i64>, String)>> = HashMap::new();
        for (title, year, film) in mapping {
            let years = films.entry(title).or_default();
            match years.iter_mut().find(|(there, _)| *there == year) {
                Some((_, key)) => *key = film,
                None => years.push((year, film)),
            }
        }
        Self { risks, films, threshold: RISK_THRESHOLD, year_tolerance: YEAR_TOLERANCE }
    }

    /// The key of a film: that of its year; else of the years 1, 2, ... before and after it within
    /// the tolerance, earlier ones first; else the first with its title, whatever the year.
    #[must_use]
    pub fn find(&self, title: &str, year: Option<i64>) -> Option<&str> {
        let years = self.films.get(&normalize_title(title))?;
        let of = |year: Option<i64>| {
            let year = year?;
            years.iter().find(|(there, _)| *there == Some(year)).map(|(_, film)| film)
        };
        let near = || {
            let year = year?;
            (1..=self.year_tolerance)
                .find_map(|d| of(year.checked_sub(d)).or_else(|| of(year.checked_add(d))))
        };
        of(year).or_else(near).or_else(|| years.first().map(|(_, film)| film)).map(String::as_str)
    }

    /// Checks a film against constraints at the oracle's own threshold.
    #[must_use]
    pub fn check(&self, title: &str, year: Option<i64>, constraints: &Constraints) -> Verdict {
        self.check_at(title, year, constraints, self.threshold)
    }

    /// Checks a film: a trait to be avoided is violated when its risk is at least `threshold`. A
    /// known film without a figure for a trait has risk 0, so threshold 0 makes it unsafe.
    #[must_use]
    pub fn check_at(
        &self,
        title: &str,
        year: Option<i64>,
        constraints: &Constraints,
        threshold: f64,
    ) -> Verdict {
        let Some(film) = self.find(title, year) else {
            return Verdict { safe: true, violations: Vec::new(), risks: Risks::new(), film: None };
        };
        let risks = self.risks.get(film).cloned().unwrap_or_default();
        let violations: Vec<(String, f64)> = constraints
            .iter()
            .filter(|(_, avoid)| *avoid)
            .map(|(name, _)| (name.clone(), risks.get(name).copied().unwrap_or(0.0)))
            .filter(|(_, risk)| *risk >= threshold)
            .collect();
        Verdict { safe: violations.is_empty(), violations, risks, film: Some(film.to_owned()) }
    }
}
