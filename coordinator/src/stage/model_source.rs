//! Where the models that a recipe names are.

use std::path::{Path, PathBuf};
use std::process::Stdio;

use tokio::process::Command;

use super::StageContext;
use crate::job::error::JobError;

/// Folder of a component's model: what a stage trained, or a folder of the recipe.
pub(super) fn component_path(context: &StageContext, name: &str) -> PathBuf {
    match name.strip_prefix("stage:") {
        Some(stage) => context.folder.model(stage),
        None => context.base_dir.join(name),
    }
}

/// Checks a model folder (or fetches a hub id) and returns the folder. The check is
/// `actor-worker inspect`'s, which reads every header that a worker would read later.
///
/// # Errors
/// What is missing or broken, by file.
pub(super) async fn check(
    context: &StageContext,
    key: &str,
    name: &str,
) -> Result<PathBuf, JobError> {
    let wrong = |problem: String, fix: &str| JobError::Input {
        what: format!("{key} = {name:?}"),
        problem,
        fix: fix.to_owned(),
    };
    let folder = context.base_dir.join(name);
    let worker = worker_program(&wrong)?;
    if !folder.is_dir() {
        return fetch(&worker, name, &folder, &wrong).await;
    }
    let output = Command::new(&worker)
        .arg("inspect")
        .arg(&folder)
        .stdin(Stdio::null())
        .output()
        .await
        .map_err(|e| wrong(format!("{} cannot be started: {e}", worker.display()), "build it"))?;
    if output.status.success() {
        return Ok(folder.canonicalize().unwrap_or(folder));
    }
    let cause = last_words(&output.stderr);
    Err(wrong(cause, "give a complete Hugging Face folder, for example from `plumb import`"))
}

/// Fetches a hub id.
async fn fetch(
    worker: &Path,
    name: &str,
    folder: &Path,
    wrong: &impl Fn(String, &str) -> JobError,
) -> Result<PathBuf, JobError> {
    let missing = || format!("there is no folder {}", folder.display());
    let parts: Vec<&str> = name.split('/').collect();
    let is_id = parts.len() == 2 && parts.iter().all(|p| !p.is_empty() && !p.starts_with('.'));
    if !is_id {
        return Err(wrong(missing(), "name a Hugging Face folder, or a hub id such as org/name"));
    }
    let output =
        Command::new(worker).args(["fetch", name]).stdin(Stdio::null()).output().await.map_err(
            |e| wrong(format!("{} cannot be started: {e}", worker.display()), "build it"),
        )?;
    if !output.status.success() {
        let cause = last_words(&output.stderr);
        return Err(wrong(
            format!("{}, and the hub did not give it: {cause}", missing()),
            "name a folder, or try again where the hub can be reached",
        ));
    }
    Ok(PathBuf::from(String::from_utf8_lossy(&output.stdout).trim()))
}

fn worker_program(wrong: &impl Fn(String, &str) -> JobError) -> Result<PathBuf, JobError> {
    let own = std::env::current_exe().map_err(|e| {
        wrong(format!("this program's own path is not known: {e}"), "start it anew")
    })?;
    let worker = own.with_file_name("actor-worker");
    if worker.is_file() {
        return Ok(worker);
    }
    Err(wrong(format!("{} is not there", worker.display()), "build all programs with `make build`"))
}

/// The last line that a program wrote before it failed, without its `error:`.
fn last_words(stderr: &[u8]) -> String {
    let text = String::from_utf8_lossy(stderr);
    let line = text.lines().rev().find(|l| !l.trim().is_empty()).unwrap_or("no reason was given");
    line.trim().trim_start_matches("actor-worker: ").trim_start_matches("error: ").to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_line_says_why() {
        assert_eq!(
            last_words(b"warn: x\nactor-worker: model.safetensors is cut off\n\n"),
            "model.safetensors is cut off"
        );
        assert_eq!(last_words(b""), "no reason was given");
    }
}
