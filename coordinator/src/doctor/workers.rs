//! The worker binaries: whether each is there, starts, and is of this version.

use std::path::Path;
use std::process::Command;

use super::Finding;

const BINARIES: [&str; 3] = ["actor-worker", "rollout-worker", "reward-worker"];

pub(super) fn examine(folder: &Path) -> Vec<Finding> {
    BINARIES.iter().map(|name| judge(name, &folder.join(name))).collect()
}

/// Asking for the version loads libtorch, so a missing library shows here.
fn judge(name: &str, path: &Path) -> Finding {
    let rebuild = "build it with `make build`, or start plumb from the folder that has it";
    if !path.is_file() {
        return Finding::fail("workers", format!("{} is not there", path.display()), rebuild);
    }
    let output = match Command::new(path).arg("--version").output() {
        Ok(output) => output,
        Err(error) => {
            return Finding::fail("workers", format!("{}: {error}", path.display()), rebuild);
        }
    };
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim().to_owned();
    if !output.status.success() {
        return Finding::fail(
            "workers",
            format!("{name} does not start: {}", text(&output.stderr)),
            "run `make setup build`: it needs libtorch 2.11 where it was built with it",
        );
    }
    let version = text(&output.stdout);
    let own = env!("CARGO_PKG_VERSION");
    if version.split_whitespace().last() != Some(own) {
        return Finding::fail(
            "workers",
            format!("{version}, but plumb is {own}"),
            "build all binaries from one checkout (`make build`)",
        );
    }
    Finding::ok("workers", version)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;
    use crate::doctor::Health;

    #[test]
    fn a_worker_must_be_there_start_and_be_of_this_version() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("actor-worker");
        assert!(judge("actor-worker", &path).found.ends_with("is not there"));
        let script = |body: &str| {
            std::fs::write(&path, format!("#!/bin/sh\n{body}\n")).unwrap();
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
            judge("actor-worker", &path)
        };
        let broken = script("echo 'libtorch_cpu.so: cannot open' >&2; exit 127");
        assert!(broken.found.ends_with("libtorch_cpu.so: cannot open"), "{broken:?}");
        let other = script("echo actor-worker 0.0.1-other");
        assert!(other.found.starts_with("actor-worker 0.0.1-other, but plumb is"), "{other:?}");
        let right = script(&format!("echo actor-worker {}", env!("CARGO_PKG_VERSION")));
        assert_eq!(right.health, Health::Ok);
    }
}
