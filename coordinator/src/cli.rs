//! The `plumb` command.
// Printing is what a command line is for.
#![allow(clippy::print_stdout, clippy::print_stderr)]

mod args;
mod checkpoint;
mod doctor;
mod explain;
mod export;
mod follow;
mod import;
mod progress;
mod serve;
mod submit;
mod table;
mod train;

use std::process::ExitCode;

use clap::Parser as _;

use args::{Args, Command};

/// Exit code of a job that was cancelled, as shells have it for an interrupt.
const CANCELLED: u8 = 130;

/// How a command ended.
enum Ended {
    /// As it should.
    Well,
    /// The user stopped it.
    Cancelled,
}

/// Runs the command line; an error is printed once, with its causes.
#[must_use]
pub fn main() -> ExitCode {
    let args = Args::parse();
    let format = if args.log_json {
        plumb_telemetry::log::Format::Json
    } else {
        plumb_telemetry::log::Format::Text
    };
    let default = if args.command.is_service() { "info" } else { "warn" };
    if let Err(error) = plumb_telemetry::log::to_stderr(default, format) {
        eprintln!("error: {error}");
        return ExitCode::FAILURE;
    }
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("error: the async runtime cannot start: {error}");
            return ExitCode::FAILURE;
        }
    };
    match runtime.block_on(run(args.command)) {
        Ok(Ended::Well) => ExitCode::SUCCESS,
        Ok(Ended::Cancelled) => ExitCode::from(CANCELLED),
        Err(error) => {
            eprintln!("error: {}", crate::job::error::chain(error.as_ref()));
            ExitCode::FAILURE
        }
    }
}

async fn run(command: Command) -> anyhow::Result<Ended> {
    match command {
        Command::Train(args) => train::run(args).await,
        Command::Coordinator(args) => serve::coordinator(args).await,
        Command::Agent(args) => serve::agent(args).await,
        Command::Submit(args) => submit::run(args).await,
        Command::Nodes(args) => submit::nodes(args).await,
        Command::Explain(args) => explain::run(&args),
        Command::Doctor(args) => doctor::run(&args),
        Command::Import(args) => import::run(&args),
        Command::Checkpoint(command) => checkpoint::run(&command),
        Command::Export(args) => export::run(&args),
        Command::Version => {
            println!("plumb {}", env!("CARGO_PKG_VERSION"));
            Ok(Ended::Well)
        }
    }
}
