//! Why a job did not run, or did not end well.

use std::path::PathBuf;

use crate::ports::PhaseError;

/// A job that failed.
#[derive(Debug, thiserror::Error)]
pub enum JobError {
    /// The recipe cannot be used.
    #[error(transparent)]
    Config(#[from] plumb_config::ConfigError),
    /// A file or folder could not be handled.
    #[error("{} could not be {what}", .path.display())]
    Io {
        /// What was to be done.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// Another job runs in the folder.
    #[error(
        "run folder {} is in use by another job (process {holder}); wait for it, or name another \
         folder with --run-dir",
        .path.display()
    )]
    FolderInUse {
        /// The folder.
        path: PathBuf,
        /// Process id of the coordinator that holds it.
        holder: String,
    },
    /// The recipe is not the one that the run folder's job was started with.
    #[error(
        "the job in {} cannot be resumed with this recipe: {key} was {before} and is {now}; give \
         it its old value, or name another folder with --run-dir",
        .path.display()
    )]
    OtherRecipe {
        /// The run folder.
        path: PathBuf,
        /// The first key that differs and matters.
        key: String,
        /// Its value when the job was started.
        before: String,
        /// Its value now.
        now: String,
    },
    /// Something that the recipe names is not there or not usable.
    #[error("{what}: {problem}; {fix}")]
    Input {
        /// Recipe key and its value.
        what: String,
        /// What is wrong.
        problem: String,
        /// What would be right.
        fix: String,
    },
    /// A worker group could not be placed or did not start.
    #[error("group {group} could not be started: {cause}")]
    Placement {
        /// Its name.
        group: String,
        /// What does not fit, or which worker did not start and why.
        cause: String,
    },
    /// A stage came to a state that it cannot go on from.
    #[error("stage {stage}: {problem}")]
    Stage {
        /// The stage.
        stage: String,
        /// What happened.
        problem: String,
    },
    /// A worker's call failed.
    #[error(transparent)]
    Phase(#[from] PhaseError),
    /// A log or sample file could not be written.
    #[error(transparent)]
    Lines(#[from] plumb_telemetry::JsonLinesError),
    /// A result has no JSON form.
    #[error("a result has no JSON form")]
    Encode(#[from] serde_json::Error),
}

impl JobError {
    /// Whether the job ended because somebody asked for it.
    #[must_use]
    pub fn is_cancelled(&self) -> bool {
        matches!(self, Self::Phase(PhaseError::Cancelled))
    }
}

/// An error with all its causes, outermost first.
#[must_use]
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let words = cause.to_string();
        // A transparent error repeats its cause.
        if !text.ends_with(&words) {
            text.push_str(": ");
            text.push_str(&words);
        }
        source = cause.source();
    }
    text
}
