//! What can go wrong between the coordinator and its workers.

use std::path::PathBuf;
use std::sync::Arc;

use plumb_domain::{Epoch, WorkerId};
use plumb_machine::Refusal;
use plumb_runtime::RuntimeError;

/// A failure of the cluster as a whole.
#[derive(Debug, thiserror::Error)]
pub enum ClusterError {
    /// Listening, TLS, certificates.
    #[error(transparent)]
    Runtime(#[from] RuntimeError),
    /// The state folder cannot be used.
    #[error("cannot {what} {}: {cause}", path.display())]
    State {
        /// What was attempted.
        what: &'static str,
        /// On which path.
        path: PathBuf,
        /// The system's reason.
        cause: std::io::Error,
    },
    /// A file of the state folder is not what it should be.
    #[error("{} is not a file that a coordinator wrote: {what}", path.display())]
    Malformed {
        /// Which file.
        path: PathBuf,
        /// What is wrong with it.
        what: String,
    },
}

/// A group that could not be placed, or could not be kept alive.
#[derive(Debug, thiserror::Error)]
pub enum GroupError {
    /// The machine refused the request.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// The group failed; the cause names the worker.
    #[error("group {group:?} failed: {cause}{}", tail(stderr_tail))]
    Failed {
        /// Which group.
        group: String,
        /// Why, with the worker.
        cause: String,
        /// Last lines that the lost worker wrote to stderr.
        stderr_tail: String,
    },
    /// The group was released while somebody waited for it.
    #[error("group {group:?} was released")]
    Released {
        /// Which group.
        group: String,
    },
    /// An address of a worker cannot be dialled.
    #[error(transparent)]
    Runtime(#[from] RuntimeError),
}

/// The end of a worker's epoch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Loss {
    /// Which worker.
    pub worker: WorkerId,
    /// Its rank.
    pub rank: u32,
    /// The epoch that is over.
    pub epoch: Epoch,
    /// What it said it was doing.
    pub phase: String,
    /// Why, with the exit reason where the process ended.
    pub cause: String,
    /// Last lines that it wrote to stderr, where its agent could read them.
    pub stderr_tail: String,
}

/// A call to a worker that brought no result.
#[derive(Debug, Clone, thiserror::Error)]
pub enum CallError {
    /// The worker was lost; its group restarts by its policy.
    #[error(
        "{} (rank {}, epoch {}) was lost in {phase}: {}{}",
        loss.worker, loss.rank, loss.epoch, loss.cause, tail(&loss.stderr_tail)
    )]
    Lost {
        /// The phase of the call.
        phase: String,
        /// Who, and why.
        loss: Arc<Loss>,
    },
    /// The worker answered with an error.
    #[error("{worker} (rank {rank}) failed in {phase}: {} ({:?})", status.message(), status.code())]
    Failed {
        /// Which worker.
        worker: WorkerId,
        /// Its rank.
        rank: u32,
        /// The phase of the call.
        phase: String,
        /// Its answer.
        status: Box<tonic::Status>,
    },
}

impl CallError {
    /// Whether the worker is gone, as against: it answered with an error.
    #[must_use]
    pub fn is_lost(&self) -> bool {
        matches!(self, Self::Lost { .. })
    }

    /// Which worker.
    #[must_use]
    pub fn worker(&self) -> &WorkerId {
        match self {
            Self::Lost { loss, .. } => &loss.worker,
            Self::Failed { worker, .. } => worker,
        }
    }
}

fn tail(stderr: &str) -> String {
    match stderr.trim() {
        "" => String::new(),
        text => format!("; its last lines on stderr:\n{text}"),
    }
}
