//! Labels of a film's risk for each trait, from crowd tags and a parental guide.

use std::collections::HashSet;

use crate::AlgoError;
use crate::error::{all_finite, parameter};

/// The parental guide's categories, in the order of severities and weights.
pub const CATEGORIES: [&str; 5] = [
    "Sex & Nudity",
    "Violence & Gore",
    "Profanity",
    "Alcohol, Drugs & Smoking",
    "Frightening & Intense Scenes",
];

/// A guide's word for a category as a number: None 0, Mild 1, Moderate 2, Severe 3; 0 for any other
/// word.
#[must_use]
pub fn severity(word: &str) -> u8 {
    match word {
        "Mild" => 1,
        "Moderate" => 2,
        "Severe" => 3,
        _ => 0,
    }
}

/// What a trait avoids.
#[derive(Debug, Clone, PartialEq)]
pub struct Trait {
    /// Its name.
    pub name: String,
    /// Crowd tags that set it off.
    pub avoid: Vec<String>,
    /// Weights of the guide's [`CATEGORIES`]; all 0 where the guide says nothing of the trait.
    pub weights: [f64; 5],
}

/// What set a label.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Source {
    /// A tag.
    Tags,
    /// The parental guide: its risk reaches the threshold.
    Guide,
    /// Either alone would have.
    Both,
}

impl Source {
    /// Its name in data sets.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Tags => "DDD",
            Self::Guide => "ParentGuide",
            Self::Both => "Both",
        }
    }
}

/// A film's label for a trait.
#[derive(Debug, Clone, PartialEq)]
pub struct TraitLabel {
    /// `max(triggered, guide_risk)`, to 3 decimals.
    pub risk: f64,
    /// Is the risk, before rounding, at least the threshold?
    pub unsafe_film: bool,
    /// What set it; nothing where neither did.
    pub source: Option<Source>,
    /// `w . s / (3 sum w)` over the categories, to 3 decimals; 0 when the weights sum to 0 or less.
    pub guide_risk: f64,
    /// Does the film have a tag that the trait avoids?
    pub triggered: bool,
    /// Those tags, in alphabetical order.
    pub tags: Vec<String>,
}

/// The label of a film with `tags` and the guide's `severities` (of [`CATEGORIES`]).
///
/// Source: Safe-Rank-GRPO's documentation of `movie_trait_sensitivity`, steps 1 to 5. Note that a
/// look-up later compares the *rounded* risk with its threshold.
///
/// # Errors
/// [`AlgoError::NonFinite`] for a weight, [`AlgoError::Parameter`] for the threshold.
pub fn trait_label(
    about: &Trait,
    tags: &HashSet<String>,
    severities: &[u8; 5],
    threshold: f64,
) -> Result<TraitLabel, AlgoError> {
    const F: &str = "trait_label";
    all_finite(F, "weights", &about.weights)?;
    parameter(F, "threshold", threshold, true, "finite")?;
    let mut hit: Vec<String> =
        about.avoid.iter().filter(|tag| tags.contains(*tag)).cloned().collect();
    hit.sort();
    hit.dedup();
    let triggered = !hit.is_empty();
    let total: f64 = about.weights.iter().sum();
    let dot: f64 = about.weights.iter().zip(severities).map(|(w, s)| w * f64::from(*s)).sum();
    let guide_risk = if total > 0.0 { dot / (3.0 * total) } else { 0.0 };
    let risk = guide_risk.max(f64::from(u8::from(triggered)));
    let source = match (triggered, guide_risk >= threshold) {
        (true, true) => Some(Source::Both),
        (true, false) => Some(Source::Tags),
        (false, true) => Some(Source::Guide),
        (false, false) => None,
    };
    Ok(TraitLabel {
        risk: round_3(risk),
        unsafe_film: risk >= threshold,
        source,
        guide_risk: round_3(guide_risk),
        triggered,
        tags: hit,
    })
}

/// To 3 decimals: the nearest of the exact binary value, the even one of two equally near.
fn round_3(value: f64) -> f64 {
    format!("{value:.3}").parse().unwrap_or(value)
}
