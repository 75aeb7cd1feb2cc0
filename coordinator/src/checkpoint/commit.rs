//! `commit.json`.

use std::collections::BTreeMap;
use std::path::Path;

use plumb_proto::actor::CheckpointFile;
use serde::{Deserialize, Serialize};

use super::CheckpointError;
use crate::job::folder::write_whole;

/// Name of the file that makes a folder a commit.
pub const COMMIT: &str = "commit.json";
const FORMAT: &str = "plumbline-commit-1";
/// Stands where the file's own digest will, while that is computed.
const NO_DIGEST: &str = "0000000000000000000000000000000000000000000000000000000000000000";

/// What a resumed run needs beside the ranks' shards.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Commit {
    /// Which layout this is.
    format: String,
    /// BLAKE3 of this file with zeros in this place, hex.
    digest: String,
    /// The stage that made it.
    pub stage: String,
    /// The first step that is not part of it, counted from 0; data position and learning rate
    /// are functions of the step.
    pub next_step: u64,
    /// Version of the weights.
    pub policy_version: u64,
    /// What the algorithm keeps beside the tensors: multipliers, controllers, running means.
    /// Null where it keeps nothing.
    pub algorithm_state: serde_json::Value,
    /// Figures of the last step in it.
    pub figures: BTreeMap<String, f64>,
    /// Folder of a group's shards within the commit -> its files.
    pub parts: BTreeMap<String, Part>,
}

/// The shards of one group.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Part {
    /// Ranks that wrote it; any number may read it.
    pub world_size: usize,
    /// All its files.
    pub files: Vec<CommittedFile>,
}

/// Size and digest of a file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CommittedFile {
    /// Name within its part's folder.
    pub name: String,
    /// Length.
    pub bytes: u64,
    /// BLAKE3, hex.
    pub blake3: String,
}

impl From<&CheckpointFile> for CommittedFile {
    fn from(file: &CheckpointFile) -> Self {
        Self { name: file.name.clone(), bytes: file.bytes, blake3: file.digest.clone() }
    }
}

impl Commit {
    /// A commit of the state before `next_step`, still without files.
    #[must_use]
    pub fn new(stage: &str, next_step: u64) -> Self {
        Self {
            format: FORMAT.to_owned(),
            digest: NO_DIGEST.to_owned(),
            stage: stage.to_owned(),
            next_step,
            policy_version: 0,
            algorithm_state: serde_json::Value::Null,
            figures: BTreeMap::new(),
            parts: BTreeMap::new(),
        }
    }

    /// Bytes of all shards.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.parts.values().flat_map(|part| &part.files).map(|file| file.bytes).sum()
    }
}

/// Writes `commit.json`: from then on the folder is a commit.
///
/// # Errors
/// The disk's.
pub fn seal(folder: &Path, commit: &Commit) -> Result<(), CheckpointError> {
    let path = folder.join(COMMIT);
    let fail = |problem: String| CheckpointError::new(&path, problem);
    let blank = Commit { digest: NO_DIGEST.to_owned(), ..commit.clone() };
    let text = serde_json::to_string_pretty(&blank).map_err(|e| fail(e.to_string()))?;
    let digest = blake3::hash(text.as_bytes()).to_hex();
    let text = text.replacen(NO_DIGEST, &digest, 1);
    write_whole(&path, text.as_bytes()).map_err(|e| fail(crate::job::error::chain(&e)))
}

/// Reads and checks `commit.json`.
///
/// # Errors
/// A folder that was never committed, a file that was altered.
pub fn read(folder: &Path) -> Result<Commit, CheckpointError> {
    let path = folder.join(COMMIT);
    let refuse = |problem: String| CheckpointError::new(&path, problem);
    let text = std::fs::read_to_string(&path).map_err(|error| match error.kind() {
        std::io::ErrorKind::NotFound => {
            refuse("is missing: the checkpoint was never completed".to_owned())
        }
        _ => refuse(format!("cannot be read: {error}")),
    })?;
    let commit: Commit =
        serde_json::from_str(&text).map_err(|error| refuse(format!("is not valid: {error}")))?;
    if commit.format != FORMAT {
        return Err(refuse(format!("has format {:?}, expected {FORMAT:?}", commit.format)));
    }
    let blank = text.replacen(&commit.digest, NO_DIGEST, 1);
    let found = blake3::hash(blank.as_bytes()).to_hex();
    if found.as_str() != commit.digest {
        let said = &commit.digest;
        return Err(refuse(format!("was altered: it has BLAKE3 {found} and says {said}")));
    }
    Ok(commit)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn commit() -> Commit {
        let file = CommittedFile { name: "manifest.json".into(), bytes: 7, blake3: "d".into() };
        Commit {
            policy_version: 3,
            algorithm_state: serde_json::json!({ "lambda": 0.1 + 0.2 }),
            figures: [("loss".to_owned(), 1.0 / 3.0)].into(),
            parts: [("policy".to_owned(), Part { world_size: 2, files: vec![file] })].into(),
            ..Commit::new("train", 20)
        }
    }

    #[test]
    fn cm_3_a_commit_is_read_back_to_the_last_bit() {
        let folder = tempfile::tempdir().unwrap();
        seal(folder.path(), &commit()).unwrap();
        let read = read(folder.path()).unwrap();
        assert_ne!(read.digest, NO_DIGEST);
        assert_eq!(read.algorithm_state["lambda"].as_f64(), Some(0.1 + 0.2));
        assert_eq!(Commit { digest: NO_DIGEST.into(), ..read }, commit());
        assert_eq!(commit().bytes(), 7);
    }

    #[test]
    fn cm_2_any_altered_byte_is_noticed() {
        let folder = tempfile::tempdir().unwrap();
        seal(folder.path(), &commit()).unwrap();
        let path = folder.path().join(COMMIT);
        let whole = std::fs::read(&path).unwrap();
        for at in 0..whole.len() {
            let mut bytes = whole.clone();
            bytes[at] ^= 1;
            std::fs::write(&path, bytes).unwrap();
            let error = read(folder.path()).map(|_| at).unwrap_err().to_string();
            assert!(error.contains(COMMIT), "byte {at}: {error}");
        }
        std::fs::remove_file(&path).unwrap();
        let error = read(folder.path()).unwrap_err().to_string();
        assert!(error.contains("never completed"), "{error}");
    }
}
