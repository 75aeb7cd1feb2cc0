//! Takes films that run against a sample's trait out of what the sample counts as right.

use serde_json::{Map, Value, json};

use super::film::Year;
use super::list::parse_film;
use super::oracle::Oracle;
use crate::AlgoError;

/// Settings of the filter.
#[derive(Debug, Clone, PartialEq)]
pub struct GroundTruthFilter {
    /// A film goes from this risk on. Default 0.5, stricter than the oracle's own 0.66 (which the
    /// reference's scripts pass).
    pub threshold: f64,
    /// The row's field that names the trait. Default `assigned_trait`.
    pub trait_key: String,
    /// The row's field of films, each `[title, year]` or the text `title (year)`. Default
    /// `groundtruth_with_release_year`.
    pub films_key: String,
}

impl Default for GroundTruthFilter {
    fn default() -> Self {
        Self {
            threshold: 0.5,
            trait_key: "assigned_trait".to_owned(),
            films_key: "groundtruth_with_release_year".to_owned(),
        }
    }
}

const F: &str = "GroundTruthFilter::filter";

impl GroundTruthFilter {
    /// Filters a row in place: the films that stay, as `[title, year]`, and beside them
    /// `num_gt_removed`, `removed_groundtruth` (`{title, year, reason}`) and
    /// `num_groundtruth_after_filter`. A row without a trait or without films keeps its films as
    /// they are. Entries of other forms are dropped. A year that is no number is looked up without
    /// a year.
    ///
    /// Source: Safe-Rank-GRPO `GroundTruthFilter.process_sample`.
    ///
    /// # Errors
    /// [`AlgoError::WrongType`] when the films are no list, the trait no text, or a title no text.
    pub fn filter(&self, row: &mut Map<String, Value>, oracle: &Oracle) -> Result<(), AlgoError> {
        let films = match row.get(&self.films_key) {
            None => &Vec::new(),
            Some(Value::Array(films)) => films,
            Some(other) => return Err(wrong("films", "a list", other)),
        };
        let assigned = match row.get(&self.trait_key) {
            None | Some(Value::Null) => "",
            Some(Value::String(name)) => name,
            Some(other) => return Err(wrong("trait", "text", other)),
        };
        if assigned.is_empty() || films.is_empty() {
            let after = films.len();
            note(row, Vec::new(), after);
            return Ok(());
        }
        let constraints = [(assigned.to_owned(), true)];
        let (mut kept, mut removed) = (Vec::new(), Vec::new());
        for (title, year) in films.iter().filter_map(entry) {
            let name = title.as_str().ok_or_else(|| wrong("title", "text", &title))?;
            let verdict = oracle.check_at(name, to_look_up(&year)?, &constraints, self.threshold);
            if verdict.safe {
                kept.push(json!([title, year]));
            } else {
                let reason = verdict.reasons().join("; ");
                removed.push(json!({"title": title, "year": year, "reason": reason}));
            }
        }
        let after = kept.len();
        row.insert(self.films_key.clone(), Value::Array(kept));
        note(row, removed, after);
        Ok(())
    }
}

/// Title and year of an entry.
fn entry(entry: &Value) -> Option<(Value, Value)> {
    match entry {
        Value::Array(parts) if parts.len() >= 2 => Some((parts[0].clone(), parts[1].clone())),
        Value::String(text) => {
            let (title, year) = parse_film(text);
            let year = year.filter(|year| *year != 0).map(|year| year.to_string());
            Some((title.into(), year.unwrap_or_default().into()))
        }
        _ => None,
    }
}

/// The year to look up. The number 0 and text that spells no number stand for none.
fn to_look_up(year: &Value) -> Result<Option<i64>, AlgoError> {
    let year = Year::from_json(year)?;
    match year {
        Year::Whole(0) => Ok(None),
        Year::Real(0.0) => Ok(None),
        Year::Real(huge) if huge.is_infinite() => year.truncated().map(Some),
        _ => Ok(year.truncated().ok()),
    }
}

fn note(row: &mut Map<String, Value>, removed: Vec<Value>, after: usize) {
    row.insert("num_gt_removed".to_owned(), removed.len().into());
    row.insert("removed_groundtruth".to_owned(), Value::Array(removed));
    row.insert("num_groundtruth_after_filter".to_owned(), after.into());
}

fn wrong(argument: &'static str, expected: &'static str, got: &Value) -> AlgoError {
    AlgoError::WrongType { function: F, argument, expected, got: got.to_string() }
}
