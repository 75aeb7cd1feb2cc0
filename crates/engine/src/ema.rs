//! A moving average of the trained parameters, cut like them.
//!
//! `ema <- decay ema + (1 - decay) p` in fp32 after every `interval`-th optimiser step
//! (LightRFT's form; with interval 1 HC-RLHF's). It starts as a copy of the parameters.

use serde::{Deserialize, Serialize};
use tch::Tensor;

use crate::flat::FlatBlock;
use crate::sharded_model::ShardedModel;
use crate::{EngineError, Result};

/// How the average follows the parameters.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct EmaSettings {
    /// Weight of the old average, in [0, 1].
    pub decay: f64,
    /// Optimiser steps from one update of the average to the next, at least 1.
    pub interval: u64,
}

impl EmaSettings {
    /// Refuses values outside their domain.
    ///
    /// # Errors
    /// [`EngineError::Setting`] names key and value.
    pub fn validate(&self) -> Result<()> {
        let refuse =
            |key, value: String, expected| Err(EngineError::Setting { key, value, expected });
        if !(0.0..=1.0).contains(&self.decay) {
            return refuse("ema.decay", self.decay.to_string(), "a number in [0, 1]");
        }
        if self.interval == 0 {
            return refuse("ema.interval", "0".to_owned(), "at least 1");
        }
        Ok(())
    }
}

/// This rank's shards of the average, fp32 `[S]`, one per trained block.
#[derive(Debug)]
pub(crate) struct Ema {
    settings: EmaSettings,
    shards: Vec<Option<Tensor>>,
}

impl Ema {
    pub(crate) fn new(settings: EmaSettings, blocks: &[FlatBlock]) -> Self {
        let shard = |block: &FlatBlock| block.trainable.then(|| block.master().copy());
        Self { settings, shards: blocks.iter().map(shard).collect() }
    }

    pub(crate) fn shard(&self, block: usize) -> Option<&Tensor> {
        self.shards[block].as_ref()
    }

    /// Follows the parameters after optimiser step `step` (the first is 1).
    pub(crate) fn follow(&mut self, blocks: &[FlatBlock], step: u64) {
        if !step.is_multiple_of(self.settings.interval) {
            return;
        }
        for (shard, block) in self.shards.iter_mut().zip(blocks) {
            if let Some(ema_s) = shard {
                let _ = ema_s.lerp_(block.master(), 1.0 - self.settings.decay);
            }
        }
    }
}

fn no_average() -> EngineError {
    let problem = "the moving average was asked of a model that keeps none";
    EngineError::Unsuited(problem.to_owned())
}

impl ShardedModel {
    /// Whether a moving average is kept.
    #[must_use]
    pub fn has_average(&self) -> bool {
        self.ema.is_some()
    }

    /// Runs `work` with the moving average in place of the trained parameters, for example to
    /// export or to measure it; the parameters are back afterwards. No step may be taken within.
    ///
    /// # Errors
    /// A model without a moving average; what `work` returns.
    pub fn with_average<T>(&mut self, work: impl FnOnce(&mut Self) -> Result<T>) -> Result<T> {
        if self.ema.is_none() {
            return Err(no_average());
        }
        self.swap_average();
        let outcome = work(self);
        self.swap_average();
        outcome
    }

    /// Copies the moving average over the trained parameters, for good: what is measured or
    /// written afterwards is the average. Doing it again changes nothing.
    ///
    /// # Errors
    /// A model without a moving average.
    pub fn adopt_average(&mut self) -> Result<()> {
        let Some(ema) = &self.ema else { return Err(no_average()) };
        let _guard = tch::no_grad_guard();
        for (shard, block) in ema.shards.iter().zip(&mut self.blocks) {
            if let Some(ema_s) = shard {
                block.master_mut().copy_(ema_s);
            }
        }
        Ok(())
    }

    fn swap_average(&mut self) {
        let Some(ema) = &mut self.ema else { return };
        for (shard, block) in ema.shards.iter_mut().zip(&mut self.blocks) {
            if let Some(ema_s) = shard {
                std::mem::swap(ema_s, block.master_mut());
            }
        }
    }
}
