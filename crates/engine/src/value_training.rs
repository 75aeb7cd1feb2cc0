//! A critic: one value for every response token, and its regression to returns.
//!
//! The value of token t is the score head's output, fp32, at the position that predicts token t:
//! what the critic expects of the response before the token is drawn. Samples are packed as for
//! the policy, prompts shared by neighbours computed once. The loss
//! ([`plumb_loss::value::value_loss`]) is normalised by the tokens of the whole mini-batch, so that
//! it does not depend on the cut into micro-batches and ranks.

use plumb_loss::aggregate::{Denominators, Layout};
use plumb_loss::value::{ValueLoss, value_loss};
use plumb_model::HeadSpec;
use tch::{Kind, Tensor, no_grad_guard};

use crate::lm_head::floats;
use crate::optimizer::OptimizerStep;
use crate::passes::leaves;
use crate::policy_update::{Metrics, cut};
use crate::response_batch::{ResponseBatch, ResponseSample, micro_batches};
use crate::sharded_model::ShardedModel;
use crate::{EngineError, Result};

/// Values of one response.
#[derive(Debug, Clone, PartialEq)]
pub struct ResponseValues {
    /// Position in the samples that were passed in.
    pub index: usize,
    /// Value before each response token, `[T]`.
    pub values: Vec<f32>,
}

/// A sample with what a critic learns of it, one number per response token `[T]`.
#[derive(Debug, Clone, Default)]
pub struct ValueSample {
    /// The tokens.
    pub sample: ResponseSample,
    /// Values at the start of the update.
    pub old_values: Vec<f32>,
    /// Returns: what the values should have been.
    pub returns: Vec<f32>,
}

/// What to do with a batch.
#[derive(Debug, Clone, Copy)]
pub struct ValueUpdate {
    /// The loss.
    pub loss: ValueLoss,
    /// Divisor of `seq-mean-token-sum-norm`.
    pub norm_tokens: f64,
    /// Optimiser steps per epoch.
    pub mini_batches: usize,
    /// Passes over the batch.
    pub epochs: usize,
    /// Learning rate of every step of this update.
    pub learning_rate: f64,
}

/// Computes this rank's share of the values, without gradients; the shares of all ranks cover
/// every sample once. Every rank passes the same samples in the same order.
///
/// # Errors
/// A model without score head, samples that do not fit, a value that is no number, a failed
/// collective.
pub fn values(model: &mut ShardedModel, samples: &[ResponseSample]) -> Result<Vec<ResponseValues>> {
    require_score_head(model)?;
    samples.iter().try_for_each(ResponseSample::validate)?;
    let _guard = no_grad_guard();
    let members: Vec<_> = samples.iter().collect();
    let mut rows = Vec::new();
    for indices in shares(model, &members)? {
        let members = indices.iter().map(|&index| &samples[index]);
        let batch = ResponseBatch::new(members, model.settings().device)?;
        let hidden_nh = model.hidden(&batch.packed)?;
        let head = model.head_index();
        let params = model.acquire(head, None)?;
        let hidden_mh = hidden_nh.index_select(0, &batch.chosen.rows_m);
        let values = match batch.chosen.is_empty() {
            true => Vec::new(),
            false => floats(&model.scores(&params, &hidden_mh)?)?,
        };
        drop(params);
        model.release(head)?;
        let mut first = 0;
        for &index in &indices {
            let end = first + samples[index].response_ids.len();
            let row = ResponseValues { index, values: values[first..end].to_vec() };
            first = end;
            check_finite(&samples[index].id, &row.values)?;
            rows.push(row);
        }
    }
    rows.sort_by_key(|row| row.index);
    Ok(rows)
}

/// Runs every optimiser step on one batch. Every rank passes the same samples in the same order.
/// Returns `loss`, `clip_fraction`, `value_mean`, `return_mean`, `explained_variance` (`1 -
/// Var(R - V_old) / Var(R)`; absent where the returns are all equal), `grad_norm`, `tokens`,
/// `optimizer_steps`, `skipped_steps`, `learning_rate`, the same on every rank.
///
/// # Errors
/// A model without score head or optimiser, samples that do not fit, a loss or gradient that is
/// not finite (the step is not applied), a failed collective.
pub fn update_values(
    model: &mut ShardedModel,
    samples: &[ValueSample],
    update: &ValueUpdate,
) -> Result<Metrics> {
    require_score_head(model)?;
    check(samples, update)?;
    let kept: Vec<_> = samples.iter().filter(|s| !s.sample.response_ids.is_empty()).collect();
    let mut figures = Figures::default();
    for _ in 0..update.epochs {
        for mini_batch in cut(&kept, update.mini_batches) {
            let step = mini_batch_step(model, mini_batch, update, &mut figures);
            let step = step.inspect_err(|_| model.discard_gradients());
            figures.add(step.map_err(|error| error.at_step(model.optimizer_step()))?);
        }
    }
    figures.metrics(model, &kept, update)
}

fn mini_batch_step(
    model: &mut ShardedModel,
    samples: &[&ValueSample],
    update: &ValueUpdate,
    figures: &mut Figures,
) -> Result<OptimizerStep> {
    let counts = samples.iter().map(|s| s.sample.response_ids.len());
    let denominators = Denominators::from_token_counts(counts, update.norm_tokens);
    let responses: Vec<_> = samples.iter().map(|s| &s.sample).collect();
    for indices in shares(model, &responses)? {
        let members: Vec<_> = indices.iter().map(|&index| samples[index]).collect();
        train_micro_batch(model, &members, &update.loss, &denominators, figures)?;
    }
    model.optimizer_step_on(update.learning_rate)
}

/// Forward and backward of one micro-batch.
fn train_micro_batch(
    model: &mut ShardedModel,
    samples: &[&ValueSample],
    spec: &ValueLoss,
    denominators: &Denominators,
    figures: &mut Figures,
) -> Result<()> {
    let device = model.settings().device;
    let batch = ResponseBatch::new(samples.iter().map(|s| &s.sample), device)?;
    let trace = model.forward(&batch.packed)?;
    let head = model.head_index();
    let params = model.acquire(head, None)?;
    let mut grad_nh = trace.hidden_nh.zeros_like();
    if !batch.chosen.is_empty() {
        let join = |values: fn(&ValueSample) -> &[f32]| {
            let rows: Vec<_> = samples.iter().map(|s| values(s)).collect();
            Tensor::from_slice(&rows.concat()).to_device(device)
        };
        let (old_value_m, return_m) = (join(|s| &s.old_values), join(|s| &s.returns));
        let mask_m = Tensor::ones([return_m.size()[0]], (Kind::Bool, device));
        let layout = Layout::Packed { cu_seqlens: &batch.cu_responses };
        let rows_m = &batch.chosen.rows_m;
        let mut inputs = vec![trace.hidden_nh.index_select(0, rows_m).set_requires_grad(true)];
        inputs.extend(leaves(params));
        let terms = tch::with_grad(|| {
            let value_m = model.scores(&inputs[1..], &inputs[0])?;
            figures.value_sum += value_m.sum(Kind::Double).double_value(&[]);
            let (old, returns) = (&old_value_m, &return_m);
            Ok::<_, EngineError>(value_loss(
                spec,
                &value_m,
                old,
                returns,
                &mask_m,
                layout,
                denominators,
            )?)
        })?;
        figures.loss += terms.loss.double_value(&[]);
        figures.clipped_tokens += terms.clipped_tokens;
        figures.tokens += return_m.size()[0] as f64;
        let mut grads = Tensor::run_backward(&[terms.loss], &inputs, false, false);
        let _guard = no_grad_guard();
        let reduce = model.settings.reduce.kind();
        for (slot, grad) in grads.drain(1..).enumerate() {
            model.blocks[head].add_gradient(slot, &grad, reduce);
        }
        if let Some(grad_mh) = grads.pop() {
            grad_nh = grad_nh.index_add(0, rows_m, &grad_mh);
        }
    }
    model.release(head)?;
    model.reduce(head)?;
    model.backward(trace, grad_nh, &batch.packed)
}

/// The sample indices of each of this rank's micro-batches.
fn shares(model: &ShardedModel, samples: &[&ResponseSample]) -> Result<Vec<Vec<usize>>> {
    let (ranks, rank) = (model.world_size(), model.rank());
    micro_batches(samples, ranks, rank, model.settings())
}

fn require_score_head(model: &ShardedModel) -> Result<()> {
    match model.head {
        HeadSpec::Score(_) => Ok(()),
        HeadSpec::CausalLm => Err(EngineError::Unsuited(
            "values need a model with a score head; this one is a language model".to_owned(),
        )),
    }
}

fn check(samples: &[ValueSample], update: &ValueUpdate) -> Result<()> {
    for (key, value) in [("mini_batches", update.mini_batches), ("epochs", update.epochs)] {
        if value == 0 {
            let value = "0".to_owned();
            return Err(EngineError::Setting { key, value, expected: "at least 1" });
        }
    }
    for ValueSample { sample, old_values, returns } in samples {
        sample.validate()?;
        let tokens = sample.response_ids.len();
        for (what, numbers) in [("old values", old_values), ("returns", returns)] {
            if numbers.len() != tokens {
                let problem = format!("has {tokens} response tokens but {} {what}", numbers.len());
                return Err(EngineError::Sample { id: sample.id.clone(), problem });
            }
        }
    }
    Ok(())
}

fn check_finite(id: &str, values: &[f32]) -> Result<()> {
    match values.iter().position(|value| !value.is_finite()) {
        None => Ok(()),
        Some(token) => {
            let problem = format!("value of response token {token} is {}", values[token]);
            Err(EngineError::Sample { id: id.to_owned(), problem })
        }
    }
}

/// Sums over the steps of an update, of this rank until they are reduced.
#[derive(Default)]
struct Figures {
    loss: f64,
    value_sum: f64,
    clipped_tokens: f64,
    tokens: f64,
    grad_norm_sum: f64,
    taken: usize,
    skipped: usize,
}

impl Figures {
    fn add(&mut self, step: OptimizerStep) {
        match step {
            OptimizerStep::Taken { grad_norm } => {
                self.grad_norm_sum += grad_norm;
                self.taken += 1;
            }
            OptimizerStep::Skipped => self.skipped += 1,
        }
    }

    fn metrics(
        self,
        model: &ShardedModel,
        samples: &[&ValueSample],
        update: &ValueUpdate,
    ) -> Result<Metrics> {
        let sums = [self.loss, self.value_sum, self.clipped_tokens, self.tokens];
        let [loss, value_sum, clipped_tokens, tokens] = model.sum_over_ranks(sums)?;
        let steps = (self.taken + self.skipped).max(1) as f64;
        let returns = moments(samples.iter().flat_map(|s| s.returns.iter().copied()));
        let errors = samples.iter().flat_map(|s| s.returns.iter().zip(&s.old_values));
        let errors = moments(errors.map(|(return_, value)| return_ - value));
        let mut entries = vec![
            ("loss", loss / steps),
            ("clip_fraction", clipped_tokens / tokens.max(1.0)),
            ("value_mean", value_sum / tokens.max(1.0)),
            ("return_mean", returns.0),
            ("tokens", tokens),
            ("optimizer_steps", self.taken as f64),
            ("skipped_steps", self.skipped as f64),
            ("learning_rate", update.learning_rate),
        ];
        if returns.1 > 0.0 {
            entries.push(("explained_variance", 1.0 - errors.1 / returns.1));
        }
        // A step that was left out has no norm.
        if self.taken > 0 {
            entries.push(("grad_norm", self.grad_norm_sum / self.taken as f64));
        }
        Ok(entries.into_iter().map(|(name, value)| (name.to_owned(), value)).collect())
    }
}

/// Mean and population variance.
fn moments(numbers: impl Iterator<Item = f32> + Clone) -> (f64, f64) {
    let count = numbers.clone().count().max(1) as f64;
    let mean = numbers.clone().map(f64::from).sum::<f64>() / count;
    let squares = numbers.map(|number| (f64::from(number) - mean).powi(2));
    (mean, squares.sum::<f64>() / count)
}
