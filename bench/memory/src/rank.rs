//! What one rank does: load, train, and say what it held at most.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use plumb_collective::gloo::Gloo;
use plumb_collective::{Collective, solo};
use plumb_engine::{
    AdamWSettings, EngineSettings, LoadPlan, Offload, ShardedModel, TargetText, train_texts,
};
use plumb_model::HeadSpec;
use serde::{Deserialize, Serialize};
use tch::Device;

use crate::store::FolderStore;

const JOIN_TIMEOUT: Duration = Duration::from_secs(60);
const LEARNING_RATE: f64 = 1e-4;

/// What a rank is told, one JSON object on its command line.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Orders {
    pub(crate) model: PathBuf,
    pub(crate) store: PathBuf,
    pub(crate) rank: usize,
    pub(crate) ranks: usize,
    pub(crate) micro_batch_tokens: usize,
    pub(crate) steps: usize,
    /// Rows of a step, and tokens of each.
    pub(crate) rows: usize,
    pub(crate) row_tokens: usize,
    pub(crate) vocabulary: u32,
    /// Print the address space after each phase to standard error.
    pub(crate) verbose: bool,
}

/// Peak resident memory by phase, bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Peaks {
    /// Before anything was loaded.
    pub(crate) start: u64,
    /// While the model was loaded.
    pub(crate) load: u64,
    /// While it was trained.
    pub(crate) update: u64,
}

impl Peaks {
    /// The most at any time.
    pub(crate) fn peak(&self) -> u64 {
        self.start.max(self.load).max(self.update)
    }

    /// The larger figure of each phase.
    pub(crate) fn larger(&self, other: &Self) -> Self {
        Self {
            start: self.start.max(other.start),
            load: self.load.max(other.load),
            update: self.update.max(other.update),
        }
    }
}

/// Runs a rank; the peaks are one line on standard output.
pub(crate) fn run(orders: &Orders) -> Result<()> {
    plumb_torch::allocator::keep_resident_memory_small()?;
    tch::set_num_threads(1);
    let start = peak_resident_bytes()?;
    orders.tell("start");
    reset_peak()?;
    let comm: Box<dyn Collective> = match orders.ranks {
        1 => Box::new(solo()),
        ranks => {
            let store = Arc::new(FolderStore(orders.store.clone()));
            Box::new(Gloo::connect(store, "memory", orders.rank, ranks, JOIN_TIMEOUT)?)
        }
    };
    let mut model = ShardedModel::load(&orders.model, orders.plan()?, comm)?;
    let load = peak_resident_bytes()?;
    orders.tell("load");
    reset_peak()?;
    let texts = orders.texts();
    for _ in 0..orders.steps {
        train_texts(&mut model, &texts, LEARNING_RATE)?;
        orders.tell("step");
    }
    let peaks = Peaks { start, load, update: peak_resident_bytes()? };
    let mut out = std::io::stdout();
    writeln!(out, "{}", serde_json::to_string(&peaks)?).context("the parent has ended")?;
    Ok(())
}

impl Orders {
    fn plan(&self) -> Result<LoadPlan> {
        Ok(LoadPlan {
            head: HeadSpec::CausalLm,
            head_seed: 0,
            settings: EngineSettings {
                compute: "bf16".parse()?,
                reduce: "fp32".parse()?,
                recompute: true,
                reshard_after_forward: true,
                micro_batch_tokens: self.micro_batch_tokens,
                frozen_layers: 0,
                one_sample_a_pass: false,
                device: Device::Cpu,
                offload: Offload::default(),
            },
            optimizer: Some(AdamWSettings::default()),
            lora: None,
            ema: None,
        })
    }

    /// Texts of which every token but the first is learnt, the same on every rank.
    fn texts(&self) -> Vec<TargetText> {
        let mut state = 0x9E37_79B9_7F4A_7C15_u64;
        let mut token = || {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            3 + (state % u64::from(self.vocabulary - 3)) as u32
        };
        let mut text = |row: usize| TargetText {
            id: format!("row {row}"),
            ids: (0..=self.row_tokens).map(|_| token()).collect(),
            targets: std::iter::once(1..self.row_tokens + 1).collect(),
        };
        (0..self.rows).map(&mut text).collect()
    }

    fn tell(&self, after: &str) {
        if self.verbose && self.rank == 0 {
            let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
            let lines = status.lines().filter(|line| {
                line.starts_with("VmHWM") || line.starts_with("Rss") || line.starts_with("VmRSS")
            });
            let lines: Vec<_> = lines.map(|line| line.replace(['\t', ' '], "")).collect();
            // A note for whoever looks into a figure; nothing depends on it.
            let _ = writeln!(std::io::stderr(), "{after}: {}", lines.join(" "));
        }
    }
}

/// The most that this process has held resident since [`reset_peak`].
fn peak_resident_bytes() -> Result<u64> {
    let status = read("/proc/self/status")?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let kibibytes = line.and_then(|rest| rest.split_whitespace().next());
    let kibibytes = kibibytes.context("/proc/self/status has no VmHWM")?;
    Ok(kibibytes.parse::<u64>().context("VmHWM")? * 1024)
}

fn reset_peak() -> Result<()> {
    std::fs::write("/proc/self/clear_refs", "5").context("reset the peak in /proc/self/clear_refs")
}

fn read(path: &str) -> Result<String> {
    std::fs::read_to_string(Path::new(path)).with_context(|| format!("read {path}"))
}
