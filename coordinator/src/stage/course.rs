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
use plumb_domain::Role;
use rand::SeedableRng as _;
use rand::seq::SliceRandom as _;
use rand_chacha::ChaCha8Rng;
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
    let batches = batches(course, context.recipe.seed);
    let steps = batches.len() as u64;
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
    let rule = &context.recipe.checkpoint;
    let best_is_heldout = rule.keep_best.as_ref().is_some_and(|name| name.starts_with("heldout_"));
    for (step, rows) in (0..).zip(&batches).skip(first as usize) {
        let start = Instant::now();
        let mut figures = learner.train(step, rows, rates.rate(step)).await?;
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

/// Positions of the rows of every step: each epoch's rows shuffled by seed, cut into steps; a
/// last short step of an epoch stays.
fn batches(course: &Course<'_>, seed: u64) -> Vec<Vec<usize>> {
    let mut batches = Vec::new();
    for epoch in 0..course.epochs {
        let mut order: Vec<usize> = (0..course.rows).collect();
        let mut random = ChaCha8Rng::seed_from_u64(seed);
        random.set_stream(u64::from(epoch));
        order.shuffle(&mut random);
        batches.extend(order.chunks(course.rows_per_step).map(<[usize]>::to_vec));
    }
    batches
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
    fn every_epoch_has_every_row_once_in_another_order() {
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
        let batches = batches(&course, 1);
        assert_eq!(batches.iter().map(Vec::len).collect::<Vec<_>>(), [3, 3, 1, 3, 3, 1]);
        let epoch = |e: usize| batches[e * 3..e * 3 + 3].concat();
        let mut sorted = epoch(0);
        sorted.sort_unstable();
        assert_eq!(sorted, (0..7).collect::<Vec<_>>());
        assert_ne!(epoch(0), epoch(1));
    }

    #[test]
    fn counts_are_told_once() {
        let figures: Figures = [("loss".to_owned(), 1.0), ("tokens".to_owned(), 9.0)].into();
        let before: Vec<_> =
            heldout(&figures, "_before").filter(|(name, _)| !is_count(name)).collect();
        assert_eq!(before, [("heldout_loss_before".to_owned(), 1.0)]);
    }
}
