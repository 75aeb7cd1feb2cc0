//! The one error type of the model code.

use std::path::PathBuf;

use tch::TchError;

/// What can go wrong with a model folder, a batch, or libtorch.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ModelError {
    /// A file could not be read or written.
    #[error("cannot {action} {}: {source}", path.display())]
    Io {
        /// What was tried, as a verb: "read", "write", "rename".
        action: &'static str,
        /// The file or folder.
        path: PathBuf,
        /// The system's reason.
        source: std::io::Error,
    },
    /// A file is not valid JSON.
    #[error("{} is not valid JSON: {source}", path.display())]
    Json {
        /// The file.
        path: PathBuf,
        /// Where and why parsing stopped.
        source: serde_json::Error,
    },
    /// A key of `config.json` is missing, of the wrong type, or out of range.
    #[error("{}: key `{key}` is {found}; expected {expected}", path.display())]
    Config {
        /// The config file.
        path: PathBuf,
        /// The key, with dots for nesting.
        key: String,
        /// The value found, or "missing".
        found: String,
        /// What would be right.
        expected: String,
    },
    /// The folder asks for something that this implementation does not have.
    #[error("{}: {what} `{name}` is not supported; supported: {supported}", path.display())]
    Unsupported {
        /// The config file.
        path: PathBuf,
        /// The kind of thing: "architecture", "activation", "rope type".
        what: &'static str,
        /// Its name as written in the file.
        name: String,
        /// What is supported.
        supported: String,
    },
    /// A safetensors file is truncated or its header is inconsistent.
    #[error("{}: not a whole safetensors file: {reason}", path.display())]
    Safetensors {
        /// The file.
        path: PathBuf,
        /// What does not fit.
        reason: String,
    },
    /// A tensor is missing, unexpected, or has the wrong shape or type.
    #[error("{}: tensor `{tensor}`: {reason}", path.display())]
    Tensor {
        /// The file (or the folder, when no file has the tensor).
        path: PathBuf,
        /// The tensor's name.
        tensor: String,
        /// What is wrong with it.
        reason: String,
    },
    /// Arguments that do not fit the model: token ids, positions, slots, parameter lists.
    #[error("{0}")]
    Input(String),
    /// The export target cannot be used, or the tensors written are not the ones announced.
    #[error("export to {}: {reason}", path.display())]
    Export {
        /// The target folder.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// libtorch refused an operation.
    #[error("libtorch: {0}")]
    Torch(#[from] TchError),
    /// A kernel outside tch refused its inputs.
    #[error(transparent)]
    Kernel(#[from] plumb_torch::TorchError),
}

impl ModelError {
    /// An input error from anything printable.
    pub(crate) fn input(message: impl Into<String>) -> Self {
        Self::Input(message.into())
    }
}

/// Shorthand used inside the crate.
pub(crate) type Result<T> = std::result::Result<T, ModelError>;
