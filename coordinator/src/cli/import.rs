//! `plumb import`: the work is `actor-worker`'s, which links libtorch; `plumb` does not.

use std::os::unix::process::CommandExt as _;
use std::process::Command;

use anyhow::{Context as _, bail};

use super::Ended;
use super::args::ImportArgs;

pub(super) fn run(args: &ImportArgs) -> anyhow::Result<Ended> {
    let mut command = worker()?;
    command.arg("import").arg(&args.source).arg(&args.folder);
    if let Some(tokenizer) = &args.tokenizer {
        command.arg("--tokenizer").arg(tokenizer);
    }
    become_it(command)
}

/// `actor-worker` beside this program.
pub(super) fn worker() -> anyhow::Result<Command> {
    let own = std::env::current_exe().context("find this program's own path")?;
    let worker = own.with_file_name("actor-worker");
    if !worker.is_file() {
        bail!("{} is not there; build it with `make build`", worker.display());
    }
    Ok(Command::new(&worker))
}

/// Runs a command in place of this process.
pub(super) fn become_it(mut command: Command) -> anyhow::Result<Ended> {
    let error = command.exec();
    Err(error).with_context(|| format!("start {}", command.get_program().display()))
}
