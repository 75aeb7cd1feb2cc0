//! What can be wrong with a recipe.

use std::path::PathBuf;

/// A recipe that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file could not be read.
    #[error("recipe {path} cannot be read")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The text is not TOML.
    #[error("recipe {path} is not TOML: {message}")]
    Syntax {
        /// The file.
        path: PathBuf,
        /// Line, column and cause.
        message: String,
    },
    /// A key that no part of the system reads.
    #[error("recipe {path}: unknown key `{key}`{}", hint(.nearest.as_deref(), .known))]
    UnknownKey {
        /// The file.
        path: PathBuf,
        /// The key with its tables, for example `algorithm.kl.coeff`.
        key: String,
        /// The nearest valid key.
        nearest: Option<String>,
        /// Every key that may stand there.
        known: Vec<String>,
    },
    /// A value of the wrong type, or a key that is missing.
    #[error("recipe {path}: {message}")]
    Value {
        /// The file.
        path: PathBuf,
        /// Key, value and what would be right.
        message: String,
    },
    /// `--set` that is not `key=value`.
    #[error("override {given:?} is not `key.path=value`: {problem}")]
    Override {
        /// What stood on the command line.
        given: String,
        /// What is wrong with it.
        problem: String,
    },
    /// Values that contradict one another; all of them, not only the first.
    #[error("recipe {path} contradicts itself:\n{}", list(.contradictions))]
    Contradiction {
        /// The file.
        path: PathBuf,
        /// Each with its fix.
        contradictions: Vec<Contradiction>,
    },
}

/// One value that cannot stand, and what would be right.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Contradiction {
    /// Key with its tables.
    pub key: String,
    /// The value and what it clashes with.
    pub problem: String,
    /// What to write instead.
    pub fix: String,
}

fn hint(nearest: Option<&str>, known: &[String]) -> String {
    match nearest {
        Some(key) => format!("; did you mean `{key}`?"),
        None if known.is_empty() => "; no key may stand there".to_owned(),
        None => format!("; keys that may stand there: {}", known.join(", ")),
    }
}

fn list(contradictions: &[Contradiction]) -> String {
    let line = |c: &Contradiction| format!("  {}: {}; {}", c.key, c.problem, c.fix);
    contradictions.iter().map(line).collect::<Vec<_>>().join("\n")
}
