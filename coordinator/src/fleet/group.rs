//! One role's workers, and calls to them.

use std::future::Future;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use futures::future::{select_all, try_join_all};
use plumb_domain::{JobId, Role};
use plumb_proto::worker::CallContext;
use tokio_util::sync::CancellationToken;
use tonic::Status;

use super::Fleet;
use crate::cluster::{CallError, Cluster, Group, Worker};
use crate::ports::PhaseError;

/// Within this time the coordinator hears of a process that has ended.
const NOTICE: Duration = Duration::from_secs(3);

/// A role's worker group within a job.
pub struct RoleGroup {
    group: Group,
    role: Role,
    job: JobId,
    prefix: String,
    /// The workers as they were when the group was last ready. A call to one that has ended since
    /// then fails as lost, which is how its loss is noticed.
    current: Mutex<Vec<Worker>>,
    cluster: Cluster,
    phase_timeout: Duration,
    collective_timeout: Duration,
    gpus: bool,
    cancel: CancellationToken,
    attempts: AtomicU32,
}

impl RoleGroup {
    pub(super) fn new(group: Group, role: Role, fleet: &Fleet) -> Self {
        Self {
            group,
            role,
            job: fleet.job.clone(),
            prefix: fleet.prefix.clone(),
            current: Mutex::default(),
            cluster: fleet.cluster.clone(),
            phase_timeout: fleet.phase_timeout(),
            collective_timeout: fleet.collective_timeout(),
            gpus: fleet.config(role).gpus > 0.0,
            cancel: fleet.cancel.clone(),
            attempts: AtomicU32::new(0),
        }
    }

    /// An attempt number that no set-up call of this group has had.
    #[must_use]
    pub fn fresh_attempt(&self) -> u32 {
        self.attempts.fetch_add(1, Ordering::Relaxed)
    }

    /// The role.
    #[must_use]
    pub fn role(&self) -> Role {
        self.role
    }

    /// The workers under the epochs that they had when the group was last ready.
    #[must_use]
    pub fn workers(&self) -> Vec<Worker> {
        self.current.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Waits until every worker is up after a loss.
    ///
    /// # Errors
    /// The group was given up: its restart budget is used up.
    pub async fn wait_ready(&self) -> Result<(), PhaseError> {
        let workers = tokio::select! {
            ready = self.group.wait_ready() => ready.map_err(|error| {
                PhaseError::Failed(crate::job::error::chain(&error))
            })?,
            () = self.cancel.cancelled() => return Err(PhaseError::Cancelled),
        };
        *self.current.lock().unwrap_or_else(PoisonError::into_inner) = workers;
        Ok(())
    }

    /// Starts every worker anew under a new epoch: for a state that cannot be trusted.
    ///
    /// # Errors
    /// The group is gone.
    pub fn restart(&self, reason: &str) -> Result<(), PhaseError> {
        self.group
            .restart(reason)
            .map_err(|error| PhaseError::Failed(crate::job::error::chain(&error)))
    }

    /// Stops the workers.
    pub fn release(&self) {
        self.group.release();
    }

    /// The name of one of this job's collectives.
    #[must_use]
    pub fn collective_name(&self, name: &str) -> String {
        format!("{}{name}", self.prefix)
    }

    /// The context of a call.
    #[must_use]
    pub fn context(&self, worker: &Worker, call: &CallId<'_>) -> CallContext {
        worker.context(self.job.as_str(), call.step, call.phase, call.shard, call.attempt)
    }

    /// Calls one worker; the call ends at once when the worker is lost or the job cancelled.
    ///
    /// # Errors
    /// [`PhaseError`] with worker, phase and cause.
    pub async fn call<T>(
        &self,
        worker: &Worker,
        phase: &str,
        call: impl Future<Output = Result<T, Status>> + Send,
    ) -> Result<T, PhaseError> {
        let limited = tokio::time::timeout(self.phase_timeout, worker.call(phase, call));
        tokio::select! {
            done = limited => match done {
                Ok(Ok(value)) => Ok(value),
                Ok(Err(error)) => Err(self.phase_error(&error)),
                Err(_) => Err(PhaseError::Failed(format!(
                    "worker {} did not end {phase} within {} s (timeouts.phase_secs)",
                    worker.id(),
                    self.phase_timeout.as_secs_f64()
                ))),
            },
            () = self.cancel.cancelled() => Err(PhaseError::Cancelled),
        }
    }

    /// Calls every worker at once, in the order of ranks. The first loss ends it.
    ///
    /// # Errors
    /// As [`RoleGroup::call`].
    pub async fn call_all<T, F>(
        &self,
        workers: &[Worker],
        phase: &str,
        call: impl Fn(Worker, u32) -> F,
    ) -> Result<Vec<T>, PhaseError>
    where
        F: Future<Output = Result<T, Status>> + Send,
    {
        let answers = try_join_all(workers.iter().enumerate().map(|(rank, worker)| {
            let call = call(worker.clone(), rank as u32);
            self.call(worker, phase, call)
        }))
        .await;
        match answers {
            Err(PhaseError::Failed(cause)) => Err(self.blame(workers, phase, cause).await),
            other => other,
        }
    }

    /// When a peer dies, the others may fail before the coordinator hears of the death: a failure
    /// waits a moment for a loss that explains it.
    async fn blame(&self, workers: &[Worker], phase: &str, cause: String) -> PhaseError {
        let losses = workers.iter().map(|worker| Box::pin(worker.lost()));
        if workers.is_empty() {
            return PhaseError::Failed(cause);
        }
        match tokio::time::timeout(NOTICE, select_all(losses)).await {
            Ok((loss, _, _)) => PhaseError::Lost {
                role: self.role_of(loss.worker.as_str()),
                worker: loss.worker.to_string(),
                phase: phase.to_owned(),
                cause: loss.cause.clone(),
            },
            Err(_) => PhaseError::Failed(cause),
        }
    }

    /// Forms a collective of the given workers.
    ///
    /// # Errors
    /// A member was lost or refused.
    pub async fn collective(&self, name: &str, members: &[Worker]) -> Result<(), PhaseError> {
        let backend = if self.gpus { "nccl" } else { "gloo" };
        let formed = self.cluster.init_collective(name, members, backend, self.collective_timeout);
        let formed = tokio::select! {
            formed = formed => formed.map(|_| ()).map_err(|error| self.phase_error(&error)),
            () = self.cancel.cancelled() => Err(PhaseError::Cancelled),
        };
        match formed {
            Err(PhaseError::Failed(cause)) => Err(self.blame(members, name, cause).await),
            other => other,
        }
    }

    /// Leaves a collective; members that are gone are passed over.
    pub async fn abort_collective(&self, name: &str) {
        self.cluster.abort_collective(name).await;
    }

    fn phase_error(&self, error: &CallError) -> PhaseError {
        let cause = error.to_string();
        match error {
            CallError::Lost { phase, loss } => PhaseError::Lost {
                role: self.role_of(loss.worker.as_str()),
                worker: loss.worker.to_string(),
                phase: phase.clone(),
                cause: loss.cause.clone(),
            },
            CallError::Failed { .. } => PhaseError::Failed(cause),
        }
    }

    /// A worker's role by its name, `<prefix><role>-<rank>` or `<prefix><role>.<n>-<rank>`: a
    /// collective has members of several.
    fn role_of(&self, worker: &str) -> Role {
        worker
            .strip_prefix(self.prefix.as_str())
            .and_then(|name| name.rsplit_once('-'))
            .and_then(|(group, _)| group.split('.').next()?.parse().ok())
            .unwrap_or(self.role)
    }
}

/// Which call this is, for the idempotency key.
#[derive(Debug, Clone, Copy)]
pub struct CallId<'a> {
    /// Step of the job.
    pub step: u64,
    /// Phase, unique within the step.
    pub phase: &'a str,
    /// Part of the work.
    pub shard: u32,
    /// Repeat.
    pub attempt: u32,
}
