//! A recommended or wanted item: a title and a year.

use serde_json::Value;

use super::characters::whole_number;
use crate::AlgoError;

/// A year as a data set holds it.
#[derive(Debug, Clone, PartialEq)]
pub enum Year {
    /// A whole number.
    Whole(i64),
    /// Another number.
    Real(f64),
    /// Text, which may spell a whole number.
    Text(String),
    /// None given.
    Unknown,
}

impl Year {
    /// As it stands in a row of JSON.
    ///
    /// # Errors
    /// [`AlgoError::WrongType`] for a list or an object.
    pub fn from_json(value: &Value) -> Result<Self, AlgoError> {
        Ok(match value {
            Value::Null => Self::Unknown,
            Value::Bool(flag) => Self::Whole(i64::from(*flag)),
            Value::String(text) => Self::Text(text.clone()),
            Value::Number(number) => match number.as_i64() {
                Some(whole) => Self::Whole(whole),
                None => Self::Real(number.as_f64().unwrap_or(f64::NAN)),
            },
            _ => {
                return Err(AlgoError::WrongType {
                    function: "Year::from_json",
                    argument: "year",
                    expected: "a number, text or null",
                    got: value.to_string(),
                });
            }
        })
    }

    /// The whole number that it is or spells; `None` otherwise, also for `2004.0` (reference
    /// `_safe_int_year`).
    #[must_use]
    pub fn spelled(&self) -> Option<i64> {
        match self {
            Self::Whole(year) => Some(*year),
            Self::Text(text) => whole_number(text),
            Self::Real(_) | Self::Unknown => None,
        }
    }

    /// The whole number that it is, is cut to, or spells.
    ///
    /// # Errors
    /// [`AlgoError::WrongType`] when there is none.
    pub fn truncated(&self) -> Result<i64, AlgoError> {
        match self {
            Self::Real(year) if year.is_finite() => Some(*year as i64),
            _ => self.spelled(),
        }
        .ok_or_else(|| self.refused("Year::truncated"))
    }

    /// The year to look up: `None` when it is unknown or no whole number.
    ///
    /// # Errors
    /// [`AlgoError::WrongType`] for text, which has no neighbouring years.
    pub fn to_look_up(&self) -> Result<Option<i64>, AlgoError> {
        match self {
            Self::Whole(year) => Ok(Some(*year)),
            Self::Real(year) => Ok((year.fract() == 0.0).then_some(*year as i64)),
            Self::Unknown => Ok(None),
            Self::Text(_) => Err(self.refused("Year::to_look_up")),
        }
    }

    fn refused(&self, function: &'static str) -> AlgoError {
        let got = match self {
            Self::Whole(year) => year.to_string(),
            Self::Real(year) => year.to_string(),
            Self::Text(text) => format!("{text:?}"),
            Self::Unknown => "nothing".to_owned(),
        };
        AlgoError::WrongType { function, argument: "year", expected: "a whole number", got }
    }

    /// The same year: numbers by value, text by text.
    fn same(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Whole(whole), Self::Real(real)) | (Self::Real(real), Self::Whole(whole)) => {
                *whole as f64 == *real
            }
            _ => self == other,
        }
    }
}

/// A title with its year of release.
#[derive(Debug, Clone, PartialEq)]
pub struct Film {
    /// The title as written.
    pub title: String,
    /// The year.
    pub year: Year,
}

impl Film {
    /// With a whole year.
    #[must_use]
    pub fn new(title: impl Into<String>, year: i64) -> Self {
        Self { title: title.into(), year: Year::Whole(year) }
    }

    /// From a row's `[title, year]`.
    ///
    /// # Errors
    /// [`AlgoError::WrongType`] for anything else.
    pub fn from_json(value: &Value) -> Result<Self, AlgoError> {
        match value.as_array().map(Vec::as_slice) {
            Some([Value::String(title), year]) => {
                Ok(Self { title: title.clone(), year: Year::from_json(year)? })
            }
            _ => Err(AlgoError::WrongType {
                function: "Film::from_json",
                argument: "film",
                expected: "[title, year]",
                got: value.to_string(),
            }),
        }
    }

    /// The same title, letter for letter, and year.
    #[must_use]
    pub fn same(&self, other: &Self) -> bool {
        self.title == other.title && self.year.same(&other.year)
    }
}
