//! Commits of a stage. The ranks copy their shards and go on training; the files are written
//! meanwhile and the commit is completed at the next step.
//!
//! | call | ranks | disk |
//! |---|---|---|
//! | [`Commits::begin`] | copy their shards, write in the background | nothing that counts |
//! | [`Commits::finish`] | wait for their files | `commit.json`; older commits go |
//! | [`Commits::restore`] | load the newest commit that all of them find sound | damaged ones are put aside |

use std::collections::BTreeMap;
use std::future::Future;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use futures::future::try_join_all;
use plumb_config::{self as config, CheckpointConfig};
use plumb_domain::PolicyVersion;
use plumb_proto::actor::{FinishCheckpointRequest, LoadCheckpointRequest, SaveCheckpointRequest};
use plumb_proto::worker::CallContext;
use tonic::Status;

use super::RoleGroup;
use super::group::CallId;
use super::reference::client;
use crate::checkpoint::{Best, COMMIT, CheckpointError, Commit, Part, Shelf, seal};
use crate::cluster::Worker;
use crate::job::events::EventLog;
use crate::ports::PhaseError;

/// Writes and restores the commits of one stage.
pub struct Commits {
    stage: String,
    shelf: Shelf,
    /// All that is trained; each has a folder of its role's name in a commit.
    groups: Vec<Arc<RoleGroup>>,
    events: Arc<EventLog>,
    /// The commit whose files are being written.
    pending: Mutex<Option<Commit>>,
}

impl Commits {
    /// The commits of `stage` below `root`, kept as the recipe's `[checkpoint]` says.
    #[must_use]
    pub fn new(
        stage: &str,
        root: PathBuf,
        rule: &CheckpointConfig,
        groups: Vec<Arc<RoleGroup>>,
        events: Arc<EventLog>,
    ) -> Self {
        let best = rule.keep_best.clone().zip(rule.best);
        let best = best.map(|(figure, best)| Best { figure, lower: best == config::Best::Lowest });
        let shelf = Shelf::new(root, rule.keep, best);
        Self { stage: stage.to_owned(), shelf, groups, events, pending: Mutex::default() }
    }

    /// A commit of the state before `next_step`, to be filled in and begun.
    #[must_use]
    pub fn commit(&self, next_step: u64) -> Commit {
        Commit::new(&self.stage, next_step)
    }

    /// Lets every rank write its shards.
    ///
    /// # Errors
    /// A rank was lost, or the disk refused.
    pub async fn begin(&self, commit: Commit) -> Result<(), PhaseError> {
        let folder = self.shelf.make(commit.next_step).map_err(failed)?;
        let folder = &folder;
        try_join_all(self.groups.iter().map(|group| async move {
            let part = folder.join(group.role().as_str());
            let save = |worker: Worker, context| {
                let folder = part.display().to_string();
                let request = SaveCheckpointRequest { context: Some(context), folder };
                async move { Ok(client(&worker).save_checkpoint(request).await?.into_inner()) }
            };
            all_ranks(group, commit.next_step, "save_checkpoint", save).await
        }))
        .await?;
        *self.pending() = Some(commit);
        Ok(())
    }

    /// Adds figures of the last step of the commit that was begun, if they are that step's.
    pub fn note(&self, next_step: u64, figures: &BTreeMap<String, f64>) {
        if let Some(commit) = self.pending().as_mut()
            && commit.next_step == next_step
        {
            commit.figures.extend(figures.clone());
        }
    }

    /// Completes the commit that was begun: from then on a resumed run starts there. `None`
    /// where none was begun.
    ///
    /// # Errors
    /// A rank was lost, or the disk refused; the commit then never happened.
    pub async fn finish(&self) -> Result<Option<Commit>, PhaseError> {
        let Some(mut commit) = self.pending().take() else { return Ok(None) };
        let step = commit.next_step;
        let parts = try_join_all(self.groups.iter().map(|group| async move {
            let finish = |worker: Worker, context| {
                let request = FinishCheckpointRequest { context: Some(context) };
                async move { Ok(client(&worker).finish_checkpoint(request).await?.into_inner()) }
            };
            all_ranks(group, step, "finish_checkpoint", finish).await
        }));
        for (group, ranks) in self.groups.iter().zip(parts.await?) {
            let role = group.role();
            if ranks.iter().any(|rank| rank.files.is_empty()) {
                let problem = format!("a {role} rank knows of no checkpoint of step {step}");
                return Err(PhaseError::Failed(problem));
            }
            let files = ranks.iter().flat_map(|rank| &rank.files).map(Into::into);
            let part = Part { world_size: ranks.len(), files: files.collect() };
            commit.parts.insert(role.as_str().to_owned(), part);
        }
        if let Some(best) = self.shelf.figure().filter(|best| !commit.figures.contains_key(*best)) {
            let text = format!(
                "checkpoint.keep_best: stage {} has no figure {best:?} at step {step}; only its newest \
                 checkpoints are kept",
                self.stage
            );
            self.events.notice("warn", text);
        }
        seal(&self.shelf.folder(commit.next_step), &commit).map_err(failed)?;
        self.shelf.prune().map_err(failed)?;
        Ok(Some(commit))
    }

    /// Loads the newest commit that every rank finds sound, whatever number of ranks wrote it; the
    /// weights get `version`, or else the commit's. Damaged ones are told by name and put aside.
    /// `None` where there is no commit yet: the ranks keep what they have.
    ///
    /// # Errors
    /// A rank was lost; commits are there and none is sound.
    pub async fn restore(
        &self,
        version: Option<PolicyVersion>,
    ) -> Result<Option<Commit>, PhaseError> {
        *self.pending() = None;
        let mut refused: Vec<(PathBuf, String)> = Vec::new();
        for (folder, commit) in self.shelf.list() {
            if !folder.join(COMMIT).exists() {
                let text = format!("{} was never completed and is passed over", folder.display());
                self.events.notice("info", text);
                continue;
            }
            let tried = match commit {
                Ok(commit) => self.load(&folder, commit, version).await?,
                Err(problem) => Err(vec![problem.to_string()]),
            };
            match tried {
                Ok(commit) => {
                    let (stage, folder) = (&self.stage, folder.display());
                    let text = format!("stage {stage} goes on from {folder}");
                    self.events.notice("info", text);
                    for (folder, _) in &refused {
                        self.shelf.refuse(folder).map_err(failed)?;
                    }
                    return Ok(Some(commit));
                }
                Err(problems) => {
                    let problem = problems.join("; ");
                    tracing::warn!(folder = %folder.display(), problem, "checkpoint refused");
                    self.events.notice("warn", format!("checkpoint refused: {problem}"));
                    refused.push((folder, problem));
                }
            }
        }
        if refused.is_empty() {
            return Ok(None);
        }
        let problems: Vec<_> = refused.into_iter().map(|(_, problem)| problem).collect();
        Err(PhaseError::Failed(format!(
            "no checkpoint of stage {} can be used: {}",
            self.stage,
            problems.join("; ")
        )))
    }

    /// Loads one commit into all groups; what is wrong with it, if it is not sound.
    async fn load(
        &self,
        folder: &Path,
        commit: Commit,
        version: Option<PolicyVersion>,
    ) -> Result<Result<Commit, Vec<String>>, PhaseError> {
        let policy_version = version.map_or(commit.policy_version, |version| version.0);
        let step = commit.next_step;
        let load = try_join_all(self.groups.iter().map(|group| async move {
            let part = folder.join(group.role().as_str()).display().to_string();
            let load = |worker: Worker, context| {
                let (context, folders) = (Some(context), vec![part.clone()]);
                let request = LoadCheckpointRequest { context, folders, policy_version };
                async move { Ok(client(&worker).load_checkpoint(request).await?.into_inner()) }
            };
            all_ranks(group, step, "load_checkpoint", load).await
        }));
        let answers: Vec<_> = load.await?.into_iter().flatten().collect();
        if answers.iter().all(|answer| !answer.folder.is_empty()) {
            return Ok(Ok(commit));
        }
        let refused = answers.iter().flat_map(|answer| &answer.refused);
        let mut problems: Vec<_> = refused.map(|refused| refused.problem.clone()).collect();
        // A rank that found nothing wrong itself says nothing.
        problems.retain(|problem| !problem.is_empty());
        problems.sort();
        problems.dedup();
        Ok(Err(problems))
    }

    fn pending(&self) -> std::sync::MutexGuard<'_, Option<Commit>> {
        self.pending.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The same call to every rank of a group, each with its own context.
async fn all_ranks<T, F>(
    group: &RoleGroup,
    step: u64,
    phase: &'static str,
    call: impl Fn(Worker, CallContext) -> F,
) -> Result<Vec<T>, PhaseError>
where
    F: Future<Output = Result<T, Status>> + Send,
{
    let (workers, attempt) = (group.workers(), group.fresh_attempt());
    group
        .call_all(&workers, phase, |worker, shard| {
            let context = group.context(&worker, &CallId { step, phase, shard, attempt });
            call(worker, context)
        })
        .await
}

fn failed(error: CheckpointError) -> PhaseError {
    PhaseError::Failed(error.to_string())
}
