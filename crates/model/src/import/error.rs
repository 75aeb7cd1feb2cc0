//! Why an import was refused.

use std::path::PathBuf;

use crate::tokenizer::TokenizerError;

/// Why a file could not be imported. Nothing was written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ImportError {
    /// A file could not be read or written.
    #[error("cannot {action} {}: {source}", path.display())]
    Io {
        /// What was tried, as a verb.
        action: &'static str,
        /// The file or folder.
        path: PathBuf,
        /// The system's reason.
        source: std::io::Error,
    },
    /// The file ends too early.
    #[error(
        "{}: truncated: {what} at byte {offset} needs {needed} bytes, but the file has {bytes} bytes",
        path.display()
    )]
    Truncated {
        /// The file.
        path: PathBuf,
        /// What was to be read.
        what: String,
        /// Where it begins.
        offset: u64,
        /// Its length.
        needed: u64,
        /// The file's length.
        bytes: u64,
    },
    /// The bytes are not what the format says.
    #[error("{}: byte {offset}: {reason}", path.display())]
    Format {
        /// The file.
        path: PathBuf,
        /// Where.
        offset: u64,
        /// What is wrong.
        reason: String,
    },
    /// A metadata key is missing or unusable.
    #[error("{}: metadata key `{key}` is {found}; expected {expected}", path.display())]
    Metadata {
        /// The file.
        path: PathBuf,
        /// The key.
        key: String,
        /// What was found.
        found: String,
        /// What would be right.
        expected: String,
    },
    /// A feature that this importer does not have.
    #[error("{}: {what} `{name}` is not supported; supported: {supported}", path.display())]
    Unsupported {
        /// The file.
        path: PathBuf,
        /// The kind of thing.
        what: &'static str,
        /// Its name.
        name: String,
        /// What is supported.
        supported: &'static str,
    },
    /// A tensor is missing or has the wrong shape.
    #[error("{}: tensor `{tensor}`: {reason}", path.display())]
    Tensor {
        /// The file.
        path: PathBuf,
        /// The tensor's name in the source.
        tensor: String,
        /// What is wrong.
        reason: String,
    },
    /// The destination is in use.
    #[error("{} exists already; choose another destination or remove it", path.display())]
    DestinationExists {
        /// The destination.
        path: PathBuf,
    },
    /// Arguments that do not go together.
    #[error("{reason}")]
    Argument {
        /// What is wrong.
        reason: String,
    },
    /// The tokenizer that was written cannot be used.
    #[error("the imported tokenizer cannot be used: {0}")]
    Tokenizer(#[from] TokenizerError),
}

pub(super) type Result<T> = std::result::Result<T, ImportError>;
