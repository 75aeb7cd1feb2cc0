//! `plumb export`: the work is `actor-worker`'s, which links libtorch; `plumb` does not.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};

use super::Ended;
use super::args::ExportArgs;
use super::import::{become_it, worker};
use crate::checkpoint::{Commit, find, read, verify};

pub(super) fn run(args: &ExportArgs) -> anyhow::Result<Ended> {
    let (folder, commit) = newest(&args.checkpoint)?;
    let part = part(&folder, &commit, args.part.as_deref())?;
    let mut command = worker()?;
    command.arg("export").arg(part).arg(&args.folder).arg("--dtype").arg(&args.dtype);
    for (flag, given) in [("--adapter", args.adapter), ("--average", args.average)] {
        if given {
            command.arg(flag);
        }
    }
    if let Some(base) = &args.base {
        command.arg("--base").arg(base);
    }
    become_it(command)
}

/// The commit that a path means: itself, or the newest sound one of the only stage.
fn newest(path: &Path) -> anyhow::Result<(PathBuf, Commit)> {
    let folders = find(path)?;
    let stages: BTreeSet<_> = folders.iter().filter_map(|folder| folder.parent()).collect();
    if stages.len() > 1 {
        let stages: Vec<_> = stages.iter().map(|stage| stage.display().to_string()).collect();
        bail!(
            "{} has checkpoints of several stages; name one: {}",
            path.display(),
            stages.join(", ")
        );
    }
    if let [folder] = folders.as_slice() {
        // Its shards are verified while they are read.
        return Ok((folder.clone(), read(folder)?));
    }
    let mut problems = Vec::new();
    for folder in folders {
        match verify(&folder) {
            Ok(commit) => return Ok((folder, commit)),
            Err(wrong) => problems.extend(wrong.iter().map(ToString::to_string)),
        }
    }
    bail!("no checkpoint in {} is sound: {}", path.display(), problems.join("; "))
}

/// Folder of the group's shards.
fn part(folder: &Path, commit: &Commit, asked: Option<&str>) -> anyhow::Result<PathBuf> {
    let mut names = commit.parts.keys().map(String::as_str);
    let only = names.next().filter(|_| commit.parts.len() == 1);
    let name = asked.or(only).unwrap_or("policy");
    commit.parts.get(name).with_context(|| {
        let known: Vec<_> = commit.parts.keys().map(String::as_str).collect();
        format!("{} holds no {name:?}, but {}; give --part", folder.display(), known.join(", "))
    })?;
    Ok(folder.join(name))
}
