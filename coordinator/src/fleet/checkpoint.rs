//! Commits on disk: `checkpoint/step-000020/` with the ranks' shards and a `commit.json` that is
//! written last. A folder without one was never committed.

use std::path::{Path, PathBuf};

use plumb_domain::{PolicyVersion, StepId};
use plumb_proto::actor::CheckpointFile;
use serde::{Deserialize, Serialize};

use crate::job::error::JobError;
use crate::job::folder::write_whole;

/// The last committed state.
#[derive(Debug, Clone, PartialEq)]
pub struct Committed {
    /// The first step that is not part of it.
    pub next_step: StepId,
    /// Where it lies; `None` is the model that the run started from.
    pub folder: Option<PathBuf>,
}

/// What `commit.json` says.
#[derive(Debug, Serialize, Deserialize)]
struct Manifest {
    next_step: u64,
    policy_version: u64,
    world_size: usize,
    files: Vec<File>,
}

#[derive(Debug, Serialize, Deserialize)]
struct File {
    name: String,
    bytes: u64,
    blake3: String,
}

/// Folder of the commit after `step`.
#[must_use]
pub fn folder(root: &Path, step: StepId) -> PathBuf {
    root.join(format!("step-{:06}", step.0 + 1))
}

/// Seals a commit that every rank has written. Returns its bytes.
///
/// # Errors
/// The manifest could not be written.
pub fn seal(
    folder: &Path,
    step: StepId,
    version: PolicyVersion,
    ranks: &[Vec<CheckpointFile>],
) -> Result<u64, JobError> {
    let files: Vec<File> = ranks
        .iter()
        .flatten()
        .map(|f| File { name: f.name.clone(), bytes: f.bytes, blake3: f.digest.clone() })
        .collect();
    let bytes = files.iter().map(|f| f.bytes).sum();
    let manifest = Manifest {
        next_step: step.0 + 1,
        policy_version: version.0,
        world_size: ranks.len(),
        files,
    };
    write_whole(&folder.join("commit.json"), &serde_json::to_vec_pretty(&manifest)?)?;
    Ok(bytes)
}

/// Removes all commits but the newest `keep`, and what was never sealed. `newest` stays always.
///
/// # Errors
/// A folder that cannot be read or removed.
pub fn prune(root: &Path, newest: &Path, keep: usize) -> Result<(), JobError> {
    let io = |what: &'static str, path: &Path| {
        let path = path.to_owned();
        move |source| JobError::Io { what, path, source }
    };
    let mut folders: Vec<PathBuf> = std::fs::read_dir(root)
        .map_err(io("read", root))?
        .filter_map(|entry| entry.ok().map(|e| e.path()))
        .filter(|path| path != newest)
        .filter(|path| path.file_name().is_some_and(|n| n.to_string_lossy().starts_with("step-")))
        .collect();
    folders.sort();
    let (sealed, torn): (Vec<_>, Vec<_>) =
        folders.into_iter().partition(|path| path.join("commit.json").is_file());
    let surplus = (sealed.len() + 1).saturating_sub(keep.max(1));
    for path in torn.iter().chain(sealed.iter().take(surplus)) {
        std::fs::remove_dir_all(path).map_err(io("removed", path))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn old_and_unsealed_commits_go_and_the_newest_stays() {
        let root = tempfile::tempdir().unwrap();
        let file = CheckpointFile { name: "rank-0".into(), bytes: 7, digest: "d".into() };
        for step in [1, 3, 5] {
            let folder = folder(root.path(), StepId(step));
            std::fs::create_dir_all(&folder).unwrap();
            if step != 3 {
                let bytes =
                    seal(&folder, StepId(step), PolicyVersion(1), &[vec![file.clone()]]).unwrap();
                assert_eq!(bytes, 7);
            }
        }
        prune(root.path(), &folder(root.path(), StepId(5)), 2).unwrap();
        assert!(folder(root.path(), StepId(1)).exists());
        assert!(!folder(root.path(), StepId(3)).exists(), "never sealed");
        prune(root.path(), &folder(root.path(), StepId(5)), 1).unwrap();
        assert!(!folder(root.path(), StepId(1)).exists());
        assert!(folder(root.path(), StepId(5)).exists());
    }
}
