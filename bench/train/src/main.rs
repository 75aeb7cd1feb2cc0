//! Tokens per second of a full training step, beside the same step in PyTorch, in one run.
//!
//! Steps of ours and of the peer alternate, so that whatever else the machine does falls on both.
//! A case fails when the losses of the first step differ: then the work was not the same. One JSON
//! line per figure goes to standard output; `ratio` is ours by the peer's.

#![allow(clippy::print_stdout, reason = "the figures are what this program is for")]

mod case;
mod model;
mod ours;
mod peer;

use std::collections::BTreeMap;
use std::path::PathBuf;

use anyhow::{Context, Result, bail, ensure};
use clap::Parser;
use serde::Serialize;

use crate::case::{Case, Lengths};
use crate::ours::Ours;
use crate::peer::Peer;

/// Times training steps beside PyTorch.
#[derive(Debug, Parser)]
struct Arguments {
    /// Python that has torch and transformers.
    #[arg(long)]
    python: PathBuf,
    /// The peer's script.
    #[arg(long, default_value = concat!(env!("CARGO_MANIFEST_DIR"), "/peer.py"))]
    peer: PathBuf,
    /// Timed steps per case and side, after one that is not timed.
    #[arg(long, default_value_t = 4)]
    steps: usize,
    /// Only cases whose name holds this.
    #[arg(long, default_value = "")]
    only: String,
    /// Exit with an error where a figure misses its bound.
    #[arg(long)]
    check: bool,
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
    // As the workers do.
    plumb_torch::allocator::keep_resident_memory_small()?;
    let mut speeds: BTreeMap<String, (f64, f64)> = BTreeMap::new();
    let mut missed = Vec::new();
    for case in Case::all().into_iter().filter(|case| case.name().contains(&arguments.only)) {
        let (ours, peer) = measure(&case, &arguments).with_context(|| case.name())?;
        let figure = report(case.name(), ours, peer, "tokens/s")?;
        let bound = case.bound();
        if figure.ratio < bound {
            missed.push(format!(
                "{}: {:.2}x of PyTorch, expected {bound}x",
                figure.case, figure.ratio
            ));
        }
        speeds.insert(case.name(), (ours, peer));
    }
    for (one, two) in Case::scaling_pairs() {
        if let (Some(one_rank), Some(two_ranks)) = (speeds.get(&one), speeds.get(&two)) {
            let (ours, peer) = (two_ranks.0 / one_rank.0, two_ranks.1 / one_rank.1);
            let name = format!("{two}-by-1-rank");
            report(name.clone(), ours, peer, "x")?;
            if ours < 1.6 {
                missed.push(format!("{name}: {ours:.2}x, expected 1.6x"));
            }
        }
    }
    ensure!(!arguments.check || missed.is_empty(), "{}", missed.join("; "));
    Ok(())
}

fn report(case: String, ours: f64, peer: f64, unit: &'static str) -> Result<Figure> {
    let figure = Figure { bench: "train", case, ours, peer, ratio: ours / peer, unit };
    println!("{}", serde_json::to_string(&figure)?);
    Ok(figure)
}

/// Tokens per second of ours and of the peer: the median of the timed steps.
fn measure(case: &Case, arguments: &Arguments) -> Result<(f64, f64)> {
    let folder = tempfile::tempdir()?;
    let model = folder.path().join("model");
    model::write(case.size, &model)?;
    let rows = case.rows();
    let mut peer = Peer::start(case, &model, &rows, arguments)?;
    let mut ours = Ours::start(case, &model, &rows)?;
    same_work(case, ours.step()?.loss, peer.step()?.loss)?;
    let (mut our_secs, mut peer_secs) = (Vec::new(), Vec::new());
    for _ in 0..arguments.steps {
        our_secs.push(ours.step()?.secs);
        peer_secs.push(peer.step()?.secs);
    }
    let tokens: usize = rows.iter().map(Vec::len).sum();
    Ok((tokens as f64 / median(our_secs)?, tokens as f64 / median(peer_secs)?))
}

/// With uneven rows the peer's ranks each take the mean over their own tokens, so only the sum of
/// the work is compared there, not the loss.
fn same_work(case: &Case, ours: f64, peer: f64) -> Result<()> {
    if case.ranks > 1 && case.lengths == Lengths::Mixed {
        return Ok(());
    }
    let tolerance = if case.dtype == "bf16" { 2e-2 } else { 1e-4 };
    if (ours - peer).abs() > tolerance * peer.abs() {
        bail!("the first step's loss is {ours}, PyTorch's {peer}: this is not the same work");
    }
    Ok(())
}

fn median(mut secs: Vec<f64>) -> Result<f64> {
    secs.sort_by(f64::total_cmp);
    secs.get(secs.len() / 2).copied().context("no timed step: --steps must be at least 1")
}
