//! The loop of a stage that trains on a data set: every epoch's rows in a seeded order, a
//! learning rate for each step, held-out figures before, between and after, and what a lost rank
//! means.

use std::future::Future;
use std::time::Instant;

use plumb_config::OptimizerConfig;
use plumb_data::{Order, Position};
use plumb_domain::Role;

use super::skipped::warn_of_skipped;
use super::{Figures, StageContext};
use crate::job::error::JobError;
use crate::learning_rate::learning_rate;
use crate::ports::{Answer, PhaseError};

/// Whole repeats of a stage after a lost rank: it is short and keeps no checkpoint.
const REPEATS: u32 = 2;

/// How a stage goes over its rows.
pub(super) struct Course<'a> {
    /// The stage's name.
    pub(super) stage: &'a str,
    /// The stage's kind; its lane on the timeline.
    pub(super) kind: &'static str,
    /// Rows to train on.
    pub(super) rows: usize,
    /// Rows in an optimiser step.
    pub(super) rows_per_step: usize,
    /// Passes over the rows.
    pub(super) epochs: u32,
    /// Steps between held-out measurements; 0: before the first step and after the last.
    pub(super) eval_every_steps: u64,
    /// The schedule.
    pub(super) optimizer: &'a OptimizerConfig,
}

impl Course<'_> {
    /// Optimiser steps of all epochs; the last one of an epoch may have fewer rows.
    fn steps(&self) -> u64 {
        u64::from(self.epochs) * self.rows.div_ceil(self.rows_per_step) as u64
    }
}

/// What is trained.
pub(super) trait Learner: Sync {
    /// One optimiser step on rows, given by position. `step` counts from 0.
    fn train<'a>(&'a self, step: u64, rows: &'a [usize], learning_rate: f64)
    -> Answer<'a, Figures>;

    /// After the last step: a moving average takes the place of the weights.
    fn finish(&self) -> Answer<'_, ()>;

    /// Figures of the held-out rows after `steps` steps; none where there are no such rows.
    fn measure(&self, steps: u64) -> Answer<'_, Figures>;
}

/// Runs the course. Returns `steps`, and each held-out figure as `heldout_NAME` (after the last
/// step) and `heldout_NAME_before` (before the first).
pub(super) async fn run(
    course: &Course<'_>,
    learner: &impl Learner,
    context: &StageContext,
) -> Result<Figures, JobError> {
    let steps = course.steps();
    let rates = learning_rate(course.optimizer, steps)
        .map_err(|error| PhaseError::Failed(error.to_string()))?;
    let order = Order::new(course.rows, context.recipe.seed);
    let mut batches = order.starting_at(Position::default()).map_err(|error| JobError::Stage {
        stage: course.stage.to_owned(),
        problem: error.to_string(),
    })?;
    let before = learner.measure(0).await?;
    let mut after = Figures::new();
    for step in 0..steps {
        let start = Instant::now();
        let rows = batches.next_batch(course.rows_per_step);
        let mut figures = learner.train(step, &rows, rates.rate(step)).await?;
        warn_of_skipped(&context.events, course.stage, step + 1, &figures);
        let done = step + 1;
        if done == steps {
            learner.finish().await?;
        }
        if done == steps || (course.eval_every_steps > 0 && done % course.eval_every_steps == 0) {
            after = learner.measure(done).await?;
            figures.extend(heldout(&after, ""));
        }
        let seconds = start.elapsed().as_secs_f64();
        context.log.span(course.kind, &format!("step {done}"), seconds, true);
        context.log.step(course.stage, done, &figures)?;
        context.events.step_finished(course.stage, done, steps, &figures);
    }
    let mut figures: Figures = [("steps".to_owned(), steps as f64)].into();
    figures.extend(heldout(&after, ""));
    // The number of rows does not change.
    figures.extend(heldout(&before, "_before").filter(|(name, _)| !is_count(name)));
    Ok(figures)
}

fn heldout<'a>(
    figures: &'a Figures,
    suffix: &'a str,
) -> impl Iterator<Item = (String, f64)> + use<'a> {
    figures.iter().map(move |(name, value)| (format!("heldout_{name}{suffix}"), *value))
}

fn is_count(name: &str) -> bool {
    ["pairs", "tokens", "texts"].iter().any(|count| name == format!("heldout_{count}_before"))
}

/// Runs `attempt` until no rank is lost on the way, a few times, and then releases the group.
pub(super) async fn with_repeats<F>(
    context: &StageContext,
    stage: &str,
    role: Role,
    attempt: impl Fn() -> F,
) -> Result<Figures, JobError>
where
    F: Future<Output = Result<Figures, JobError>>,
{
    let mut repeats = 0;
    let figures = loop {
        match attempt().await {
            Err(JobError::Phase(PhaseError::Lost { worker, cause, .. })) if repeats < REPEATS => {
                repeats += 1;
                context.log.restarted();
                let text = format!("{worker} lost ({cause}); stage {stage} from its start");
                context.events.notice("warn", text);
                context.fleet.group(role).await?.wait_ready().await?;
            }
            other => break other?,
        }
    };
    context.fleet.release(role).await;
    Ok(figures)
}

/// Refuses a stage whose held-out accuracy is too low.
pub(super) fn require_accuracy(
    context: &StageContext,
    stage: &str,
    figures: &Figures,
    min_accuracy: f64,
) -> Result<(), JobError> {
    match figures.get("heldout_accuracy") {
        Some(accuracy) if *accuracy < min_accuracy => Err(JobError::Stage {
            stage: stage.to_owned(),
            problem: format!(
                "held-out accuracy {accuracy:.3} is below min_accuracy {min_accuracy}; the model \
                 is in {}",
                context.folder.model(stage).display()
            ),
        }),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_steps_are_the_batches_of_all_epochs() {
        let optimizer: OptimizerConfig = toml::from_str("learning_rate = 1e-5").unwrap();
        let course = Course {
            stage: "sft",
            kind: "sft",
            rows: 7,
            rows_per_step: 3,
            epochs: 2,
            eval_every_steps: 0,
            optimizer: &optimizer,
        };
        let mut batches = Order::new(7, 1).starting_at(Position::default()).unwrap();
        let sizes = (0..course.steps()).map(|_| batches.next_batch(3).len()).collect::<Vec<_>>();
        assert_eq!(sizes, [3, 3, 1, 3, 3, 1]);
        assert_eq!(batches.position(), Position { epoch: 1, index: 7 });
    }

    #[test]
    fn counts_are_told_once() {
        let figures: Figures = [("loss".to_owned(), 1.0), ("tokens".to_owned(), 9.0)].into();
        let before: Vec<_> =
            heldout(&figures, "_before").filter(|(name, _)| !is_count(name)).collect();
        assert_eq!(before, [("heldout_loss_before".to_owned(), 1.0)]);
    }
}
