//! The commits of one stage, and which of them are kept.

use std::path::{Path, PathBuf};

use super::CheckpointError;
use super::commit::{COMMIT, Commit, read};

/// Before the name of a commit that was refused: it is kept until the next commit, to be looked at.
const REFUSED: &str = "refused-";

/// The figure whose best commit is never removed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Best {
    /// Name among [`Commit::figures`].
    pub figure: String,
    /// Whether less is better.
    pub lower: bool,
}

/// A folder of commits.
#[derive(Debug, Clone)]
pub struct Shelf {
    root: PathBuf,
    keep: usize,
    best: Option<Best>,
}

/// A commit whose `commit.json` is sound; its shards have not been looked at.
#[derive(Debug, Clone, PartialEq)]
pub struct Stored {
    /// Its folder.
    pub folder: PathBuf,
    /// What its `commit.json` says.
    pub commit: Commit,
}

impl Shelf {
    /// The commits below `root`; the newest `keep` are kept, and the best.
    #[must_use]
    pub fn new(root: impl Into<PathBuf>, keep: usize, best: Option<Best>) -> Self {
        Self { root: root.into(), keep: keep.max(1), best }
    }

    /// The figure that the best commit is chosen by.
    #[must_use]
    pub fn figure(&self) -> Option<&String> {
        self.best.as_ref().map(|best| &best.figure)
    }

    /// Folder of the commit of the state before `next_step`.
    #[must_use]
    pub fn folder(&self, next_step: u64) -> PathBuf {
        self.root.join(format!("step-{next_step:06}"))
    }

    /// An empty folder for a new commit.
    ///
    /// # Errors
    /// The disk's.
    pub fn make(&self, next_step: u64) -> Result<PathBuf, CheckpointError> {
        let folder = self.folder(next_step);
        remove(&folder)?;
        std::fs::create_dir_all(&folder)
            .map_err(|error| CheckpointError::new(&folder, format!("cannot be made: {error}")))?;
        Ok(folder)
    }

    /// All folders that look like commits, newest first, each with what its `commit.json` says
    /// or why that cannot be trusted. No commits at all are an empty list.
    #[must_use]
    pub fn list(&self) -> Vec<(PathBuf, Result<Commit, CheckpointError>)> {
        let mut folders: Vec<_> = self.entries("step-").collect();
        folders.sort_by_key(|folder| std::cmp::Reverse(step_of(folder)));
        folders.into_iter().map(|folder| (folder.clone(), read(&folder))).collect()
    }

    /// Puts a commit that was refused aside: no resumed run tries it again.
    ///
    /// # Errors
    /// The disk's.
    pub fn refuse(&self, folder: &Path) -> Result<(), CheckpointError> {
        let name = folder.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let aside = folder.with_file_name(format!("{REFUSED}{name}"));
        remove(&aside)?;
        std::fs::rename(folder, &aside)
            .map_err(|error| CheckpointError::new(folder, format!("cannot be put aside: {error}")))
    }

    /// The best of some commits; of equals the newest. `None` where no best is asked for, or no
    /// commit has the figure.
    #[must_use]
    pub fn best<'a>(&self, stored: &'a [Stored]) -> Option<&'a Stored> {
        let best = self.best.as_ref()?;
        let value = |stored: &Stored| {
            let value = stored.commit.figures.get(&best.figure).copied()?;
            value.is_finite().then_some(if best.lower { -value } else { value })
        };
        let valued = stored.iter().filter_map(|stored| Some((value(stored)?, stored)));
        let order = |a: &(f64, &Stored), b: &(f64, &Stored)| {
            a.0.total_cmp(&b.0).then(a.1.commit.next_step.cmp(&b.1.commit.next_step))
        };
        valued.max_by(order).map(|(_, stored)| stored)
    }

    /// Removes all commits but the newest `keep` and the best, those that were put aside, and
    /// what was never completed.
    ///
    /// # Errors
    /// A folder that cannot be removed.
    pub fn prune(&self) -> Result<(), CheckpointError> {
        let mut stored = Vec::new();
        for (folder, commit) in self.list() {
            match commit {
                Ok(commit) => stored.push(Stored { folder, commit }),
                Err(_) => remove(&folder)?,
            }
        }
        let best = self.best(&stored).map(|stored| stored.folder.clone());
        for surplus in stored.iter().skip(self.keep) {
            if best.as_ref() != Some(&surplus.folder) {
                // Without its `commit.json` it is none, also when this process dies half-way.
                remove(&surplus.folder.join(COMMIT))?;
                remove(&surplus.folder)?;
            }
        }
        self.entries(REFUSED).try_for_each(|folder| remove(&folder))
    }

    fn entries<'a>(&self, prefix: &'a str) -> impl Iterator<Item = PathBuf> + use<'a> {
        let entries = std::fs::read_dir(&self.root).into_iter().flatten();
        let paths = entries.filter_map(|entry| entry.ok().map(|entry| entry.path()));
        paths.filter(move |path| {
            path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(prefix))
        })
    }
}

fn step_of(folder: &Path) -> u64 {
    let name = folder.file_name().unwrap_or_default().to_string_lossy().into_owned();
    name.strip_prefix("step-").and_then(|step| step.parse().ok()).unwrap_or(0)
}

/// Removes a file or a folder; one that is not there is no error.
fn remove(path: &Path) -> Result<(), CheckpointError> {
    let done = match std::fs::symlink_metadata(path) {
        Err(_) => return Ok(()),
        Ok(meta) if meta.is_dir() => std::fs::remove_dir_all(path),
        Ok(_) => std::fs::remove_file(path),
    };
    done.map_err(|error| CheckpointError::new(path, format!("cannot be removed: {error}")))
}

#[cfg(test)]
mod tests {
    use super::super::seal;
    use super::*;

    fn shelf(root: &Path, keep: usize, best: Option<(&str, bool)>) -> Shelf {
        Shelf::new(root, keep, best.map(|(name, lower)| Best { figure: name.to_owned(), lower }))
    }

    fn put(shelf: &Shelf, step: u64, loss: Option<f64>) {
        let folder = shelf.make(step).unwrap();
        let figures = loss.map(|loss| ("loss".to_owned(), loss)).into_iter().collect();
        let mut commit = Commit::new("sft", step);
        commit.figures = figures;
        seal(&folder, &commit).unwrap();
    }

    fn steps(shelf: &Shelf) -> Vec<u64> {
        shelf.list().iter().map(|(folder, _)| step_of(folder)).collect()
    }

    #[test]
    fn old_and_uncompleted_commits_go_and_the_newest_stay() {
        let root = tempfile::tempdir().unwrap();
        let two = shelf(root.path(), 2, None);
        assert!(two.list().is_empty());
        [2, 6, 10].into_iter().for_each(|step| put(&two, step, None));
        two.make(4).unwrap();
        put(&two, 12, None);
        two.refuse(&two.folder(12)).unwrap();
        assert_eq!(steps(&two), [10, 6, 4, 2]);
        assert!(root.path().join("refused-step-000012").is_dir());
        two.prune().unwrap();
        assert_eq!(steps(&two), [10, 6]);
        assert_eq!(std::fs::read_dir(root.path()).unwrap().count(), 2);
        // Also above a million steps the newest is the newest.
        put(&two, 1_000_000, None);
        put(&two, 999_999, None);
        assert_eq!(steps(&two), [1_000_000, 999_999, 10, 6]);
    }

    #[test]
    fn the_best_commit_outlives_newer_ones() {
        let root = tempfile::tempdir().unwrap();
        let one = shelf(root.path(), 1, Some(("loss", true)));
        for (step, loss) in [(1, Some(0.5)), (2, Some(0.3)), (3, Some(0.4)), (4, None)] {
            put(&one, step, loss);
            one.prune().unwrap();
        }
        assert_eq!(steps(&one), [4, 2]);
        let most = shelf(root.path(), 1, Some(("loss", false)));
        put(&most, 5, Some(0.3));
        let stored: Vec<_> = most
            .list()
            .into_iter()
            .map(|(folder, commit)| Stored { folder, commit: commit.unwrap() })
            .collect();
        assert_eq!(most.best(&stored).unwrap().commit.next_step, 5, "of equals the newest");
    }
}
