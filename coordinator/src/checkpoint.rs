//! Commits on disk: `checkpoint/STAGE/step-000020/` holds a folder of shards for each group that
//! trains (`policy/`, `critic/`), and `commit.json`, which is written last.
//!
//! CM-1: a folder without a whole `commit.json` was never committed.
//! CM-2: `commit.json` names every file with size and digest, and carries its own digest.
//! CM-3: what the ranks do not hold but a resumed run needs is in `commit.json`: the step, the
//! policy version, the algorithm's state.
//!
//! Nothing here talks to workers; [`crate::fleet::commits`] does.

mod commit;
mod shelf;
mod verify;

use std::path::PathBuf;

pub use commit::{COMMIT, Commit, CommittedFile, Part, read, seal};
pub use shelf::{Best, Shelf, Stored};
pub use verify::{find, verify};

/// A commit that cannot be trusted or handled.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{}: {problem}", .path.display())]
pub struct CheckpointError {
    /// The file or folder.
    pub path: PathBuf,
    /// What is wrong with it.
    pub problem: String,
}

impl CheckpointError {
    pub(crate) fn new(path: impl Into<PathBuf>, problem: impl Into<String>) -> Self {
        Self { path: path.into(), problem: problem.into() }
    }
}
