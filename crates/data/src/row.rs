//! Rows of data sets: where each stands, what can be wrong with it, and what becomes of bad ones.

use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;
use std::sync::Arc;

use serde_json::Value;

use crate::SampleError;
use crate::prompt_row::RowError;
use crate::safety_dialogue::DialogueError;

/// Where a row stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// The file or folder.
    pub path: Arc<Path>,
    /// Which of its rows.
    pub at: At,
}

/// A row's number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum At {
    /// Line of a text file, from 1.
    Line(u64),
    /// Row of a table, from 0, as `dataset[n]` counts them.
    Row(u64),
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.at {
            At::Line(line) => write!(f, "{} line {line}", self.path.display()),
            At::Row(row) => write!(f, "{} row {row}", self.path.display()),
        }
    }
}

/// A row as a source gives it.
#[derive(Debug, Clone, PartialEq)]
pub struct Row {
    /// Where it stands.
    pub place: Place,
    /// Its fields, or why it has none.
    pub fields: Result<Value, RowFault>,
}

/// What is wrong with a row, and what would be right.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{problem}")]
pub struct RowFault {
    /// What rows with this fault are counted under; names no value.
    pub cause: String,
    /// The fault with its values.
    pub problem: String,
}

impl RowFault {
    /// A fault.
    pub fn new(cause: impl Into<String>, problem: impl Into<String>) -> Self {
        Self { cause: cause.into(), problem: problem.into() }
    }

    /// A fault that no value belongs to.
    pub(crate) fn plain(problem: impl Into<String>) -> Self {
        let problem = problem.into();
        Self { cause: problem.clone(), problem }
    }
}

impl From<SampleError> for RowFault {
    fn from(error: SampleError) -> Self {
        let cause = match &error {
            SampleError::FieldType { field, .. } => format!("field {field:?} of another type"),
            SampleError::NotAnObject { .. } => "not an object".to_owned(),
            SampleError::EvenTurns { .. } => "an even number of turns".to_owned(),
            SampleError::SameAnswers { .. } => "both answers the same".to_owned(),
            SampleError::NoResponse { .. } => "no prompt and response".to_owned(),
            SampleError::Tokenizer(_) => "refused by the tokenizer".to_owned(),
            SampleError::Missing { .. }
            | SampleError::InputAndDialogue
            | SampleError::NoInput
            | SampleError::SaferIsUnsafe => error.to_string(),
        };
        Self::new(cause, error.to_string())
    }
}

impl From<RowError> for RowFault {
    fn from(error: RowError) -> Self {
        let cause = match &error {
            RowError::NoUserMessage => "no message of the role user".to_owned(),
            RowError::NotAConversation(_) => "the prompt is no conversation".to_owned(),
            RowError::NotText(_) => "no text where text belongs".to_owned(),
            RowError::Template(_) => "the input template".to_owned(),
            RowError::Missing { key, .. } => format!("no field {key:?}"),
        };
        Self::new(cause, error.to_string())
    }
}

impl From<DialogueError> for RowFault {
    fn from(error: DialogueError) -> Self {
        let cause = match &error {
            DialogueError::Field { field, .. } => format!("field {field:?} of another type"),
            DialogueError::Image { .. } => "an image that cannot be opened".to_owned(),
        };
        Self::new(cause, error.to_string())
    }
}

/// Rows that were left out, by cause.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Skipped(BTreeMap<String, SkippedRows>);

/// Rows that were left out for one cause.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SkippedRows {
    /// How many.
    pub count: u64,
    /// The first of them: its place and what is wrong with it.
    pub first: String,
}

impl Skipped {
    /// Counts a row.
    pub fn add(&mut self, place: &Place, fault: &RowFault) {
        let first = || SkippedRows { count: 0, first: format!("{place}: {fault}") };
        self.0.entry(fault.cause.clone()).or_insert_with(first).count += 1;
    }

    /// How many rows in all.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.0.values().map(|rows| rows.count).sum()
    }

    /// By cause, in the causes' alphabetical order.
    pub fn causes(&self) -> impl Iterator<Item = (&str, &SkippedRows)> {
        self.0.iter().map(|(cause, rows)| (cause.as_str(), rows))
    }
}

impl fmt::Display for Skipped {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, (cause, rows)) in self.causes().enumerate() {
            let comma = if index == 0 { "" } else { "; " };
            write!(f, "{comma}{} x {cause} (first: {})", rows.count, rows.first)?;
        }
        Ok(())
    }
}
