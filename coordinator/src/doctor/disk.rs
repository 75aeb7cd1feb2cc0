//! Where runs are written: room, rights, speed, and whether it outlives a restart.

use std::fs::File;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::{Finding, gib};

/// Less room than this does not hold a few checkpoints of even a small model.
const LITTLE_ROOM_BYTES: u64 = 2 << 30;
/// What is written to see how fast the disk is.
const PROBE_BYTES: usize = 4 << 20;
/// A checkpoint waits for the disk; slower than this, every one is felt.
const SLOW_PROBE: Duration = Duration::from_secs(1);

/// Room of a file system.
pub(super) struct Space {
    pub(super) total: u64,
    pub(super) free: u64,
}

pub(super) fn space(path: &Path) -> Option<Space> {
    let stat = nix::sys::statvfs::statvfs(path).ok()?;
    let unit = stat.fragment_size() as u64;
    Some(Space { total: stat.blocks() as u64 * unit, free: stat.blocks_available() as u64 * unit })
}

pub(super) fn examine(run_dir: &Path) -> Vec<Finding> {
    let folder = existing(run_dir);
    let mut findings = vec![room(&folder, space(&folder)), writable(&folder, probe(&folder))];
    let in_memory = nix::sys::statfs::statfs(&folder)
        .is_ok_and(|stat| stat.filesystem_type() == nix::sys::statfs::TMPFS_MAGIC);
    if in_memory {
        findings.push(Finding::warn(
            "disk kind",
            format!("{} is in memory (tmpfs)", folder.display()),
            "name a run folder on a disk (--run-dir): checkpoints here take memory and are gone \
             after a restart",
        ));
    }
    findings
}

/// The folder itself, or the nearest one above it that is there.
fn existing(path: &Path) -> PathBuf {
    let absolute = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
    absolute.ancestors().find(|above| above.is_dir()).unwrap_or(Path::new("/")).to_owned()
}

fn room(folder: &Path, space: Option<Space>) -> Finding {
    let fix = "make room, or name another run folder (--run-dir); a checkpoint takes about 16 \
               bytes a parameter";
    match space {
        None => Finding::warn("disk room", format!("unknown for {}", folder.display()), fix),
        Some(Space { total, free }) => {
            let found = format!("{} free of {} at {}", gib(free), gib(total), folder.display());
            match free {
                free if free < LITTLE_ROOM_BYTES => Finding::warn("disk room", found, fix),
                _ => Finding::ok("disk room", found),
            }
        }
    }
}

/// Writes a file and waits until it is on the disk.
fn probe(folder: &Path) -> std::io::Result<Duration> {
    let path = folder.join(format!(".plumb-doctor-{}.tmp", std::process::id()));
    let start = Instant::now();
    let write = || {
        let mut file = File::create_new(&path)?;
        file.write_all(&vec![0x5a; PROBE_BYTES])?;
        file.sync_all()
    };
    let written = write().map(|()| start.elapsed());
    let removed = std::fs::remove_file(&path);
    written.and_then(|took| removed.map(|()| took))
}

fn writable(folder: &Path, probe: std::io::Result<Duration>) -> Finding {
    match probe {
        Err(error) => Finding::fail(
            "disk writes",
            format!("{}: {error}", folder.display()),
            "name a run folder that this user may write to (--run-dir)",
        ),
        Ok(took) => {
            let rate = PROBE_BYTES as f64 / took.as_secs_f64().max(1e-6) / f64::from(1 << 20);
            let found = format!("4 MiB safe on the disk in {took:.0?} ({rate:.0} MiB/s)");
            if took > SLOW_PROBE {
                let fix = "use a faster disk for the run folder, or fewer checkpoints \
                           (checkpoint.every_steps)";
                return Finding::warn("disk writes", found, fix);
            }
            Finding::ok("disk writes", found)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::Health;

    #[test]
    fn a_folder_that_is_not_there_yet_is_judged_by_the_one_above() {
        let root = tempfile::tempdir().unwrap();
        let inner = root.path().join("a/b/c");
        assert_eq!(existing(&inner), root.path());
        let findings = examine(&inner);
        assert!(findings.iter().all(|f| f.health != Health::Fail), "{findings:?}");
        assert_eq!(std::fs::read_dir(root.path()).unwrap().count(), 0, "nothing is left behind");
    }

    #[test]
    fn room_and_speed_are_judged() {
        let folder = Path::new("/runs");
        let little = Some(Space { total: 1 << 40, free: 1 << 30 });
        assert_eq!(room(folder, little).found, "1.0 GiB free of 1024.0 GiB at /runs");
        assert_eq!(room(folder, Some(Space { total: 1 << 40, free: 1 << 35 })).health, Health::Ok);
        assert_eq!(writable(folder, Ok(Duration::from_millis(20))).health, Health::Ok);
        assert_eq!(writable(folder, Ok(Duration::from_secs(4))).health, Health::Warn);
        let denied = writable(folder, Err(std::io::ErrorKind::PermissionDenied.into()));
        assert_eq!(denied.health, Health::Fail);
    }
}
