//! Supervised fine-tuning: the mean of −log p over all target tokens of a batch of texts.
//!
//! Which tokens are targets is the caller's: the answers of a dialogue, not its prompts. Texts
//! are packed end to end, without padding. The loss is normalised by the targets of the whole
//! batch, so that it does not depend on the cut into micro-batches and ranks.

use std::ops::Range;

use plumb_model::{Packed, Tree};
use tch::{Kind, Tensor};

use crate::head::{ChosenTokens, TokenGradients, TokenValues};
use crate::micro_batch::Plan;
use crate::optimizer::OptimizerStep;
use crate::policy_update::Metrics;
use crate::response_batch::EMPTY_ROUND;
use crate::sharded_model::ShardedModel;
use crate::{EngineError, Result};

/// A text and the tokens of it that are learnt.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TargetText {
    /// Name of the text, for messages.
    pub id: String,
    /// Token ids, `[T]`.
    pub ids: Vec<u32>,
    /// Positions that are learnt, in order, none twice, none of them position 0, which nothing
    /// predicts; at least one.
    pub targets: Vec<Range<usize>>,
}

impl TargetText {
    /// Tokens that go through the layers: those up to the last one that predicts a target.
    fn inputs(&self) -> &[u32] {
        let end = self.targets.last().map_or(0, |range| range.end);
        &self.ids[..end.saturating_sub(1)]
    }

    fn target_count(&self) -> usize {
        self.targets.iter().map(ExactSizeIterator::len).sum()
    }

    fn validate(&self) -> Result<()> {
        let refuse = |problem: String| Err(EngineError::Sample { id: self.id.clone(), problem });
        let mut free = 1;
        for range in &self.targets {
            if range.start < free || range.is_empty() || range.end > self.ids.len() {
                return refuse(format!(
                    "targets {range:?} are not within tokens {free}..{}",
                    self.ids.len()
                ));
            }
            free = range.end;
        }
        if self.targets.is_empty() {
            return refuse("has no target token".to_owned());
        }
        Ok(())
    }
}

/// Some texts laid end to end. M targets.
struct TextBatch {
    packed: Packed,
    chosen: ChosenTokens,
}

impl TextBatch {
    fn new(texts: &[&TargetText], model: &ShardedModel) -> Result<Self> {
        let device = model.settings().device;
        let (mut rows, mut targets, mut first) = (Vec::new(), Vec::new(), 0);
        for text in texts {
            for at in text.targets.iter().cloned().flatten() {
                rows.push((first + at - 1) as i64);
                targets.push(i64::from(text.ids[at]));
            }
            first += text.inputs().len();
        }
        let trees = texts.iter().map(|text| Tree { prompt: text.inputs(), branches: &[] });
        let mut trees: Vec<_> = trees.collect();
        if trees.is_empty() {
            trees.push(EMPTY_ROUND);
        }
        let chosen = ChosenTokens {
            rows_m: Tensor::from_slice(&rows).to_device(device),
            targets_m: Tensor::from_slice(&targets).to_device(device),
        };
        Ok(Self { packed: Packed::trees(&trees)?.to_device(device), chosen })
    }
}

/// One optimiser step on a batch of texts. Every rank passes the same texts in the same order.
/// Returns `loss` (mean −log p of a target, nats), `grad_norm` and `skipped_steps`
/// ([`OptimizerStep::report`]), `tokens` (targets), `texts`, `learning_rate`, with adapters
/// `adapter_delta_norm`, the same on every rank.
///
/// # Errors
/// A model with a score head or without optimiser, texts that do not fit, a loss or gradient that
/// is not finite (the step is not applied), a failed collective.
pub fn train_texts(
    model: &mut ShardedModel,
    texts: &[TargetText],
    learning_rate: f64,
) -> Result<Metrics> {
    train_weighted_texts(model, texts, 1.0, learning_rate)
}

/// [`train_texts`] on `weight` times the loss, which is reported without it: the PTX loss beside
/// reinforcement learning.
///
/// # Errors
/// As [`train_texts`].
pub fn train_weighted_texts(
    model: &mut ShardedModel,
    texts: &[TargetText],
    weight: f64,
    learning_rate: f64,
) -> Result<Metrics> {
    let step = texts_step(model, texts, weight, learning_rate);
    let step = step.inspect_err(|_| model.discard_gradients());
    let (loss, step) = step.map_err(|error| error.at_step(model.optimizer_step()))?;
    let mut metrics = metrics(texts, loss)?;
    step.report(&mut metrics);
    metrics.insert("learning_rate".to_owned(), learning_rate);
    let norm = model.adapter_delta_norm()?;
    metrics.extend(norm.map(|norm| ("adapter_delta_norm".to_owned(), norm)));
    Ok(metrics)
}

fn texts_step(
    model: &mut ShardedModel,
    texts: &[TargetText],
    weight: f64,
    learning_rate: f64,
) -> Result<(f64, OptimizerStep)> {
    let all_targets = all_targets(texts)?;
    let mut loss = 0.0;
    for batch in micro_batches(model, texts)? {
        let batch = TextBatch::new(&batch, model)?;
        let mut token_loss = |values: &TokenValues, _: i64| {
            loss += negative_sum(&values.logp_m) / all_targets;
            let slope_m = values.logp_m.full_like(-weight / all_targets);
            Ok(TokenGradients { logp_m: slope_m, entropy_m: None })
        };
        model.train_on_tokens(&batch.packed, &batch.chosen, 1.0, &mut token_loss)?;
    }
    let loss = finite_over_ranks(model, loss)?;
    Ok((loss, model.optimizer_step_on(learning_rate)?))
}

/// The loss of texts without training on them: `loss`, `tokens` and `texts` as
/// [`train_texts`] returns them.
///
/// # Errors
/// As [`train_texts`].
pub fn measure_texts(model: &mut ShardedModel, texts: &[TargetText]) -> Result<Metrics> {
    let all_targets = all_targets(texts)?;
    let mut loss = 0.0;
    for batch in micro_batches(model, texts)? {
        let batch = TextBatch::new(&batch, model)?;
        let values = model.token_values(&batch.packed, &batch.chosen, 1.0)?;
        loss += negative_sum(&values.logp_m) / all_targets;
    }
    let loss = finite_over_ranks(model, loss)?;
    metrics(texts, loss)
}

/// The texts of each of this rank's micro-batches.
fn micro_batches<'a>(
    model: &ShardedModel,
    texts: &'a [TargetText],
) -> Result<Vec<Vec<&'a TargetText>>> {
    texts.iter().try_for_each(TargetText::validate)?;
    let lengths: Vec<_> = texts.iter().map(|text| text.inputs().len()).collect();
    let plan = Plan::new(&lengths, model.world_size(), model.settings().micro_batch_tokens)?;
    let members = |round: &Vec<usize>| round.iter().map(|&index| &texts[index]).collect();
    Ok(plan.rank(model.rank()).iter().map(members).collect())
}

fn all_targets(texts: &[TargetText]) -> Result<f64> {
    match texts.iter().map(TargetText::target_count).sum::<usize>() {
        0 => Err(EngineError::Unsuited("a batch without target tokens has no loss".to_owned())),
        count => Ok(count as f64),
    }
}

fn negative_sum(logp_m: &Tensor) -> f64 {
    -logp_m.sum(Kind::Double).double_value(&[])
}

/// The loss of all ranks; each of them refuses one that is no number.
fn finite_over_ranks(model: &ShardedModel, loss: f64) -> Result<f64> {
    let [value] = model.sum_over_ranks([loss])?;
    if value.is_finite() {
        return Ok(value);
    }
    let quantity = "the loss".to_owned();
    Err(EngineError::NonFinite { quantity, value, step: model.optimizer_step() })
}

fn metrics(texts: &[TargetText], loss: f64) -> Result<Metrics> {
    let entries = [("loss", loss), ("tokens", all_targets(texts)?), ("texts", texts.len() as f64)];
    Ok(entries.into_iter().map(|(name, value)| (name.to_owned(), value)).collect())
}
