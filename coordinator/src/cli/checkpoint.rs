//! `plumb checkpoint ls|verify|rm`.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use serde::Serialize;

use super::Ended;
use super::args::CheckpointCommand;
use super::table::align;
use crate::checkpoint::{COMMIT, CheckpointError, Commit, find, read, verify};
use crate::job::folder::RunFolder;
use crate::report::figure;

/// Figures shown in the table; all are in the JSON.
const SHOWN_FIGURES: usize = 2;

/// One checkpoint as it is listed.
#[derive(Debug, Serialize)]
struct Row {
    stage: String,
    /// Steps that it holds.
    step: Option<u64>,
    folder: PathBuf,
    /// Group -> ranks that wrote it.
    ranks: std::collections::BTreeMap<String, usize>,
    bytes: u64,
    figures: std::collections::BTreeMap<String, f64>,
    /// Empty for a sound one.
    problems: Vec<String>,
}

pub(super) fn run(command: &CheckpointCommand) -> anyhow::Result<Ended> {
    match command {
        CheckpointCommand::Ls { path, json } => {
            let list = |folder: &Path| read(folder).map_err(|error| vec![error]);
            print!("{}", shown(&rows(path, list)?, *json, "complete")?);
            Ok(Ended::Well)
        }
        CheckpointCommand::Verify { path, json } => {
            let rows = rows(path, verify)?;
            print!("{}", shown(&rows, *json, "sound")?);
            let damaged = rows.iter().filter(|row| !row.problems.is_empty()).count();
            match damaged {
                0 => Ok(Ended::Well),
                _ => bail!("{damaged} of {} checkpoints are damaged", rows.len()),
            }
        }
        CheckpointCommand::Rm { path, force } => remove(path, *force),
    }
}

fn rows(
    path: &Path,
    look: impl Fn(&Path) -> Result<Commit, Vec<CheckpointError>>,
) -> anyhow::Result<Vec<Row>> {
    let rows = find(path)?.into_iter().map(|folder| {
        let stage = folder.parent().and_then(Path::file_name).unwrap_or_default();
        let stage = stage.to_string_lossy().into_owned();
        // What `commit.json` says is shown of a damaged one, too.
        let said = read(&folder).ok();
        let problems = look(&folder).err().unwrap_or_default();
        Row {
            stage,
            step: said.as_ref().map(|commit| commit.next_step),
            ranks: said
                .iter()
                .flat_map(|c| &c.parts)
                .map(|(k, p)| (k.clone(), p.world_size))
                .collect(),
            bytes: said.as_ref().map_or(0, Commit::bytes),
            figures: said.map(|commit| commit.figures).unwrap_or_default(),
            problems: problems.iter().map(ToString::to_string).collect(),
            folder,
        }
    });
    Ok(rows.collect())
}

fn shown(rows: &[Row], json: bool, good: &str) -> anyhow::Result<String> {
    if json {
        return Ok(serde_json::to_string_pretty(rows)? + "\n");
    }
    let mut table = vec![["checkpoint", "step", "ranks", "MiB", "figures", ""].map(str::to_owned)];
    for row in rows {
        let name = row.folder.file_name().unwrap_or_default().to_string_lossy();
        let ranks: Vec<_> = row.ranks.iter().map(|(group, n)| format!("{group} {n}")).collect();
        table.push([
            format!("{}/{name}", row.stage),
            row.step.map_or_else(|| "?".to_owned(), |step| step.to_string()),
            ranks.join(", "),
            format!("{:.1}", row.bytes as f64 / f64::from(1 << 20)),
            figures(row),
            if row.problems.is_empty() { good } else { "damaged" }.to_owned(),
        ]);
    }
    let mut text = align(&table);
    for problem in rows.iter().flat_map(|row| &row.problems) {
        text.push_str(problem);
        text.push('\n');
    }
    Ok(text)
}

/// Held-out figures first, then losses and rewards.
fn figures(row: &Row) -> String {
    let rank = |name: &str| match name {
        _ if name.starts_with("heldout_") => 0,
        _ if name.contains("loss") || name.starts_with("reward") => 1,
        _ => 2,
    };
    let mut names: Vec<_> = row.figures.iter().filter(|(name, _)| rank(name) < 2).collect();
    names.sort_by_key(|(name, _)| rank(name));
    let shown = names.iter().take(SHOWN_FIGURES);
    let shown: Vec<_> = shown.map(|(name, value)| format!("{name} {}", figure(**value))).collect();
    shown.join(", ")
}

fn remove(paths: &[PathBuf], force: bool) -> anyhow::Result<Ended> {
    let mut folders = Vec::new();
    for path in paths {
        match find(path)?.as_slice() {
            [folder] if folder.file_name() == path.file_name() => folders.push(folder.clone()),
            _ => {
                bail!("{} is a folder of checkpoints; name the step-NNNNNN folders", path.display())
            }
        }
    }
    for folder in &folders {
        let stage = folder.parent().context("a checkpoint lies in a stage's folder")?;
        let _lock = lock(stage)?;
        let is_other = |other: &PathBuf| !folders.contains(other);
        let others = find(stage)?;
        let another = others.iter().filter(|other| is_other(other)).any(|o| verify(o).is_ok());
        if !force && !another && verify(folder).is_ok() {
            bail!(
                "{} is the only sound checkpoint of its stage: the run could not be resumed without \
                 it; --force removes it all the same",
                folder.display()
            );
        }
        // Without its `commit.json` it is none, also if this process dies half-way.
        let commit = folder.join(COMMIT);
        if commit.exists() {
            std::fs::remove_file(&commit)
                .with_context(|| format!("remove {}", commit.display()))?;
        }
        std::fs::remove_dir_all(folder).with_context(|| format!("remove {}", folder.display()))?;
        println!("removed {}", folder.display());
    }
    Ok(Ended::Well)
}

/// Takes the lock of the run folder that a stage's checkpoints lie in, if they do.
fn lock(stage: &Path) -> anyhow::Result<Option<RunFolder>> {
    let run = stage.parent().and_then(Path::parent).filter(|run| run.join("lock").is_file());
    Ok(run.map(RunFolder::open).transpose()?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checkpoint::{Part, seal};

    fn commit(run: &Path, step: u64) -> PathBuf {
        let folder = run.join(format!("checkpoint/sft/step-{step:06}"));
        std::fs::create_dir_all(&folder).unwrap();
        let mut commit = Commit::new("sft", step);
        commit.figures = [("heldout_loss".to_owned(), 0.5), ("seconds".to_owned(), 1.0)].into();
        commit.parts.insert("policy".into(), Part { world_size: 2, files: vec![] });
        seal(&folder, &commit).unwrap();
        folder
    }

    #[test]
    fn a_listing_names_damage_and_keeps_the_rest() {
        let run = tempfile::tempdir().unwrap();
        let old = commit(run.path(), 4);
        commit(run.path(), 8);
        std::fs::write(old.join(COMMIT), "{").unwrap();
        let rows = rows(run.path(), verify).unwrap();
        let text = shown(&rows, false, "sound").unwrap();
        let lines: Vec<_> = text.lines().collect();
        assert!(lines[1].starts_with("sft/step-000008") && lines[1].ends_with("sound"), "{text}");
        assert!(lines[1].contains("policy 2") && lines[1].contains("heldout_loss 0.5"), "{text}");
        assert!(lines[2].ends_with("damaged"), "{text}");
        assert!(lines[3].contains("step-000004/commit.json: is not valid"), "{text}");
        let json: serde_json::Value =
            serde_json::from_str(&shown(&rows, true, "sound").unwrap()).unwrap();
        assert_eq!(json[0]["step"], 8);
        assert_eq!(json[1]["problems"].as_array().unwrap().len(), 1);
    }

    #[test]
    fn the_only_sound_checkpoint_is_removed_by_force_only() {
        let run = tempfile::tempdir().unwrap();
        let (old, new) = (commit(run.path(), 4), commit(run.path(), 8));
        std::fs::write(old.join(COMMIT), "{").unwrap();
        let error = remove(std::slice::from_ref(&new), false).err().unwrap().to_string();
        assert!(error.contains("only sound checkpoint") && error.contains("--force"), "{error}");
        remove(std::slice::from_ref(&old), false).unwrap();
        assert!(!old.exists() && new.exists());
        let error = remove(&[run.path().to_owned()], true).err().unwrap().to_string();
        assert!(error.contains("name the step-NNNNNN folders"), "{error}");
        remove(std::slice::from_ref(&new), true).unwrap();
        assert!(!new.exists());
    }

    #[test]
    fn nothing_is_removed_under_a_running_job() {
        let root = tempfile::tempdir().unwrap();
        let run = RunFolder::open(root.path()).unwrap();
        commit(root.path(), 4);
        let new = commit(root.path(), 8);
        let error = remove(std::slice::from_ref(&new), false).err().unwrap().to_string();
        assert!(error.contains("is in use by another job"), "{error}");
        drop(run);
        remove(std::slice::from_ref(&new), false).unwrap();
        assert!(!new.exists());
    }
}
