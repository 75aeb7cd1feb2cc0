//! How long the advantages of a big batch take, next to one pass over the memory that they read
//! and write. Both are measured in the same run, in turn, and the shortest of several is taken, so
//! that the ratio hangs on the machine and on its other work as little as may be.

mod batch;
mod operation;

use std::hint::black_box;
use std::io::Write;
use std::process::ExitCode;
use std::time::Instant;

use anyhow::{Context, Result};
use clap::Parser;

use batch::{Batch, Layout};
use operation::{OPERATIONS, Operation};

/// Measures the batched advantages of plumb-algo against one pass over memory.
#[derive(Debug, Parser)]
struct Arguments {
    /// Prompts.
    #[arg(long, default_value_t = 1024, value_parser = clap::value_parser!(u32).range(1..))]
    prompts: u32,
    /// Samples of a prompt, at least two.
    #[arg(long, default_value_t = 16, value_parser = clap::value_parser!(u32).range(2..))]
    samples: u32,
    /// Tokens of a sample. An entry takes 17 bytes: 2.3 GB at the default size.
    #[arg(long, default_value_t = 8192, value_parser = clap::value_parser!(u32).range(1..))]
    tokens: u32,
    /// Which tokens the masks keep; both in turn when left out.
    #[arg(long)]
    mask: Option<Layout>,
    /// Only operations whose name holds this.
    #[arg(long, default_value = "")]
    only: String,
    /// Times that each is measured.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..))]
    rounds: u32,
    /// Exit with 1 when an operation takes over `--limit` passes, or allocates as often as samples.
    #[arg(long)]
    check: bool,
    /// Passes over memory that an operation may take.
    #[arg(long, default_value_t = 2.0)]
    limit: f64,
}

/// The least of several measurements.
struct Measured {
    pass_secs: f64,
    run_secs: f64,
    allocations: u64,
}

impl Measured {
    fn ratio(&self) -> f64 {
        self.run_secs / self.pass_secs
    }
}

fn main() -> Result<ExitCode> {
    let arguments = Arguments::parse();
    let mut out = std::io::stdout().lock();
    let layouts = match arguments.mask {
        Some(layout) => vec![layout],
        None => vec![Layout::Padded, Layout::Turns],
    };
    let samples = u64::from(arguments.prompts) * u64::from(arguments.samples);
    let mut failures = Vec::new();
    for layout in layouts {
        let [prompts, group, tokens] =
            [arguments.prompts, arguments.samples, arguments.tokens].map(|size| size as usize);
        let mut batch = Batch::new(prompts, group, tokens, layout);
        writeln!(
            out,
            "{prompts} prompts x {group} samples x {tokens} tokens, masks {layout:?}, {:.2} GB\n\
             {:<32}{:>10}{:>10}{:>8}{:>13}",
            batch.bytes() as f64 / 1e9,
            "operation",
            "pass ms",
            "ours ms",
            "ratio",
            "allocations",
        )?;
        for operation in OPERATIONS.iter().filter(|o| o.name.contains(&arguments.only)) {
            let measured = measure(operation, &mut batch, arguments.rounds)?;
            let (name, ratio) = (operation.name, measured.ratio());
            writeln!(
                out,
                "{name:<32}{:>10.1}{:>10.1}{ratio:>8.2}{:>13}",
                measured.pass_secs * 1e3,
                measured.run_secs * 1e3,
                measured.allocations,
            )?;
            if ratio > arguments.limit {
                failures.push(format!("{name}, {layout:?}: {ratio:.2} passes over memory"));
            }
            if measured.allocations >= samples {
                failures.push(format!("{name}, {layout:?}: {} allocations", measured.allocations));
            }
        }
    }
    for failure in &failures {
        writeln!(out, "over the limit: {failure}")?;
    }
    Ok(if arguments.check && !failures.is_empty() { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

fn measure(operation: &Operation, batch: &mut Batch, rounds: u32) -> Result<Measured> {
    let mut least =
        Measured { pass_secs: f64::INFINITY, run_secs: f64::INFINITY, allocations: u64::MAX };
    for _ in 0..rounds {
        let started = Instant::now();
        (operation.pass)(black_box(batch));
        least.pass_secs = least.pass_secs.min(started.elapsed().as_secs_f64());
        let mut result = Ok(());
        let started = Instant::now();
        let counted = allocation_counter::measure(|| result = (operation.run)(black_box(batch)));
        least.run_secs = least.run_secs.min(started.elapsed().as_secs_f64());
        least.allocations = least.allocations.min(counted.count_total);
        result.with_context(|| format!("{} failed", operation.name))?;
    }
    Ok(least)
}
