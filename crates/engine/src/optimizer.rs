//! AdamW on shards, with clipping by the norm over all ranks.

use std::collections::BTreeMap;

use tch::Tensor;

use crate::flat::FlatBlock;
use crate::parameter_rules::groups_of;
use crate::policy_update::Metrics;
use crate::sharded_model::ShardedModel;
use crate::{AdamWSettings, EngineError, Result};

/// Added to the norm before dividing, as `torch.nn.utils.clip_grad_norm_` does.
const CLIP_EPSILON: f64 = 1e-6;

/// Moments of this rank's shards, fp32, one pair per trainable block.
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

/// Running means of the gradient and of its square, `[S]`.
#[derive(Debug)]
pub(crate) struct Moments {
    pub(crate) first_s: Tensor,
    pub(crate) second_s: Tensor,
}

impl AdamW {
    /// Zero moments for every trainable block.
    ///
    /// # Errors
    /// A group whose pattern no parameter has.
    pub fn new(settings: AdamWSettings, blocks: &[FlatBlock]) -> Result<Self> {
        settings.validate()?;
        let groups = groups_of(&settings.groups, blocks)?;
        let moments = blocks.iter().map(|block| {
            block.trainable.then(|| Moments {
                first_s: block.master().zeros_like(),
                second_s: block.master().zeros_like(),
            })
        });
        let moments = moments.collect();
        Ok(Self { settings, moments, groups, step: 0, skipped_in_a_row: 0 })
    }

    /// Steps taken.
    #[must_use]
    pub fn step_count(&self) -> u64 {
        self.step
    }

    pub(crate) fn set_step_count(&mut self, step: u64) {
        self.step = step;
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

    /// Rate and decay of a group at a step of this learning rate.
    fn rule(&self, group: Option<usize>, learning_rate: f64) -> plumb_torch::AdamW {
        let AdamWSettings { beta1, beta2, eps, weight_decay, .. } = self.settings;
        let all = plumb_torch::AdamW { lr: learning_rate, beta1, beta2, eps, weight_decay };
        match group.map(|index| &self.settings.groups[index]) {
            None => all,
            Some(group) => plumb_torch::AdamW {
                lr: learning_rate * group.learning_rate_scale,
                weight_decay: group.weight_decay.unwrap_or(weight_decay),
                ..all
            },
        }
    }

    pub(crate) fn moments(&self, block: usize) -> Option<&Moments> {
        self.moments[block].as_ref()
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
        let mut lists: BTreeMap<Option<usize>, StepLists> = BTreeMap::new();
        for (index, grad_s) in grads.into_iter().enumerate() {
            if let (Some(mut grad_s), Some(moments)) = (grad_s, &optimizer.moments[index]) {
                if scale < 1.0 {
                    let _ = grad_s.g_mul_scalar_(scale);
                }
                let block = &mut self.blocks[index];
                let master_s = block.master_mut().shallow_clone();
                for run in block.trained_runs(self.comm.rank(), &optimizer.groups[index]) {
                    let vectors = [&master_s, &grad_s, &moments.first_s, &moments.second_s]
                        .map(|vector_s| vector_s.narrow(0, run.first, run.count));
                    lists.entry(run.group).or_default().push(vectors, optimizer.step);
                }
            }
        }
        optimizer.step += 1;
        for (group, lists) in lists {
            lists.step(optimizer.rule(group, learning_rate))?;
        }
        let step = optimizer.step;
        if let Some(ema) = &mut self.ema {
            ema.follow(&self.blocks, step);
        }
        Ok(OptimizerStep::Taken { grad_norm: norm })
    }
}

/// What the fused kernel takes: one entry per run of trained elements.
#[derive(Default)]
struct StepLists {
    masters: Vec<Tensor>,
    grads: Vec<Tensor>,
    firsts: Vec<Tensor>,
    seconds: Vec<Tensor>,
    steps: Vec<Tensor>,
}

impl StepLists {
    fn push(&mut self, [master, grad, first, second]: [Tensor; 4], steps_taken: u64) {
        self.steps.push(Tensor::from(steps_taken as f32).to_device(master.device()));
        self.masters.push(master);
        self.grads.push(grad);
        self.firsts.push(first);
        self.seconds.push(second);
    }

    fn step(&self, adamw: plumb_torch::AdamW) -> Result<()> {
        Ok(adamw.step(&self.masters, &self.grads, &self.firsts, &self.seconds, &self.steps)?)
    }
}
