//! Reading every byte of a commit.

use std::fs::File;
use std::path::{Path, PathBuf};

use super::CheckpointError;
use super::commit::{Commit, CommittedFile, read};

/// Checks a commit: `commit.json` and every file that it names.
///
/// # Errors
/// Every file that is missing, cut or altered, by name.
pub fn verify(folder: &Path) -> Result<Commit, Vec<CheckpointError>> {
    let commit = read(folder).map_err(|error| vec![error])?;
    let files = commit
        .parts
        .iter()
        .flat_map(|(part, held)| held.files.iter().map(move |file| (folder.join(part), file)));
    let wrong: Vec<_> = files.filter_map(|(part, file)| check(&part, file).err()).collect();
    if wrong.is_empty() { Ok(commit) } else { Err(wrong) }
}

fn check(part: &Path, expected: &CommittedFile) -> Result<(), CheckpointError> {
    let path = part.join(&expected.name);
    let refuse = |problem: String| CheckpointError::new(&path, problem);
    let file = File::open(&path).map_err(|error| match error.kind() {
        std::io::ErrorKind::NotFound => refuse("is missing".to_owned()),
        _ => refuse(format!("cannot be read: {error}")),
    })?;
    let unreadable = |error: std::io::Error| refuse(format!("cannot be read: {error}"));
    let bytes = file.metadata().map_err(unreadable)?.len();
    if bytes != expected.bytes {
        return Err(refuse(format!("has {bytes} bytes, should have {}", expected.bytes)));
    }
    let mut hasher = blake3::Hasher::new();
    hasher.update_reader(file).map_err(unreadable)?;
    let found = hasher.finalize().to_hex();
    if found.as_str() != expected.blake3 {
        return Err(refuse(format!("has BLAKE3 {found}, should have {}", expected.blake3)));
    }
    Ok(())
}

/// The commits that a path means, newest first within a stage: a commit's folder itself, all
/// commits of a stage's folder, or all of a run folder.
///
/// # Errors
/// A path without commits.
pub fn find(path: &Path) -> Result<Vec<PathBuf>, CheckpointError> {
    let path = std::path::absolute(path)
        .map_err(|error| CheckpointError::new(path, format!("cannot be found: {error}")))?;
    let is_commit = |path: &Path| {
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        path.is_dir() && (name.starts_with("step-") || name.starts_with("refused-step-"))
    };
    if is_commit(&path) {
        return Ok(vec![path]);
    }
    let below = |folder: &Path| -> Vec<PathBuf> {
        let entries = std::fs::read_dir(folder).into_iter().flatten();
        let mut paths: Vec<_> = entries.filter_map(|e| e.ok().map(|e| e.path())).collect();
        paths.sort();
        paths
    };
    let commits = |stage: &Path| -> Vec<PathBuf> {
        let mut found: Vec<_> = below(stage).into_iter().filter(|path| is_commit(path)).collect();
        found.reverse();
        found
    };
    let mut found = commits(&path);
    for stages in [path.join("checkpoint"), path.clone()] {
        if found.is_empty() {
            found = below(&stages).iter().flat_map(|stage| commits(stage)).collect();
        }
    }
    match found.is_empty() {
        false => Ok(found),
        true => Err(CheckpointError::new(
            &path,
            "holds no checkpoint; name a run folder, a stage's folder in its checkpoint/, or a \
             step-NNNNNN folder there",
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Part, seal};
    use super::*;

    fn commit(stage: &Path, step: u64) -> PathBuf {
        let folder = stage.join(format!("step-{step:06}"));
        std::fs::create_dir_all(folder.join("policy")).unwrap();
        let contents = b"shard".repeat(100);
        std::fs::write(folder.join("policy/shard-0"), &contents).unwrap();
        let file = CommittedFile {
            name: "shard-0".into(),
            bytes: contents.len() as u64,
            blake3: blake3::hash(&contents).to_hex().to_string(),
        };
        let mut commit = Commit::new("train", step);
        commit.parts.insert("policy".into(), Part { world_size: 1, files: vec![file] });
        seal(&folder, &commit).unwrap();
        folder
    }

    #[test]
    fn what_is_wrong_is_named() {
        let root = tempfile::tempdir().unwrap();
        let folder = commit(root.path(), 2);
        let shard = folder.join("policy/shard-0");
        let whole = std::fs::read(&shard).unwrap();
        assert_eq!(verify(&folder).unwrap().next_step, 2);
        let problem = || {
            let problems = verify(&folder).unwrap_err();
            assert_eq!(problems.len(), 1);
            problems[0].to_string()
        };
        let mut flipped = whole.clone();
        flipped[77] ^= 1;
        std::fs::write(&shard, flipped).unwrap();
        assert!(problem().contains("policy/shard-0: has BLAKE3"), "{}", problem());
        std::fs::write(&shard, &whole[1..]).unwrap();
        assert!(problem().contains("has 499 bytes, should have 500"), "{}", problem());
        std::fs::remove_file(&shard).unwrap();
        assert!(problem().contains("policy/shard-0: is missing"), "{}", problem());
    }

    #[test]
    fn a_path_means_a_commit_a_stage_or_a_run() {
        let root = tempfile::tempdir().unwrap();
        let stage = root.path().join("checkpoint/train");
        let (old, new) = (commit(&stage, 2), commit(&stage, 10));
        for path in [root.path(), &root.path().join("checkpoint"), &stage] {
            assert_eq!(find(path).unwrap(), [new.clone(), old.clone()], "{}", path.display());
        }
        assert_eq!(find(&old).unwrap(), [old]);
        let error = find(&root.path().join("nothing")).unwrap_err().to_string();
        assert!(error.contains("nothing: holds no checkpoint"), "{error}");
    }
}
