//! Data that cannot be read.

use std::path::PathBuf;

use crate::row::{Place, RowFault, Skipped};
use crate::{MixtureError, Schema};

/// Data that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum DataError {
    /// A file could not be read.
    #[error("{} cannot be read", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// A name that says nothing of the file's format.
    #[error(
        "{}: unknown kind of data; give .jsonl, .jsonl.gz, .parquet, or a folder that Hugging \
         Face datasets wrote with save_to_disk",
        path.display()
    )]
    Kind {
        /// The file.
        path: PathBuf,
    },
    /// A table whose format is broken, or whose folder is no data set.
    #[error("{}: {problem}", path.display())]
    Table {
        /// The file or folder.
        path: PathBuf,
        /// What is wrong, and what would be right.
        problem: String,
    },
    /// A bad row.
    #[error("{place}: {fault}")]
    Row {
        /// Where it stands.
        place: Place,
        /// What is wrong with it.
        fault: RowFault,
    },
    /// No rows.
    #[error("{} has no rows", path.display())]
    Empty {
        /// The file.
        path: PathBuf,
    },
    /// Only bad rows.
    #[error("{} has no good rows, skipped are {skipped}", path.display())]
    AllSkipped {
        /// The file.
        path: PathBuf,
        /// Why.
        skipped: Skipped,
    },
    /// A mixture that cannot be made.
    #[error(transparent)]
    Mixture(#[from] MixtureError),
    /// A name that stands for no data set.
    #[error("no data set is named {name:?}; there are: {}", Schema::names().join(", "))]
    UnknownName {
        /// What was given.
        name: String,
    },
    /// A data set without a path.
    #[error("data set {name:?} has no path, and nothing is downloaded; write {name}:1.0:PATH")]
    NoPath {
        /// The data set.
        name: String,
    },
    /// A data set of another use.
    #[error("data set {name:?} has no {wanted}; it gives {given}")]
    WrongUse {
        /// The data set.
        name: String,
        /// What was asked for.
        wanted: &'static str,
        /// What it has.
        given: String,
    },
    /// A mixture that takes nothing.
    #[error("nothing is taken of {sources:?}; write proportions above 0")]
    NothingTaken {
        /// The sources as written.
        sources: Vec<String>,
    },
}
