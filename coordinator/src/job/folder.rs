//! The run folder: what lies where, one job at a time, nothing half-written.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};

use nix::fcntl::{Flock, FlockArg};

use super::error::JobError;
use crate::checkpoint::COMMIT;

/// Log of the coordinator that `plumb train` starts, in `logs/`.
pub const COORDINATOR_LOG: &str = "coordinator.log";
/// Log of the agent that `plumb train` starts, in `logs/`.
pub const AGENT_LOG: &str = "agent.log";

/// A run folder that this process holds the lock of.
#[derive(Debug)]
pub struct RunFolder {
    root: PathBuf,
    // Held, not read: the lock goes when the job does, also when its process is killed.
    _lock: Flock<File>,
}

impl RunFolder {
    /// Creates the folder and takes its lock.
    ///
    /// # Errors
    /// Another job runs there, or the folder cannot be made.
    pub fn open(root: &Path) -> Result<Self, JobError> {
        let io = |path: &Path| {
            let path = path.to_owned();
            move |source| JobError::Io { what: "made", path, source }
        };
        for folder in ["", "samples", "logs", "stages"].map(|name| root.join(name)) {
            std::fs::create_dir_all(&folder).map_err(io(&folder))?;
        }
        let root = root.canonicalize().map_err(io(root))?;
        let path = root.join("lock");
        let file = OpenOptions::new()
            .create(true)
            .truncate(false)
            .read(true)
            .write(true)
            .open(&path)
            .map_err(io(&path))?;
        match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(lock) => {
                let mut file: &File = &lock;
                let _ = file.set_len(0).and_then(|()| writeln!(file, "{}", std::process::id()));
                Ok(Self { root, _lock: lock })
            }
            Err(_) => {
                let holder = std::fs::read_to_string(&path).unwrap_or_default();
                Err(JobError::FolderInUse { path: root, holder: holder.trim().to_owned() })
            }
        }
    }

    /// Removes what an earlier job left, so that no figure of it is taken for this one's. Only
    /// names that a job writes are touched.
    ///
    /// # Errors
    /// A file that cannot be removed.
    pub fn clear(&self) -> Result<(), JobError> {
        for name in [
            "metrics.jsonl",
            "report.html",
            "summary.json",
            "recipe.toml",
            "samples",
            "pairs",
            "models",
            "checkpoint",
            "export",
            "adapter",
            "stages",
        ] {
            let path = self.root.join(name);
            remove(&path)?;
        }
        // The coordinator and the agent of `plumb train` write theirs already.
        let kept = |name: &str| name == COORDINATOR_LOG || name == AGENT_LOG;
        for path in entries(&self.root.join("logs")) {
            if !path.file_name().is_some_and(|name| kept(&name.to_string_lossy())) {
                remove(&path)?;
            }
        }
        for path in ["samples", "stages"].map(|name| self.root.join(name)) {
            std::fs::create_dir_all(&path).map_err(|source| JobError::Io {
                what: "made",
                path,
                source,
            })?;
        }
        Ok(())
    }

    /// Removes what a job that did not end well left half-written: temporary names, up to two
    /// folders deep, and commits that were never completed.
    pub fn sweep(&self) {
        let mut folders = vec![self.root.clone()];
        folders.extend(["models", "samples", "stages"].map(|name| self.root.join(name)));
        let temporary = |path: &PathBuf| {
            let name = path.file_name().map(|n| n.to_string_lossy().into_owned());
            name.is_some_and(|n| n.ends_with(".partial") || n.ends_with(".tmp"))
        };
        let torn = folders.iter().flat_map(|folder| entries(folder)).filter(temporary);
        let stages = entries(&self.root.join("checkpoint"));
        let commits = stages.iter().flat_map(|stage| entries(stage));
        let uncommitted = commits.filter(|commit| !commit.join(COMMIT).is_file());
        for path in torn.chain(uncommitted) {
            if let Err(error) = remove(&path) {
                tracing::warn!(error = %super::error::chain(&error), "half-written file left");
            }
        }
    }

    /// The folder itself.
    #[must_use]
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// A path inside the folder.
    #[must_use]
    pub fn path(&self, name: &str) -> PathBuf {
        self.root.join(name)
    }

    /// `samples/<name>.jsonl`.
    #[must_use]
    pub fn samples(&self, name: &str) -> PathBuf {
        self.root.join("samples").join(format!("{name}.jsonl"))
    }

    /// Folder of a trained reward model.
    #[must_use]
    pub fn model(&self, stage: &str) -> PathBuf {
        self.root.join("models").join(stage)
    }

    /// What a finished stage has left, `stages/<stage>.json`.
    #[must_use]
    pub fn record(&self, stage: &str) -> PathBuf {
        self.root.join("stages").join(format!("{stage}.json"))
    }

    /// Folder of a stage's commits.
    #[must_use]
    pub fn checkpoints(&self, stage: &str) -> PathBuf {
        self.root.join("checkpoint").join(stage)
    }

    /// Bytes that may still be written to the folder's file system.
    ///
    /// # Errors
    /// The file system does not say.
    pub fn free_bytes(&self) -> Result<u64, JobError> {
        let stat = nix::sys::statvfs::statvfs(&self.root).map_err(|errno| JobError::Io {
            what: "asked for its free space",
            path: self.root.clone(),
            source: errno.into(),
        })?;
        Ok(stat.blocks_available() as u64 * stat.fragment_size() as u64)
    }
}

fn entries(folder: &Path) -> Vec<PathBuf> {
    let Ok(entries) = std::fs::read_dir(folder) else { return Vec::new() };
    entries.filter_map(|entry| entry.ok().map(|e| e.path())).collect()
}

/// Removes a file or folder; one that is not there is no error.
fn remove(path: &Path) -> Result<(), JobError> {
    let done = match std::fs::symlink_metadata(path) {
        Err(_) => return Ok(()),
        Ok(meta) if meta.is_dir() => std::fs::remove_dir_all(path),
        Ok(_) => std::fs::remove_file(path),
    };
    done.map_err(|source| JobError::Io { what: "removed", path: path.to_owned(), source })
}

/// Writes a whole file or nothing: to a temporary name, to the disk, then to its place.
///
/// # Errors
/// The disk's, with the file's name; the temporary file is removed.
pub fn write_whole(path: &Path, bytes: &[u8]) -> Result<(), JobError> {
    let mut temporary = path.as_os_str().to_owned();
    temporary.push(".tmp");
    let temporary = PathBuf::from(temporary);
    let write = || -> std::io::Result<()> {
        let mut file = File::create(&temporary)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        std::fs::rename(&temporary, path)
    };
    write().map_err(|source| {
        let _ = std::fs::remove_file(&temporary);
        JobError::Io { what: "written", path: path.to_owned(), source }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_job_in_the_same_folder_is_refused_by_name() {
        let root = tempfile::tempdir().unwrap();
        let first = RunFolder::open(root.path()).unwrap();
        let error = RunFolder::open(root.path()).unwrap_err().to_string();
        assert!(error.contains("is in use by another job"), "{error}");
        assert!(error.contains(&std::process::id().to_string()), "{error}");
        drop(first);
        RunFolder::open(root.path()).unwrap();
    }

    #[test]
    fn clearing_takes_only_what_a_job_writes() {
        let root = tempfile::tempdir().unwrap();
        let folder = RunFolder::open(root.path()).unwrap();
        std::fs::write(folder.path("summary.json"), "{}").unwrap();
        std::fs::write(folder.path("notes.txt"), "mine").unwrap();
        folder.clear().unwrap();
        assert!(!folder.path("summary.json").exists());
        assert!(folder.path("notes.txt").exists());
        assert!(folder.path("samples").is_dir());
    }

    #[test]
    fn sweeping_takes_half_written_names_only() {
        let root = tempfile::tempdir().unwrap();
        let folder = RunFolder::open(root.path()).unwrap();
        std::fs::create_dir_all(folder.path("checkpoint/sft/step-000001/policy.partial")).unwrap();
        std::fs::create_dir_all(folder.path("checkpoint/sft/step-000002/policy")).unwrap();
        std::fs::write(folder.path("checkpoint/sft/step-000002/commit.json"), "x").unwrap();
        std::fs::write(folder.path("report.html.tmp"), "x").unwrap();
        folder.sweep();
        assert!(!folder.path("checkpoint/sft/step-000001").exists());
        assert!(folder.path("checkpoint/sft/step-000002/policy").exists());
        assert!(!folder.path("report.html.tmp").exists());
    }

    #[test]
    fn a_file_is_written_whole_or_not_at_all() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("summary.json");
        write_whole(&path, b"one").unwrap();
        write_whole(&path, b"two").unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"two");
        let missing = root.path().join("no/summary.json");
        let error = write_whole(&missing, b"x").unwrap_err().to_string();
        assert!(error.contains("no/summary.json"), "{error}");
        assert_eq!(std::fs::read_dir(root.path()).unwrap().count(), 1);
    }
}
