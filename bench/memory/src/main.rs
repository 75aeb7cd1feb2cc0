//! Peak resident memory of training ranks, beside what `plumb explain` predicts.
//!
//! Every rank is a process of its own, over real Gloo. A ~53M-parameter Qwen2 is loaded and trained
//! for three full steps on 16 rows of 256 tokens: fp32 masters, bf16 arithmetic, recompute. One
//! JSON line per figure goes to standard output: `ours` is measured, `peer` is the prediction, or
//! for the ratio of two world sizes the figure of one rank; `load-by-whole-model` is what loading
//! added to a process, by the bytes of the whole model in fp32.

#![allow(clippy::print_stdout, reason = "the figures are what this program is for")]

mod case;
#[path = "../../train/src/model.rs"]
mod model;
mod rank;
mod store;

use std::path::Path;
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result, bail, ensure};
use clap::Parser;
use serde::Serialize;

use crate::case::Case;
use crate::rank::Peaks;

/// Largest share of one rank's peak that each of two ranks may hold.
const SHARE_OF_ONE: f64 = 0.60;
/// Bounds of measured by predicted.
const PREDICTION: std::ops::RangeInclusive<f64> = 0.90..=1.10;

/// Measures the memory of training ranks.
#[derive(Debug, Parser)]
struct Arguments {
    /// Tokens in a micro-batch of a rank. The whole batch has 4,096.
    #[arg(long, default_value_t = 4096)]
    micro_batch_tokens: usize,
    /// Optimiser steps.
    #[arg(long, default_value_t = 3)]
    steps: usize,
    /// A small model, for a look in seconds.
    #[arg(long)]
    small: bool,
    /// Exit with an error where a figure is out of its bounds.
    #[arg(long)]
    check: bool,
    /// Print the address space of rank 0 after each phase to standard error.
    #[arg(long)]
    verbose: bool,
    /// Orders of a rank, as JSON; how this program starts its ranks.
    #[arg(long, hide = true)]
    rank: Option<String>,
}

/// One figure.
#[derive(Debug, Serialize)]
struct Figure {
    bench: &'static str,
    case: String,
    ours: f64,
    peer: f64,
    ratio: f64,
    unit: &'static str,
}

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    if let Some(orders) = &arguments.rank {
        return rank::run(&serde_json::from_str(orders).context("orders of a rank")?);
    }
    let folder = tempfile::tempdir()?;
    let model = folder.path().join("model");
    let [one, two] = [1, 2].map(|ranks| Case {
        size: if arguments.small { model::Size::M10 } else { model::Size::M50 },
        ranks,
        micro_batch_tokens: arguments.micro_batch_tokens,
    });
    model::write(one.size, &model)?;
    let mut missed = Vec::new();
    let mut peaks = Vec::new();
    for case in [&one, &two] {
        let measured = measure(case, &model, &arguments).with_context(|| case.name())?;
        let predicted = case.predicted();
        for (phase, ours, peer) in
            [("load", measured.load, predicted.load), ("peak", measured.peak(), predicted.peak())]
        {
            let figure = report(format!("{}-{phase}", case.name()), ours, peer)?;
            if !PREDICTION.contains(&figure.ratio) {
                missed.push(format!("{}: {:.2} of the prediction", figure.case, figure.ratio));
            }
        }
        peaks.push(measured);
    }
    for (case, measured) in [&one, &two].into_iter().zip(&peaks) {
        let above = measured.load.saturating_sub(measured.start);
        let figure =
            report(format!("{}-load-by-whole-model", case.name()), above, case.model_bytes())?;
        if case.ranks > 1 && figure.ratio >= 1.0 {
            missed.push(format!("{}: a rank held the whole model", figure.case));
        }
    }
    let shares = [
        ("load", peaks[1].load, peaks[0].load, None),
        ("peak", peaks[1].peak(), peaks[0].peak(), Some(SHARE_OF_ONE)),
    ];
    for (phase, two_ranks, one_rank, bound) in shares {
        let figure = report(format!("{}-by-1-rank-{phase}", two.name()), two_ranks, one_rank)?;
        if bound.is_some_and(|bound| figure.ratio >= bound) {
            missed.push(format!(
                "{}: {:.3}, expected less than {SHARE_OF_ONE}",
                figure.case, figure.ratio
            ));
        }
    }
    ensure!(!arguments.check || missed.is_empty(), "{}", missed.join("; "));
    Ok(())
}

fn report(case: String, ours: u64, peer: u64) -> Result<Figure> {
    let (ours, peer) = (ours as f64 / 1e6, peer as f64 / 1e6);
    let figure = Figure { bench: "memory", case, ours, peer, ratio: ours / peer, unit: "MB" };
    println!("{}", serde_json::to_string(&figure)?);
    Ok(figure)
}

/// The peaks of the rank that held the most in each phase.
fn measure(case: &Case, model: &Path, arguments: &Arguments) -> Result<Peaks> {
    let store = tempfile::tempdir()?;
    let mut ranks = Ranks(Vec::new());
    for rank in 0..case.ranks {
        let orders = case.orders(rank, model, store.path(), arguments.steps, arguments.verbose);
        let child = Command::new(std::env::current_exe()?)
            .arg("--rank")
            .arg(serde_json::to_string(&orders)?)
            .env("OMP_NUM_THREADS", "1")
            .stdout(Stdio::piped())
            .spawn()
            .context("start a rank")?;
        ranks.0.push(child);
    }
    let mut worst = Peaks::default();
    for child in std::mem::take(&mut ranks.0) {
        let output = child.wait_with_output()?;
        if !output.status.success() {
            bail!("a rank ended with {}; its own message stands above", output.status);
        }
        let peaks = serde_json::from_slice(&output.stdout).context("a rank's peaks")?;
        worst = worst.larger(&peaks);
    }
    Ok(worst)
}

/// Processes that end with this one.
struct Ranks(Vec<Child>);

impl Drop for Ranks {
    fn drop(&mut self) {
        for child in &mut self.0 {
            // It may have ended by itself; either way none is left behind.
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}
