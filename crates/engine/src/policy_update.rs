//! One policy update: every optimiser step on one batch of samples.
//!
//! ```text
//! for each epoch, for each mini-batch:
//!     count tokens over all ranks
//!     for each micro-batch:  forward, loss normalised by the global count, backward
//!     clip the global gradient norm, AdamW on the shards
//! ```
//!
//! POL-1: the update does not depend on how the batch is cut into micro-batches or ranks.

use std::collections::BTreeMap;

use plumb_loss::aggregate::{Denominators, Layout, token_weights};
use plumb_loss::importance::{Correction, ImportanceSums, importance_weights};
use plumb_loss::policy::{Batch, Objective, TokenSums, weighted_policy_loss};
use tch::{Kind, Tensor};

use crate::head::{TokenGradients, TokenValues};
use crate::mismatch::Mismatch;
use crate::optimizer::OptimizerStep;
use crate::response_batch::{ResponseBatch, ResponseSample, micro_batches};
use crate::sharded_model::ShardedModel;
use crate::{EngineError, Result};

/// A sample with what the loss needs, one value per response token `[T]`.
#[derive(Debug, Clone, Default)]
pub struct PolicySample {
    /// The tokens and the sampler's log-probs.
    pub sample: ResponseSample,
    /// Advantages.
    pub advantages: Vec<f32>,
    /// Log-probs at the start of the update, for [`OldLogProbs::Recomputed`].
    pub old_logps: Option<Vec<f32>>,
    /// The reference's log-probs, for KL in the loss.
    pub reference_logps: Option<Vec<f32>>,
}

/// Which log-probs the importance ratio is taken against.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OldLogProbs {
    /// Those the sampler recorded.
    Rollout,
    /// Those recomputed by the trainer at the start of the update.
    Recomputed,
    /// The current ones: the ratio is 1 by definition. Right for one step per batch.
    Current,
}

/// What to do with a batch.
#[derive(Debug, Clone, Copy)]
pub struct PolicyUpdate {
    /// The loss.
    pub objective: Objective,
    /// Weights for what the sampler's log-probs differ from the old ones; none is 1.
    pub importance: Option<Correction>,
    /// Divisor of `seq-mean-token-sum-norm`.
    pub norm_tokens: f64,
    /// Reference of the ratio.
    pub old_logps: OldLogProbs,
    /// Optimiser steps per epoch.
    pub mini_batches: usize,
    /// Passes over the batch.
    pub epochs: usize,
    /// Learning rate of every step of this update.
    pub learning_rate: f64,
    /// Softmax temperature of the log-probs; the sampler's.
    pub temperature: f64,
}

impl PolicyUpdate {
    /// Whether the loss of a token hangs on the other tokens of its sequence.
    fn spans_sequences(&self) -> bool {
        self.objective.policy.spans_sequences()
            || self.importance.is_some_and(|correction| correction.spans_sequences())
    }
}

/// Figures of an update, the same on every rank.
pub type Metrics = BTreeMap<String, f64>;

/// Runs the update. Every rank passes the same samples in the same order.
///
/// # Errors
/// Samples that do not fit, a loss or gradient that is not finite (the step is not applied), a
/// failed collective.
pub fn update_policy(
    model: &mut ShardedModel,
    samples: &[PolicySample],
    update: &PolicyUpdate,
) -> Result<Metrics> {
    check(samples, update)?;
    let kept: Vec<_> = samples.iter().filter(|s| !s.sample.response_ids.is_empty()).collect();
    let mut figures = Figures::default();
    for epoch in 0..update.epochs {
        for (index, mini_batch) in cut(&kept, update.mini_batches).into_iter().enumerate() {
            let measure_mismatch = epoch == 0 && index == 0;
            let step = mini_batch_step(model, mini_batch, update, measure_mismatch);
            let step = step.inspect_err(|_| model.discard_gradients());
            figures.add(step.map_err(|error| error.at_step(model.optimizer_step()))?);
        }
    }
    figures.metrics(model, update)
}

/// Cuts a batch into runs of nearly equal length, in order; fewer when there are fewer samples.
pub(crate) fn cut<T>(samples: &[T], parts: usize) -> Vec<&[T]> {
    let parts = parts.min(samples.len());
    let start = |part: usize| samples.len() * part / parts;
    (0..parts).map(|part| &samples[start(part)..start(part + 1)]).collect()
}

struct StepFigures {
    sums: StepSums,
    mismatch: Option<Mismatch>,
    step: OptimizerStep,
}

/// Sums over the tokens of this rank.
#[derive(Default)]
struct StepSums {
    loss: TokenSums,
    importance: ImportanceSums,
}

fn mini_batch_step(
    model: &mut ShardedModel,
    samples: &[&PolicySample],
    update: &PolicyUpdate,
    measure_mismatch: bool,
) -> Result<StepFigures> {
    let counts = samples.iter().map(|s| s.sample.response_ids.len());
    let denominators = Denominators::from_token_counts(counts, update.norm_tokens);
    let (ranks, rank) = (model.world_size(), model.rank());
    let responses: Vec<_> = samples.iter().map(|s| &s.sample).collect();
    let mut sums = StepSums::default();
    let mut mismatch = measure_mismatch.then(Mismatch::default);
    for micro_batch in micro_batches(&responses, ranks, rank, model.settings())? {
        let micro_batch: Vec<_> = micro_batch.iter().map(|&index| samples[index]).collect();
        let loss = MicroBatchLoss::new(&micro_batch, update, &denominators, model)?;
        loss.forward_backward(model, &mut sums, mismatch.as_mut())?;
    }
    let step = model.optimizer_step_on(update.learning_rate)?;
    Ok(StepFigures { sums, mismatch, step })
}

/// One micro-batch with everything the loss needs, on the device. M response tokens.
struct MicroBatchLoss<'a> {
    batch: ResponseBatch,
    update: &'a PolicyUpdate,
    advantage_m: Tensor,
    rollout_logp_m: Tensor,
    old_logp_m: Option<Tensor>,
    reference_logp_m: Option<Tensor>,
    weight_m: Tensor,
}

impl<'a> MicroBatchLoss<'a> {
    fn new(
        samples: &[&PolicySample],
        update: &'a PolicyUpdate,
        denominators: &Denominators,
        model: &ShardedModel,
    ) -> Result<Self> {
        let device = model.settings().device;
        let batch = ResponseBatch::new(samples.iter().map(|s| &s.sample), device)?;
        let mask_m = Tensor::ones([batch.chosen.len() as i64], (Kind::Bool, device));
        let layout = Layout::Packed { cu_seqlens: &batch.cu_responses };
        let aggregation = update.objective.aggregation;
        let weight_m = token_weights(aggregation, &mask_m, layout, denominators, Kind::Float)?;
        let join = |values: &dyn Fn(&PolicySample) -> Option<&[f32]>| -> Option<Tensor> {
            let rows: Option<Vec<&[f32]>> = samples.iter().map(|s| values(s)).collect();
            Some(Tensor::from_slice(&rows?.concat()).to_device(device))
        };
        let empty = || Tensor::empty([0], (Kind::Float, device));
        Ok(Self {
            advantage_m: join(&|s| Some(&s.advantages)).unwrap_or_else(empty),
            rollout_logp_m: join(&|s| Some(&s.sample.rollout_logps)).unwrap_or_else(empty),
            old_logp_m: join(&|s| s.old_logps.as_deref()),
            reference_logp_m: join(&|s| s.reference_logps.as_deref()),
            batch,
            update,
            weight_m,
        })
    }

    fn forward_backward(
        &self,
        model: &mut ShardedModel,
        sums: &mut StepSums,
        mut mismatch: Option<&mut Mismatch>,
    ) -> Result<()> {
        let mut token_loss = |values: &TokenValues, first: i64| {
            if let Some(mismatch) = mismatch.as_deref_mut() {
                let count = values.logp_m.size()[0];
                mismatch.add(&values.logp_m, &self.rollout_logp_m.narrow(0, first, count));
            }
            self.token_gradients(values, first, sums)
        };
        let temperature = self.update.temperature;
        let (packed, chosen) = (&self.batch.packed, &self.batch.chosen);
        if self.update.spans_sequences() {
            let mut all = |values: &TokenValues| token_loss(values, 0);
            return model.train_on_sequences(packed, chosen, temperature, &mut all);
        }
        model.train_on_tokens(packed, chosen, temperature, &mut token_loss)
    }

    /// ∂loss/∂(log p, entropy) of tokens `first..` through a graph over a few numbers per token.
    fn token_gradients(
        &self,
        values: &TokenValues,
        first: i64,
        sums: &mut StepSums,
    ) -> Result<TokenGradients> {
        let count = values.logp_m.size()[0];
        let of = |tensor: &Tensor| tensor.narrow(0, first, count);
        let wants_entropy = self.update.objective.entropy_coef != 0.0;
        let logp_n = values.logp_m.detach().set_requires_grad(true);
        let entropy_n = values.entropy_m.detach().set_requires_grad(wants_entropy);
        let old_logp_n = match self.update.old_logps {
            OldLogProbs::Current => values.logp_m.shallow_clone(),
            OldLogProbs::Rollout => of(&self.rollout_logp_m),
            OldLogProbs::Recomputed => match &self.old_logp_m {
                Some(old_logp_m) => of(old_logp_m),
                None => return Err(missing("old log-probs")),
            },
        };
        let reference_logp_n = self.reference_logp_m.as_ref().map(of);
        let mask_n = Tensor::ones([count], (Kind::Bool, values.logp_m.device()));
        let some = [0, count];
        let whole = self.update.spans_sequences();
        let layout =
            Layout::Packed { cu_seqlens: if whole { &self.batch.cu_responses } else { &some } };
        let mut importance_n = None;
        if let Some(correction) = &self.update.importance {
            let rollout_logp_n = of(&self.rollout_logp_m);
            let (weight_n, more) =
                importance_weights(correction, &old_logp_n, &rollout_logp_n, &mask_n, layout)?;
            sums.importance += more;
            importance_n = Some(weight_n);
        }
        let terms = tch::with_grad(|| {
            let advantage_n = of(&self.advantage_m);
            let tokens = Batch {
                ref_logp: reference_logp_n.as_ref(),
                entropy: Some(&entropy_n),
                weight: importance_n.as_ref(),
                ..Batch::new(&logp_n, &old_logp_n, &advantage_n, &mask_n, layout)
            };
            weighted_policy_loss(&self.update.objective, &tokens, &of(&self.weight_m))
        })?;
        sums.loss += terms.sums;
        let mut inputs = vec![logp_n];
        inputs.extend(wants_entropy.then_some(entropy_n));
        let mut grads = Tensor::run_backward(&[terms.loss], &inputs, false, false).into_iter();
        match grads.next() {
            Some(logp_m) => Ok(TokenGradients { logp_m, entropy_m: grads.next() }),
            None => Err(EngineError::Unsuited("the policy loss returned no gradient".to_owned())),
        }
    }
}

fn missing(what: &str) -> EngineError {
    EngineError::Unsuited(format!("the update needs {what}, but a sample has none"))
}

fn check(samples: &[PolicySample], update: &PolicyUpdate) -> Result<()> {
    let positive = |key, value: usize| match value {
        0 => Err(EngineError::Setting { key, value: "0".to_owned(), expected: "at least 1" }),
        _ => Ok(()),
    };
    positive("mini_batches", update.mini_batches)?;
    positive("epochs", update.epochs)?;
    if !(update.temperature > 0.0 && update.temperature.is_finite()) {
        let value = update.temperature.to_string();
        return Err(EngineError::Setting { key: "temperature", value, expected: "above 0" });
    }
    samples.iter().try_for_each(|sample| check_sample(sample, update))
}

fn check_sample(sample: &PolicySample, update: &PolicyUpdate) -> Result<()> {
    sample.sample.validate()?;
    let tokens = sample.sample.response_ids.len();
    let per_token = |what: &str, values: Option<&[f32]>, needed: bool| match values {
        None if !needed => Ok(()),
        Some(values) if values.len() == tokens => Ok(()),
        other => {
            let got = other.map_or("none".to_owned(), |values| values.len().to_string());
            let problem = format!("has {tokens} response tokens but {got} {what}");
            Err(EngineError::Sample { id: sample.sample.id.clone(), problem })
        }
    };
    let recomputed = update.old_logps == OldLogProbs::Recomputed;
    per_token("advantages", Some(&sample.advantages), true)?;
    per_token("old log-probs", sample.old_logps.as_deref(), recomputed)?;
    let with_kl = update.objective.kl.is_some();
    per_token("reference log-probs", sample.reference_logps.as_deref(), with_kl)
}

/// Sums over the steps of an update, of this rank until they are reduced.
#[derive(Default)]
struct Figures {
    sums: StepSums,
    mismatch: Mismatch,
    grad_norm_sum: f64,
    grad_norm_max: f64,
    /// Steps that were taken.
    taken: usize,
    skipped: usize,
}

impl Figures {
    fn add(&mut self, step: StepFigures) {
        self.sums.loss += step.sums.loss;
        self.sums.importance += step.sums.importance;
        if let Some(mismatch) = step.mismatch {
            self.mismatch = mismatch;
        }
        match step.step {
            OptimizerStep::Taken { grad_norm } => {
                self.grad_norm_sum += grad_norm;
                self.grad_norm_max = self.grad_norm_max.max(grad_norm);
                self.taken += 1;
            }
            OptimizerStep::Skipped => self.skipped += 1,
        }
    }

    fn metrics(self, model: &ShardedModel, update: &PolicyUpdate) -> Result<Metrics> {
        let sums = TokenSums::from_array(model.sum_over_ranks(self.sums.loss.as_array())?);
        let importance = self.sums.importance.as_array();
        let importance = ImportanceSums::from_array(model.sum_over_ranks(importance)?);
        let mismatch = self.mismatch.over_ranks(model)?;
        let steps = (self.taken + self.skipped).max(1) as f64;
        let entries = [
            ("loss", sums.loss / steps),
            ("policy_loss", sums.policy_loss / steps),
            ("kl_loss", sums.kl_loss / steps),
            ("reference_kl", sums.reference_kl_mean()),
            ("entropy", sums.entropy_mean()),
            ("clip_fraction", sums.clip_fraction()),
            ("clip_fraction_lower", sums.clip_fraction_lower()),
            ("approx_kl", sums.approx_kl_mean()),
            ("mismatch_max", mismatch.max),
            ("mismatch_mean", mismatch.mean()),
            ("mismatch_kl", mismatch.kl()),
            ("tokens", sums.tokens),
            ("optimizer_steps", self.taken as f64),
            ("skipped_steps", self.skipped as f64),
            ("learning_rate", update.learning_rate),
        ];
        let corrected = [
            ("importance_weight", importance.weight_mean()),
            ("importance_effective", importance.effective_sample_fraction()),
            ("importance_truncated", importance.truncated_fraction()),
            ("importance_masked", importance.masked_fraction()),
            ("importance_kl", importance.kl_mean()),
        ];
        // A step that was left out has no norm.
        let norms = [
            ("grad_norm", self.grad_norm_sum / self.taken.max(1) as f64),
            ("grad_norm_max", self.grad_norm_max),
        ];
        let norms = norms.into_iter().filter(|_| self.taken > 0 || self.skipped == 0);
        let corrected = corrected.into_iter().filter(|_| update.importance.is_some());
        let named = |(name, value): (&str, f64)| (name.to_owned(), value);
        // Adapters are never assumed to act: their norm is logged.
        let adapter = model.adapter_delta_norm()?.map(|norm| ("adapter_delta_norm", norm));
        Ok(entries.into_iter().chain(norms).chain(corrected).chain(adapter).map(named).collect())
    }
}
