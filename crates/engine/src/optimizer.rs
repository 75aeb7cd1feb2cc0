//! AdamW on shards, with clipping by the norm over all ranks.

use crate::flat::FlatBlock;
use crate::moments::Moments;
use crate::parameter_rules::groups_of;
use crate::policy_update::Metrics;
use crate::sharded_model::ShardedModel;
use crate::{AdamWSettings, EngineError, MomentState, Result};

/// Added to the norm before dividing, as `torch.nn.utils.clip_grad_norm_` does.
const CLIP_EPSILON: f64 = 1e-6;

/// Moments of this rank's shards, one pair per trainable block.
#[derive(Debug)]
pub struct AdamW {
    settings: AdamWSettings,
    moments: Vec<Option<Moments>>,
    /// Group of every parameter, by block and slot.
    groups: Vec<Vec<Option<usize>>>,
    step: u64,
    /// Steps left out since the last one that was taken.
    skipped_in_a_row: u32,
}

/// What became of an optimiser step; the same on every rank.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum OptimizerStep {
    /// Parameters and moments have moved.
    Taken {
        /// Global norm of the gradients before clipping.
        grad_norm: f64,
    },
    /// The gradients were not finite and were dropped; parameters, moments, step count and
    /// average are as before.
    Skipped,
}

impl OptimizerStep {
    /// Adds `grad_norm` (of a step that was taken) and `skipped_steps` (0 or 1).
    pub fn report(self, metrics: &mut Metrics) {
        let skipped = match self {
            Self::Taken { grad_norm } => {
                metrics.insert("grad_norm".to_owned(), grad_norm);
                0.0
            }
            Self::Skipped => 1.0,
        };
        metrics.insert("skipped_steps".to_owned(), skipped);
    }
}

impl AdamW {
    /// Zero moments for every trainable block.
    ///
    /// # Errors
    /// A group whose pattern no parameter has.
    pub fn new(settings: AdamWSettings, blocks: &[FlatBlock]) -> Result<Self> {
        settings.validate()?;
        let groups = groups_of(&settings.groups, blocks)?;
        let state = settings.state;
        let zeros =
            |block: &FlatBlock| block.trainable.then(|| Moments::zeros(state, block.master()));
        let moments = blocks.iter().map(zeros);
        let moments = moments.collect();
        Ok(Self { settings, moments, groups, step: 0, skipped_in_a_row: 0 })
    }

    /// Steps taken.
    #[must_use]
    pub fn step_count(&self) -> u64 {
        self.step
    }

    /// How the moments are kept.
    #[must_use]
    pub fn state(&self) -> MomentState {
        self.settings.state
    }

    pub(crate) fn skipped_in_a_row(&self) -> u32 {
        self.skipped_in_a_row
    }

    pub(crate) fn set_counts(&mut self, step: u64, skipped_in_a_row: u32) {
        self.step = step;
        self.skipped_in_a_row = skipped_in_a_row;
    }

    /// Leaves a step out, if the settings still allow it.
    fn skip(&mut self, norm: f64) -> Result<OptimizerStep> {
        let (allowed, step) = (self.settings.max_skipped_steps, self.step);
        if allowed == 0 {
            let quantity = "the gradient norm".to_owned();
            return Err(EngineError::NonFinite { quantity, value: norm, step });
        }
        self.skipped_in_a_row += 1;
        let in_a_row = self.skipped_in_a_row;
        if in_a_row > allowed {
            return Err(EngineError::SkippedTooOften { in_a_row, allowed, value: norm, step });
        }
        tracing::warn!(norm, step, in_a_row, allowed, "gradient not finite, step skipped");
        Ok(OptimizerStep::Skipped)
    }

    pub(crate) fn moments(&self, block: usize) -> Option<&Moments> {
        self.moments[block].as_ref()
    }

    pub(crate) fn moments_mut(&mut self, block: usize) -> Option<&mut Moments> {
        self.moments[block].as_mut()
    }
}

impl ShardedModel {
    /// Waits for all gradients, clips them by their global norm, steps, and clears them. Where
    /// the norm is not finite the step is left out on every rank, as often in a row as
    /// `max_skipped_steps` says.
    ///
    /// # Errors
    /// [`EngineError::NonFinite`], [`EngineError::SkippedTooOften`] when the norm is not finite
    /// and no step may be left out (any more); parameters and moments are then as before. A
    /// failed collective.
    pub fn optimizer_step_on(&mut self, learning_rate: f64) -> Result<OptimizerStep> {
        let _guard = tch::no_grad_guard();
        self.finish_reductions()?;
        self.restart_passes();
        let mut grads = Vec::with_capacity(self.blocks.len());
        for block in &mut self.blocks {
            grads.push(block.take_gradient());
        }
        let squares: f64 =
            grads.iter().flatten().map(|grad_s| grad_s.norm().double_value(&[]).powi(2)).sum();
        let [squares] = self.sum_over_ranks([squares])?;
        let norm = squares.sqrt();
        let Some(optimizer) = &mut self.optimizer else {
            return Err(EngineError::Unsuited(
                "the model was loaded without an optimiser".to_owned(),
            ));
        };
        if !norm.is_finite() {
            return optimizer.skip(norm);
        }
        optimizer.skipped_in_a_row = 0;
        let limit = optimizer.settings.max_grad_norm;
        let scale = if limit > 0.0 { (limit / (norm + CLIP_EPSILON)).min(1.0) } else { 1.0 };
        let AdamW { settings, moments, groups, step: taken, .. } = optimizer;
        let rule = |group| settings.rule(group, learning_rate);
        for (index, grad_s) in grads.into_iter().enumerate() {
            if let (Some(mut grad_s), Some(moments)) = (grad_s, &mut moments[index]) {
                if scale < 1.0 {
                    let _ = grad_s.g_mul_scalar_(scale);
                }
                let block = &mut self.blocks[index];
                let runs = block.trained_runs(self.comm.rank(), &groups[index]);
                moments.step(block.master_mut(), &grad_s, &runs, &rule, *taken)?;
            }
        }
        *taken += 1;
        let step = optimizer.step;
        if let Some(ema) = &mut self.ema {
            ema.follow(&self.blocks, step);
        }
        Ok(OptimizerStep::Taken { grad_norm: norm })
    }
}
