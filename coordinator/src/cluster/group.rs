//! What stage code holds: a placed group, and its workers.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use plumb_domain::{Epoch, Role, WorkerId};
use plumb_machine::{Event, SlotView};
use plumb_proto::worker::CallContext;
use tonic::Status;
use tonic::transport::Channel;

use super::driver::{Driver, LostSignal};
use super::error::{CallError, GroupError, Loss};
use super::unless_lost;

/// A placed group. Cheap to clone; it stays placed until [`release`](Self::release).
#[derive(Clone)]
pub struct Group {
    driver: Arc<Driver>,
    name: String,
}

/// One life of one worker: after a restart, [`Group::workers`] hands out new ones.
#[derive(Clone)]
pub struct Worker {
    driver: Arc<Driver>,
    id: WorkerId,
    rank: u32,
    role: Role,
    epoch: Epoch,
    address: String,
    channel: Channel,
    lost: LostSignal,
}

impl Group {
    pub(super) fn new(driver: Arc<Driver>, name: String) -> Self {
        Self { driver, name }
    }

    /// The group's name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The workers in rank order, if all are live.
    ///
    /// # Errors
    /// [`GroupError`] when the group failed or was released. `None` while a rank is missing.
    pub fn workers(&self) -> Result<Option<Vec<Worker>>, GroupError> {
        let state = self.driver.lock();
        let released = || GroupError::Released { group: self.name.clone() };
        if let Some(cause) = state.machine.failure(&self.name) {
            let loss = state.last_loss(&self.name);
            return Err(GroupError::Failed {
                group: self.name.clone(),
                cause: cause.to_owned(),
                stderr_tail: loss.map(|l| l.stderr_tail.clone()).unwrap_or_default(),
            });
        }
        let slots = state.machine.group(&self.name).ok_or_else(released)?;
        if !state.machine.is_ready(&self.name) {
            return Ok(None);
        }
        let role = state.machine.spec(&self.name).ok_or_else(released)?.role;
        let mut workers = Vec::with_capacity(slots.len());
        for slot in slots {
            let lost = state.lost_signal(&slot.worker, slot.epoch);
            let (Some(address), Some(lost)) = (slot.address.clone(), lost) else {
                return Ok(None);
            };
            workers.push(self.worker(slot, role, address, lost)?);
        }
        Ok(Some(workers))
    }

    /// Waits until every rank is live: after [`super::Cluster::place`], and after a loss.
    ///
    /// # Errors
    /// [`GroupError`] when the group failed (its restarts are used up) or was released.
    pub async fn wait_ready(&self) -> Result<Vec<Worker>, GroupError> {
        let found = self.driver.first(|_| self.workers().transpose()).await;
        found.unwrap_or_else(|| Err(GroupError::Released { group: self.name.clone() }))
    }

    /// Ends the current epoch of all ranks and starts them anew, within the restart budget: for a
    /// state that cannot be trusted although every process lives.
    ///
    /// # Errors
    /// [`GroupError::Refused`] when the group was released.
    pub fn restart(&self, reason: &str) -> Result<(), GroupError> {
        let (group, reason) = (self.name.clone(), reason.to_owned());
        Ok(self.driver.handle(Event::RestartGroup { group, reason })?)
    }

    /// Stops the workers and gives their resources back. A group that is gone is no error.
    pub fn release(&self) {
        let event = Event::ReleaseGroup { group: self.name.clone() };
        if let Err(refusal) = self.driver.handle(event) {
            tracing::debug!(group = self.name, %refusal, "release");
        }
        self.driver.lock().forget(&self.name);
    }

    fn worker(
        &self,
        slot: SlotView,
        role: Role,
        address: String,
        lost: LostSignal,
    ) -> Result<Worker, GroupError> {
        let channel = self.driver.peers().worker(&address, &slot.worker)?;
        Ok(Worker {
            driver: Arc::clone(&self.driver),
            id: slot.worker,
            rank: slot.rank,
            role,
            epoch: slot.epoch,
            address,
            channel,
            lost,
        })
    }
}

impl Worker {
    /// Its slot.
    #[must_use]
    pub fn id(&self) -> &WorkerId {
        &self.id
    }

    /// Its rank in the group.
    #[must_use]
    pub fn rank(&self) -> u32 {
        self.rank
    }

    /// Its role.
    #[must_use]
    pub fn role(&self) -> Role {
        self.role
    }

    /// The epoch of this life.
    #[must_use]
    pub fn epoch(&self) -> Epoch {
        self.epoch
    }

    /// Where it serves.
    #[must_use]
    pub fn address(&self) -> &str {
        &self.address
    }

    /// The channel to build clients on. Raise the client's message limit to
    /// [`plumb_runtime::MAX_MESSAGE_BYTES`] where messages may be large.
    #[must_use]
    pub fn channel(&self) -> Channel {
        self.channel.clone()
    }

    /// The context of a call to this worker.
    #[must_use]
    pub fn context(
        &self,
        job_id: &str,
        step: u64,
        phase: &str,
        shard: u32,
        attempt: u32,
    ) -> CallContext {
        CallContext {
            job_id: job_id.to_owned(),
            step,
            phase: phase.to_owned(),
            shard,
            attempt,
            epoch: self.epoch.0,
        }
    }

    /// Whether this life has not ended, as far as is known.
    #[must_use]
    pub fn is_live(&self) -> bool {
        self.lost.borrow().is_none() && self.lost.has_changed().is_ok()
    }

    /// Resolves when this life has ended.
    pub async fn lost(&self) -> Arc<Loss> {
        let mut lost = self.lost.clone();
        if let Ok(loss) = lost.wait_for(Option::is_some).await
            && let Some(loss) = loss.as_ref()
        {
            return Arc::clone(loss);
        }
        // The sender went without a loss: the group was released.
        Arc::new(Loss {
            worker: self.id.clone(),
            rank: self.rank,
            epoch: self.epoch,
            phase: "none".to_owned(),
            cause: "its group was released".to_owned(),
            stderr_tail: String::new(),
        })
    }

    /// Awaits a call to this worker; ends at once when the worker is lost (CL-1). For a stream,
    /// wrap the whole reading of it.
    ///
    /// # Errors
    /// [`CallError`] with worker, rank, phase and cause.
    pub async fn call<T>(
        &self,
        phase: &str,
        call: impl Future<Output = Result<T, Status>>,
    ) -> Result<T, CallError> {
        let lost = |loss| CallError::Lost { phase: phase.to_owned(), loss };
        let status = match unless_lost(call, self.lost()).await {
            Ok(Ok(value)) => return Ok(value),
            Err(loss) => return Err(lost(loss)),
            Ok(Err(status)) => status,
        };
        // A status that was made on this side means a broken connection: the process is most
        // likely dead, and its agent is about to say how it ended.
        if is_local(&status) {
            let patience = self.driver.settings().lease + Duration::from_secs(2);
            if let Ok(loss) = tokio::time::timeout(patience, self.lost()).await {
                return Err(lost(loss));
            }
        }
        Err(CallError::Failed {
            worker: self.id.clone(),
            rank: self.rank,
            phase: phase.to_owned(),
            status: Box::new(status),
        })
    }
}

/// Whether a status comes from the transport and not from the peer's handler.
fn is_local(status: &Status) -> bool {
    std::error::Error::source(status).is_some()
}

impl std::fmt::Debug for Group {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Group({})", self.name)
    }
}

impl std::fmt::Debug for Worker {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Worker({} epoch {} at {})", self.id, self.epoch, self.address)
    }
}
