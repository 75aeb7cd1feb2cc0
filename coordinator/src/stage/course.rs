//! The loop of a stage that trains on a data set: every epoch's rows in a seeded order, a
//! learning rate for each step, held-out figures before, between and after, commits to disk, and
//! what a lost rank means.
//!
//! Rows and learning rate are functions of the step, so that a commit needs to say no more of
//! them than the step.

use std::future::Future;
use std::sync::Arc;
use std::time::Instant;

use plumb_config::OptimizerConfig;
use plumb_data::{Order, Position};
use plumb_domain::Role;
use serde::{Deserialize, Serialize};

use super::skipped::warn_of_skipped;
use super::{Figures, StageContext};
use crate::checkpoint::Commit;
use crate::fleet::trainer::Trainer;
use crate::job::error::JobError;
use crate::learning_rate::learning_rate;
use crate::ports::{Answer, PhaseError};

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
        u64::from(self.epochs) * self.steps_per_epoch()
    }

    fn steps_per_epoch(&self) -> u64 {
        self.rows.div_ceil(self.rows_per_step) as u64
    }

    /// Where the rows of a step begin.
    fn position(&self, step: u64) -> Position {
        let per_epoch = self.steps_per_epoch().max(1);
        let index = (step % per_epoch) * self.rows_per_step as u64;
        Position { epoch: step / per_epoch, index }
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

/// What a stage's commits keep beside the ranks' shards.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
struct Progress {
    /// Rows of the course; another number is another course.
    rows: usize,
    /// Held-out figures before the first step.
    before: Figures,
    /// The last held-out figures.
    after: Figures,
}

/// Runs the course from its newest sound commit on, or from its start. Returns `steps`, and each
/// held-out figure as `heldout_NAME` (after the last step) and `heldout_NAME_before` (before the
/// first).
pub(super) async fn run(
    course: &Course<'_>,
    learner: &impl Learner,
    trainer: &Trainer,
    context: &StageContext,
) -> Result<Figures, JobError> {
    let steps = course.steps();
    let rates = learning_rate(course.optimizer, steps)
        .map_err(|error| PhaseError::Failed(error.to_string()))?;
    let commits = context.commits(course.stage, vec![Arc::clone(trainer.group())]);
    let (first, mut progress) = match commits.restore(None).await? {
        Some(commit) => (commit.next_step, progress(course, &commit)?),
        None => {
            let before = learner.measure(0).await?;
            (0, Progress { rows: course.rows, before, ..Progress::default() })
        }
    };
    // Steps after the commit are run again.
    context.log.rewind(course.stage, first)?;
    let order = Order::new(course.rows, context.recipe.seed);
    let mut batches = order.starting_at(course.position(first)).map_err(|error| {
        JobError::Stage { stage: course.stage.to_owned(), problem: error.to_string() }
    })?;
    let rule = &context.recipe.checkpoint;
    let best_is_heldout = rule.keep_best.as_ref().is_some_and(|name| name.starts_with("heldout_"));
    for step in first..steps {
        let start = Instant::now();
        let rows = batches.next_batch(course.rows_per_step);
        let mut figures = learner.train(step, &rows, rates.rate(step)).await?;
        warn_of_skipped(&context.events, course.stage, step + 1, &figures);
        let done = step + 1;
        if done == steps {
            learner.finish().await?;
        }
        let due = |every: u64| done == steps || (every > 0 && done % every == 0);
        let commit_due = due(rule.every_steps);
        if due(course.eval_every_steps) || (commit_due && best_is_heldout) {
            progress.after = learner.measure(done).await?;
            figures.extend(heldout(&progress.after, ""));
        }
        let seconds = start.elapsed().as_secs_f64();
        context.log.span(course.kind, &format!("step {done}"), seconds, true);
        context.log.step(course.stage, done, &figures)?;
        context.events.step_finished(course.stage, done, steps, &figures);
        // What a commit counts as done is in the log by now.
        commits.finish().await?;
        if commit_due {
            let mut commit = commits.commit(done);
            commit.algorithm_state = serde_json::to_value(&progress)?;
            commit.figures = figures;
            commits.begin(commit).await?;
        }
    }
    commits.finish().await?;
    let mut figures: Figures = [("steps".to_owned(), steps as f64)].into();
    figures.extend(heldout(&progress.after, ""));
    // The number of rows does not change.
    figures.extend(heldout(&progress.before, "_before").filter(|(name, _)| !is_count(name)));
    Ok(figures)
}

/// What a commit says of a course, which must be this one.
fn progress(course: &Course<'_>, commit: &Commit) -> Result<Progress, JobError> {
    let progress: Progress = serde_json::from_value(commit.algorithm_state.clone())?;
    if progress.rows == course.rows {
        return Ok(progress);
    }
    Err(JobError::Stage {
        stage: course.stage.to_owned(),
        problem: format!(
            "its checkpoint was trained on {} rows, and there are {} now; give it the same data, \
             or run it from its start",
            progress.rows, course.rows
        ),
    })
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

/// Runs `attempt` until no rank is lost on the way, and then releases the group. Each attempt
/// goes on from the stage's newest commit; the group's restart budget ends the repetition.
pub(super) async fn with_repeats<F>(
    context: &StageContext,
    stage: &str,
    role: Role,
    attempt: impl Fn() -> F,
) -> Result<Figures, JobError>
where
    F: Future<Output = Result<Figures, JobError>>,
{
    let figures = loop {
        match attempt().await {
            Err(JobError::Phase(PhaseError::Lost { worker, cause, .. })) => {
                context.log.restarted();
                let text = format!(
                    "{worker} lost ({cause}); stage {stage} goes on from its last checkpoint"
                );
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
        let order = Order::new(7, 1);
        let mut batches = order.starting_at(Position::default()).unwrap();
        let all: Vec<_> = (0..course.steps()).map(|_| batches.next_batch(3)).collect();
        assert_eq!(all.iter().map(Vec::len).collect::<Vec<_>>(), [3, 3, 1, 3, 3, 1]);
        assert_eq!(batches.position(), Position { epoch: 1, index: 7 });
        // A resumed run has the rows of the uninterrupted one.
        for (step, rows) in (0..).zip(&all) {
            let mut resumed = order.starting_at(course.position(step)).unwrap();
            assert_eq!(resumed.next_batch(3), *rows, "step {step}");
        }
    }

    #[test]
    fn counts_are_told_once() {
        let figures: Figures = [("loss".to_owned(), 1.0), ("tokens".to_owned(), 9.0)].into();
        let before: Vec<_> =
            heldout(&figures, "_before").filter(|(name, _)| !is_count(name)).collect();
        assert_eq!(before, [("heldout_loss_before".to_owned(), 1.0)]);
    }
}
