//! Data sets as a command line names them.

use std::path::{Path, PathBuf};
use std::str::FromStr;

use crate::MixtureError;

/// How much of a data set is taken.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Proportion {
    /// `round(size * ratio)` samples, halves to even. Above 1 samples repeat.
    Ratio(f64),
    /// Exactly this many, at least 0.
    Count(i64),
}

impl Default for Proportion {
    fn default() -> Self {
        Self::Ratio(1.0)
    }
}

/// `name[:proportion[:path]]`, as on safe-rlhf's command line.
///
/// The proportion is a number, `a/b` for a ratio, or `n/-1` for exactly `n` samples; nothing means
/// all. Its range is checked when samples are selected ([`crate::select`]).
///
/// Source: safe-rlhf `parse_dataset`.
#[derive(Debug, Clone, PartialEq)]
pub struct DatasetSpec {
    /// Which data set.
    pub name: String,
    /// How much of it.
    pub proportion: Proportion,
    /// Where it is, as written; see [`DatasetSpec::path_from`].
    pub path: Option<String>,
}

impl DatasetSpec {
    /// The path with a leading `~` replaced by `home`.
    #[must_use]
    pub fn path_from(&self, home: &Path) -> Option<PathBuf> {
        let path = self.path.as_deref()?;
        Some(match path.strip_prefix('~') {
            Some("") => home.to_owned(),
            Some(rest) if rest.starts_with('/') => home.join(rest.trim_start_matches('/')),
            _ => PathBuf::from(path),
        })
    }
}

impl FromStr for DatasetSpec {
    type Err = MixtureError;

    fn from_str(text: &str) -> Result<Self, MixtureError> {
        let mut parts = text.split(':');
        let name = parts.next().unwrap_or_default().to_owned();
        let (proportion, path) = (parts.next(), parts.next());
        if parts.next().is_some() {
            return Err(MixtureError::Colons { text: text.to_owned() });
        }
        let proportion = match proportion {
            None | Some("") => Proportion::default(),
            Some(given) => proportion_of(given).ok_or_else(|| MixtureError::Proportion {
                text: text.to_owned(),
                proportion: given.to_owned(),
            })?,
        };
        if path == Some("") {
            return Err(MixtureError::NoPath { text: text.to_owned() });
        }
        Ok(Self { name, proportion, path: path.map(str::to_owned) })
    }
}

fn proportion_of(text: &str) -> Option<Proportion> {
    let Some((left, right)) = text.split_once('/') else {
        return Some(Proportion::Ratio(number(text)?));
    };
    if right.trim() == "-1" {
        let count = plain(left)?.parse().ok()?;
        // Nothing of it: a ratio of 0, as there.
        return Some(if count == 0 { Proportion::Ratio(0.0) } else { Proportion::Count(count) });
    }
    let (left, right) = (number(left)?, number(right)?);
    let ratio = left / right;
    (right != 0.0 && !ratio.is_nan()).then_some(Proportion::Ratio(ratio))
}

/// A number as Python's `float` reads it (ASCII digits), without NaN.
fn number(text: &str) -> Option<f64> {
    plain(text)?.parse().ok().filter(|number: &f64| !number.is_nan())
}

/// Without white space around it and underscores between digits.
fn plain(text: &str) -> Option<String> {
    let text = text.trim();
    let bytes = text.as_bytes();
    let digit = |at: usize| bytes.get(at).is_some_and(u8::is_ascii_digit);
    let misplaced = |at: usize| bytes[at] == b'_' && !(at > 0 && digit(at - 1) && digit(at + 1));
    (!(0..bytes.len()).any(misplaced)).then(|| text.replace('_', ""))
}
