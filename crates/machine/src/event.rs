//! What happens to the machine, and what it wants done.

use std::fmt;

use plumb_domain::{AgentId, Epoch, Role, WorkerId};
use serde::{Deserialize, Serialize};

use crate::group::GroupSpec;
use crate::placement::PlacementError;
use crate::resources::{Assignment, NodeResources};

/// Milliseconds since the coordinator started, on a clock that never goes back.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize,
)]
pub struct Time(pub u64);

impl Time {
    /// This time, later.
    #[must_use]
    pub fn after(self, millis: u64) -> Self {
        Self(self.0.saturating_add(millis))
    }
}

impl fmt::Display for Time {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ms", self.0)
    }
}

/// Something that happened outside.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum Event {
    /// An agent offers a node. An agent that registers again has lost its workers.
    AgentRegistered {
        /// Which agent.
        agent: AgentId,
        /// What its node has.
        resources: NodeResources,
    },
    /// An agent renewed its lease.
    AgentHeartbeat {
        /// Which agent.
        agent: AgentId,
    },
    /// An agent stops in an orderly way.
    AgentLeft {
        /// Which agent.
        agent: AgentId,
    },
    /// Stage code asks for a group.
    PlaceGroup {
        /// What it needs.
        spec: GroupSpec,
    },
    /// Stage code is done with a group.
    ReleaseGroup {
        /// Which group.
        group: String,
    },
    /// Stage code found that a group's state cannot be trusted: all its ranks start again.
    RestartGroup {
        /// Which group.
        group: String,
        /// Why.
        reason: String,
    },
    /// A worker process says where it serves.
    WorkerRegistered {
        /// Which slot.
        worker: WorkerId,
        /// The epoch it was started under.
        epoch: Epoch,
        /// Where it serves.
        address: String,
    },
    /// A worker renewed its lease.
    WorkerHeartbeat {
        /// Which slot.
        worker: WorkerId,
        /// Its epoch.
        epoch: Epoch,
        /// What it is doing.
        phase: String,
    },
    /// An agent saw a worker process end, or could not start it.
    WorkerExited {
        /// Which slot.
        worker: WorkerId,
        /// The epoch of that process.
        epoch: Epoch,
        /// For example `signal 9 (SIGKILL)`.
        reason: String,
    },
    /// Time has passed.
    Tick,
    /// The coordinator itself did not run for this long (it was stopped, or the machine slept).
    Stalled {
        /// For how long.
        millis: u64,
    },
}

/// Something that the caller has to do.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum Effect {
    /// Start a worker process.
    StartWorker {
        /// On which node.
        agent: AgentId,
        /// Which slot.
        worker: WorkerId,
        /// Its rank in the group.
        rank: u32,
        /// Under which epoch.
        epoch: Epoch,
        /// Its role.
        role: Role,
        /// Its group.
        group: String,
        /// What it may use.
        assignment: Assignment,
    },
    /// Make sure that no process of this worker and epoch runs.
    StopWorker {
        /// On which node.
        agent: AgentId,
        /// Which slot.
        worker: WorkerId,
        /// The epoch to end.
        epoch: Epoch,
        /// Whether it may finish in an orderly way; fenced processes may not.
        orderly: bool,
    },
    /// A worker has registered; calls may be made.
    WorkerReady {
        /// Its group.
        group: String,
        /// Which slot.
        worker: WorkerId,
        /// Its epoch.
        epoch: Epoch,
    },
    /// Every rank of the group is live.
    GroupReady {
        /// Which group.
        group: String,
    },
    /// An epoch of a worker is over: its pending calls fail now (SU-1).
    WorkerLost {
        /// Its group.
        group: String,
        /// Which slot.
        worker: WorkerId,
        /// Its rank.
        rank: u32,
        /// The epoch that is over.
        epoch: Epoch,
        /// What it was doing when last heard of.
        phase: String,
        /// Why.
        cause: String,
    },
    /// A worker will start again.
    WorkerRestarting {
        /// Its group.
        group: String,
        /// Which slot.
        worker: WorkerId,
        /// The new epoch.
        epoch: Epoch,
        /// Restarts used so far, this one included.
        restarts: u32,
        /// Back-off.
        after_millis: u64,
    },
    /// A group cannot go on.
    GroupFailed {
        /// Which group.
        group: String,
        /// Why.
        cause: String,
    },
    /// A node is gone.
    AgentLost {
        /// Which agent.
        agent: AgentId,
        /// Why.
        cause: String,
    },
}

/// An event that the machine does not take; nothing has changed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// EP-1: the sender is fenced and must stop.
    #[error("EP-1: {worker} epoch {epoch} is fenced: {why}")]
    Fenced {
        /// Which slot.
        worker: WorkerId,
        /// The sender's epoch.
        epoch: Epoch,
        /// What is current instead.
        why: String,
    },
    /// The agent has no lease (it expired, or it never registered).
    #[error("agent {agent} holds no lease; it must stop its workers")]
    UnknownAgent {
        /// Which agent.
        agent: AgentId,
    },
    /// No such group.
    #[error("there is no group {group:?}")]
    UnknownGroup {
        /// Its name.
        group: String,
    },
    /// A group of that name is there already.
    #[error("a group {group:?} is placed already")]
    GroupExists {
        /// Its name.
        group: String,
    },
    /// A specification that makes no sense.
    #[error("group {group:?}: {what}")]
    BadSpec {
        /// Its name.
        group: String,
        /// What is wrong.
        what: String,
    },
    /// The nodes cannot hold it.
    #[error(transparent)]
    Placement(#[from] PlacementError),
}
