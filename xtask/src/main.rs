//! Tasks of the repository: `cargo xtask check-layers`.

mod layers;

use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::{Parser, Subcommand};

#[derive(Parser)]
#[command(about = "Tasks of the repository")]
struct Arguments {
    #[command(subcommand)]
    task: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Check who imports whom against the table of ARCHITECTURE.md.
    CheckLayers,
}

#[allow(clippy::print_stdout, clippy::print_stderr, reason = "a command-line tool prints")]
fn main() -> Result<ExitCode> {
    match Arguments::parse().task {
        Task::CheckLayers => {
            let metadata =
                cargo_metadata::MetadataCommand::new().exec().context("cargo metadata failed")?;
            let imports = layers::imports(&metadata);
            let breaches = layers::breaches(&imports);
            for breach in &breaches {
                eprintln!("error: {breach}");
            }
            if breaches.is_empty() {
                println!("layers: {} packages keep to the table", imports.len());
                return Ok(ExitCode::SUCCESS);
            }
            Ok(ExitCode::FAILURE)
        }
    }
}
