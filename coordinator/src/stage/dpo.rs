//! `dpo`: the model learns to prefer the better of two answers. The reference of log-ratios is
//! the model before the stage; its log-probs are computed once, by the ranks that then train.

use std::collections::BTreeMap;

use plumb_config::{DpoStage, PreferenceLoss};
use plumb_domain::Role;
use plumb_proto::actor::{AnswerPair, PreferenceLossSpec};

use super::course::{Course, Learner, require_accuracy, run as run_course, with_repeats};
use super::rows::dpo_needs;
use super::training_data::{EncodedPair, PairSource, Split, encoded_pairs};
use super::{Figures, Outputs, StageContext, export_model};
use crate::fleet::trainer::{Trainer, TrainerSettings};
use crate::job::error::JobError;
use crate::ports::{Answer, PhaseError};

/// Pairs whose reference log-probs are asked for in one call.
const PAIRS_PER_CALL: usize = 256;

pub(super) async fn run(
    stage: &DpoStage,
    context: &StageContext,
    outputs: &mut Outputs,
) -> Result<Figures, JobError> {
    let attempt = || train(stage, context, outputs);
    let figures = with_repeats(context, &stage.name, Role::Policy, attempt).await?;
    outputs.trained(context, &stage.name);
    require_accuracy(context, &stage.name, &figures, stage.min_accuracy)?;
    Ok(figures)
}

async fn train(
    stage: &DpoStage,
    context: &StageContext,
    outputs: &Outputs,
) -> Result<Figures, JobError> {
    let group = context.fleet.group(Role::Policy).await?;
    let settings = TrainerSettings {
        model: outputs.model.clone(),
        head: None,
        frozen_layers: stage.frozen_layers,
        optimizer: &stage.optimizer,
        lora: stage.lora.as_ref(),
    };
    let trainer = Trainer::load(group, &context.recipe, settings).await?;
    let source = PairSource {
        stage: &stage.name,
        pairs: stage.pairs.as_deref(),
        train: &stage.train,
        heldout: &stage.heldout,
        max_tokens: stage.max_tokens,
        needs: dpo_needs(stage),
        pops: stage.loss.compares_pairs(),
    };
    let data = encoded_pairs(context, &trainer, &source, outputs).await?;
    let answers = |pairs: Vec<EncodedPair>| pairs.into_iter().map(|pair| pair.answers).collect();
    let mut pairs: Split<AnswerPair> =
        Split { train: answers(data.train), heldout: answers(data.heldout), figures: data.figures };
    if stage.loss != PreferenceLoss::Simpo {
        let start = std::time::Instant::now();
        add_reference(&trainer, &mut pairs.train).await?;
        add_reference(&trainer, &mut pairs.heldout).await?;
        context.log.span("dpo", "reference", start.elapsed().as_secs_f64(), true);
    }
    let course = Course {
        stage: &stage.name,
        kind: "dpo",
        rows: pairs.train.len(),
        rows_per_step: stage.pairs_per_step,
        epochs: stage.epochs,
        eval_every_steps: stage.eval_every_steps,
        optimizer: &stage.optimizer,
    };
    let loss = PreferenceLossSpec {
        kind: stage.loss.as_str().to_owned(),
        beta: stage.beta,
        label_smoothing: stage.label_smoothing,
        margin: stage.margin,
        own_margins: stage.own_margins,
        margin_min: stage.margin_min.unwrap_or(0.0),
        margin_max: stage.margin_max.unwrap_or(10.0),
        lambda: stage.pop_lambda.unwrap_or(1.0),
    };
    let learner = Preferences { trainer: &trainer, pairs: &pairs, loss };
    let mut figures = run_course(&course, &learner, &trainer, context).await?;
    figures.extend(export_model(context, &trainer, &stage.name, stage.lora.as_ref()).await?);
    figures.extend(pairs.figures);
    Ok(figures)
}

/// Gives every pair, and its unpreferred one, the log-probs of its answers under the model as it
/// is.
async fn add_reference(trainer: &Trainer, pairs: &mut [AnswerPair]) -> Result<(), PhaseError> {
    let others = |pair: &mut AnswerPair| pair.unpreferred.take().map(|other| *other);
    let mut unpreferred: Vec<_> = pairs.iter_mut().filter_map(others).collect();
    add_reference_to_single(trainer, pairs).await?;
    add_reference_to_single(trainer, &mut unpreferred).await?;
    // Every pair has one or none has.
    for (pair, other) in pairs.iter_mut().zip(unpreferred) {
        pair.unpreferred = Some(Box::new(other));
    }
    Ok(())
}

async fn add_reference_to_single(
    trainer: &Trainer,
    pairs: &mut [AnswerPair],
) -> Result<(), PhaseError> {
    for part in pairs.chunks_mut(PAIRS_PER_CALL) {
        let rows = trainer.answer_log_probs(part).await?;
        let rows: BTreeMap<_, _> = rows.into_iter().map(|row| (row.id, row.logps)).collect();
        for pair in part {
            pair.reference = rows.get(&pair.id).copied().flatten();
            if pair.reference.is_none() {
                let problem = format!("pair {:?} got no reference log-probs", pair.id);
                return Err(PhaseError::Failed(problem));
            }
        }
    }
    Ok(())
}

/// A language model on pairs of answers.
struct Preferences<'a> {
    trainer: &'a Trainer,
    pairs: &'a Split<AnswerPair>,
    loss: PreferenceLossSpec,
}

impl Learner for Preferences<'_> {
    fn train<'a>(
        &'a self,
        step: u64,
        rows: &'a [usize],
        learning_rate: f64,
    ) -> Answer<'a, Figures> {
        let pairs: Vec<_> = rows.iter().map(|&row| self.pairs.train[row].clone()).collect();
        Box::pin(async move {
            self.trainer.train_preferences(step, &pairs, &self.loss, learning_rate).await
        })
    }

    fn finish(&self) -> Answer<'_, ()> {
        Box::pin(self.trainer.adopt_average())
    }

    fn measure(&self, steps: u64) -> Answer<'_, Figures> {
        Box::pin(async move {
            match self.pairs.heldout.as_slice() {
                [] => Ok(Figures::new()),
                pairs => self.trainer.measure_preferences(steps, pairs, &self.loss).await,
            }
        })
    }
}
