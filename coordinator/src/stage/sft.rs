//! `sft`: the model learns the assistant's turns of dialogues.

use plumb_config::SftStage;
use plumb_domain::Role;
use plumb_proto::actor::TargetText;

use super::course::{Course, Learner, run as run_course, with_repeats};
use super::training_data::{Split, encoded_dialogues};
use super::{Figures, Outputs, StageContext, export_model};
use crate::fleet::trainer::{Trainer, TrainerSettings};
use crate::job::error::JobError;
use crate::ports::Answer;

pub(super) async fn run(
    stage: &SftStage,
    context: &StageContext,
    outputs: &mut Outputs,
) -> Result<Figures, JobError> {
    let attempt = || train(stage, context, &outputs.model);
    let figures = with_repeats(context, &stage.name, Role::Policy, attempt).await?;
    outputs.trained(context, &stage.name);
    match (figures.get("heldout_loss"), stage.max_loss) {
        (Some(loss), Some(most)) if *loss > most => Err(JobError::Stage {
            stage: stage.name.clone(),
            problem: format!(
                "held-out loss {loss:.4} is above max_loss {most}; the model is in {}",
                context.folder.model(&stage.name).display()
            ),
        }),
        _ => Ok(figures),
    }
}

async fn train(
    stage: &SftStage,
    context: &StageContext,
    model: &std::path::Path,
) -> Result<Figures, JobError> {
    let group = context.fleet.group(Role::Policy).await?;
    let settings = TrainerSettings {
        model: model.to_owned(),
        head: None,
        frozen_layers: stage.frozen_layers,
        optimizer: &stage.optimizer,
        lora: stage.lora.as_ref(),
    };
    let trainer = Trainer::load(group, &context.recipe, settings).await?;
    let data = encoded_dialogues(context, &trainer, stage).await?;
    let course = Course {
        stage: &stage.name,
        kind: "sft",
        rows: data.train.len(),
        rows_per_step: stage.dialogues_per_step,
        epochs: stage.epochs,
        eval_every_steps: stage.eval_every_steps,
        optimizer: &stage.optimizer,
    };
    let learner = Dialogues { trainer: &trainer, data: &data };
    let mut figures = run_course(&course, &learner, &trainer, context).await?;
    figures.extend(export_model(context, &trainer, &stage.name, stage.lora.as_ref()).await?);
    figures.extend(data.figures);
    Ok(figures)
}

/// A language model on dialogues.
struct Dialogues<'a> {
    trainer: &'a Trainer,
    data: &'a Split<TargetText>,
}

impl Learner for Dialogues<'_> {
    fn train<'a>(
        &'a self,
        step: u64,
        rows: &'a [usize],
        learning_rate: f64,
    ) -> Answer<'a, Figures> {
        let texts: Vec<_> = rows.iter().map(|&row| self.data.train[row].clone()).collect();
        Box::pin(async move { self.trainer.train_texts(step, &texts, learning_rate).await })
    }

    fn finish(&self) -> Answer<'_, ()> {
        Box::pin(self.trainer.adopt_average())
    }

    fn measure(&self, steps: u64) -> Answer<'_, Figures> {
        Box::pin(async move {
            match self.data.heldout.as_slice() {
                [] => Ok(Figures::new()),
                texts => self.trainer.measure_texts(steps, texts).await,
            }
        })
    }
}
