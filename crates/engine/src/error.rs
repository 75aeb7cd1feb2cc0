//! What can go wrong in training, with the state that a reader needs.

use std::path::PathBuf;

use crate::checkpoint::Refused;

/// An engine failure. Messages name the object and its values.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// A setting outside its domain.
    #[error("{key} is {value:?}; expected {expected}")]
    Setting {
        /// The setting.
        key: &'static str,
        /// What was given.
        value: String,
        /// What would be right.
        expected: &'static str,
    },
    /// A sequence that no micro-batch can hold.
    #[error(
        "sequence {index} has {tokens} tokens, more than micro_batch_tokens = {budget_tokens}; \
         raise micro_batch_tokens or shorten prompts and responses"
    )]
    SequenceTooLong {
        /// Position in the batch.
        index: usize,
        /// Its length.
        tokens: usize,
        /// The budget.
        budget_tokens: usize,
    },
    /// A sample that does not fit together.
    #[error("sample {id}: {problem}")]
    Sample {
        /// The sample.
        id: String,
        /// What does not fit, with values.
        problem: String,
    },
    /// Training was asked of a model that was loaded frozen, or the head does not fit the task.
    #[error("{0}")]
    Unsuited(String),
    /// A loss, gradient or log-prob that is not a number or infinite.
    #[error("{quantity} is {value} at optimiser step {step}; the update was not applied")]
    NonFinite {
        /// What is not finite.
        quantity: String,
        /// Its value.
        value: f64,
        /// Optimiser steps taken before.
        step: u64,
    },
    /// Gradients that stayed not finite although steps were left out.
    #[error(
        "the gradient norm was not finite at {in_a_row} optimiser steps in a row, the last time \
         {value} after {step} steps that were taken; max_skipped_steps allows {allowed}"
    )]
    SkippedTooOften {
        /// Steps without a finite gradient since the last one that was taken.
        in_a_row: u32,
        /// The setting.
        allowed: u32,
        /// The last norm.
        value: f64,
        /// Optimiser steps taken before.
        step: u64,
    },
    /// A pattern over parameter names that does not do what it was written for.
    #[error("{key} pattern \"{pattern}\" {problem}")]
    Pattern {
        /// The setting.
        key: &'static str,
        /// The regular expression.
        pattern: String,
        /// What is wrong with it.
        problem: String,
    },
    /// A checkpoint that cannot be trusted or does not belong to this model.
    #[error("checkpoint {path}: {problem}", path = path.display())]
    Checkpoint {
        /// The file or folder.
        path: PathBuf,
        /// What is wrong with it.
        problem: String,
    },
    /// Of some checkpoints none can be used.
    #[error("none of {} checkpoints can be used: {}", .refused.len(), problems(.refused))]
    NoCheckpoint {
        /// Each of them, with what is wrong.
        refused: Vec<Refused>,
    },
    /// A file that could not be written or read.
    #[error("{action} {path}: {source}", path = path.display())]
    File {
        /// For example "write".
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// The system's reason.
        source: std::io::Error,
    },
    /// Another rank failed; its own error says why.
    #[error("{action} failed on {failed} of {world_size} ranks; see the error of the failing rank")]
    OtherRank {
        /// What was going on.
        action: &'static str,
        /// How many ranks failed.
        failed: usize,
        /// Ranks in the group.
        world_size: usize,
    },
    /// A collective failed; names group, rank and peer.
    #[error(transparent)]
    Collective(#[from] plumb_collective::CollectiveError),
    /// The model refused a folder, a shape or an architecture.
    #[error(transparent)]
    Model(#[from] plumb_model::ModelError),
    /// A loss refused its arguments, or came out as no number.
    #[error(transparent)]
    Loss(#[from] plumb_loss::LossError),
    /// The shim over libtorch.
    #[error(transparent)]
    Torch(#[from] plumb_torch::TorchError),
    /// libtorch itself.
    #[error("tensor operation failed: {0}")]
    Tensor(#[from] tch::TchError),
}

fn problems(refused: &[Refused]) -> String {
    let known = refused.iter().map(|refused| refused.problem.as_str()).filter(|p| !p.is_empty());
    let problems: Vec<_> = known.collect();
    if problems.is_empty() { "see the other ranks".to_owned() } else { problems.join("; ") }
}

impl EngineError {
    /// Adds the step to what a loss function reported as no number.
    pub(crate) fn at_step(self, step: u64) -> Self {
        match self {
            Self::Loss(plumb_loss::LossError::NonFinite { what, value, .. }) => {
                Self::NonFinite { quantity: what.to_owned(), value, step }
            }
            other => other,
        }
    }
}

/// Result of engine calls.
pub type Result<T> = std::result::Result<T, EngineError>;
