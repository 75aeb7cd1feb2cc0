//! Our side: one thread per rank, each with libtorch's operations on one core, over real Gloo.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use plumb_collective::gloo::Gloo;
use plumb_collective::{Collective, solo};
use plumb_engine::head::{ChosenTokens, TokenGradients, TokenValues};
use plumb_engine::{AdamWSettings, EngineSettings, LoadPlan, Offload, ShardedModel};
use plumb_model::{HeadSpec, Packed};
use plumb_torch::{MemoryStore, Store};
use tch::{Device, Kind, Tensor};

use crate::case::Case;

/// Learning rate of both sides.
pub(crate) const LEARNING_RATE: f64 = 1e-4;
const JOIN_TIMEOUT: Duration = Duration::from_secs(60);

/// What one step took.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Step {
    pub(crate) secs: f64,
    pub(crate) loss: f64,
}

/// A model being trained, on as many threads as there are ranks.
pub(crate) struct Ours {
    ranks: Vec<Rank>,
}

struct Rank {
    go: Sender<()>,
    done: Receiver<Result<f64>>,
}

impl Ours {
    /// Loads the model on every rank.
    pub(crate) fn start(case: &Case, folder: &Path, rows: &[Vec<u32>]) -> Result<Self> {
        let store = MemoryStore::new();
        let tokens: usize = rows.iter().map(|row| row.len() - 1).sum();
        let mut ranks = Vec::new();
        for rank in 0..case.ranks {
            let mine: Vec<_> = rows.iter().skip(rank).step_by(case.ranks).cloned().collect();
            let job = Job {
                case: *case,
                rank,
                folder: folder.to_owned(),
                rows: mine,
                all_tokens: tokens,
                store: store.clone(),
            };
            let (go, orders) = channel();
            let (results, done) = channel();
            std::thread::Builder::new().name(format!("rank {rank}")).spawn(move || {
                job.run(&orders, &results);
            })?;
            ranks.push(Rank { go, done });
        }
        let ours = Self { ranks };
        ours.collect()?;
        Ok(ours)
    }

    /// One step of all ranks.
    pub(crate) fn step(&mut self) -> Result<Step> {
        let start = Instant::now();
        for rank in &self.ranks {
            rank.go.send(()).context("a rank has ended")?;
        }
        let loss = self.collect()?;
        Ok(Step { secs: start.elapsed().as_secs_f64(), loss })
    }

    /// Sum of what the ranks report.
    fn collect(&self) -> Result<f64> {
        let mut sum = 0.0;
        for rank in &self.ranks {
            sum += rank.done.recv().context("a rank has ended")??;
        }
        Ok(sum)
    }
}

/// What one rank needs.
struct Job {
    case: Case,
    rank: usize,
    folder: PathBuf,
    rows: Vec<Vec<u32>>,
    all_tokens: usize,
    store: Arc<dyn Store>,
}

impl Job {
    /// Loads, reports 0, then answers each order with this rank's share of a step's loss.
    fn run(&self, orders: &Receiver<()>, results: &Sender<Result<f64>>) {
        let loaded = self.load();
        let (mut model, batch) = match loaded {
            Ok(loaded) => loaded,
            Err(error) => {
                // Nobody waits any more when this fails.
                let _ = results.send(Err(error));
                return;
            }
        };
        let mut result = Ok(0.0);
        while results.send(result).is_ok() && orders.recv().is_ok() {
            result = step(&mut model, &batch, self.all_tokens);
        }
    }

    fn load(&self) -> Result<(ShardedModel, Batch)> {
        let world_size = self.case.ranks;
        let comm: Box<dyn Collective> = if world_size == 1 {
            Box::new(solo())
        } else {
            let store = Arc::clone(&self.store);
            Box::new(Gloo::connect(store, "train", self.rank, world_size, JOIN_TIMEOUT)?)
        };
        let plan = LoadPlan {
            head: HeadSpec::CausalLm,
            head_seed: 0,
            settings: self.settings()?,
            optimizer: Some(AdamWSettings::default()),
            lora: None,
            ema: None,
        };
        Ok((ShardedModel::load(&self.folder, plan, comm)?, Batch::new(&self.rows)?))
    }

    fn settings(&self) -> Result<EngineSettings> {
        Ok(EngineSettings {
            compute: self.case.dtype.parse()?,
            reduce: "fp32".parse()?,
            recompute: self.case.recompute,
            reshard_after_forward: true,
            micro_batch_tokens: usize::MAX,
            one_sample_a_pass: false,
            frozen_layers: 0,
            device: Device::Cpu,
            offload: Offload::default(),
        })
    }
}

/// This rank's rows.
struct Batch {
    packed: Packed,
    chosen: ChosenTokens,
}

impl Batch {
    /// Every token but the first of each row is predicted.
    fn new(rows: &[Vec<u32>]) -> Result<Self> {
        let slices: Vec<&[u32]> = rows.iter().map(Vec::as_slice).collect();
        let (mut predictors, mut targets, mut first) = (Vec::new(), Vec::new(), 0i64);
        for row in rows {
            predictors.extend(first..first + row.len() as i64 - 1);
            targets.extend(row[1..].iter().map(|&id| i64::from(id)));
            first += row.len() as i64;
        }
        let chosen = ChosenTokens {
            rows_m: Tensor::from_slice(&predictors),
            targets_m: Tensor::from_slice(&targets),
        };
        Ok(Self { packed: Packed::new(&slices)?, chosen })
    }
}

/// Forward, backward, clipping, AdamW. Returns this rank's part of the mean loss.
fn step(model: &mut ShardedModel, batch: &Batch, all_tokens: usize) -> Result<f64> {
    let mut loss = 0.0;
    let mut token_loss = |values: &TokenValues, _first: i64| {
        loss -= values.logp_m.sum(Kind::Double).double_value(&[]) / all_tokens as f64;
        let weight = -1.0 / all_tokens as f64;
        Ok(TokenGradients { logp_m: values.logp_m.full_like(weight), entropy_m: None })
    };
    model.train_on_tokens(&batch.packed, &batch.chosen, 1.0, &mut token_loss)?;
    model.optimizer_step_on(LEARNING_RATE)?;
    Ok(loss)
}
