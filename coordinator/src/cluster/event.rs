//! Notices about the cluster, for people.

use std::fmt;
use std::sync::Arc;

use plumb_domain::{AgentId, Epoch, WorkerId};

use super::error::Loss;

/// Something that the operator may want to know.
#[derive(Debug, Clone)]
pub enum ClusterEvent {
    /// A node joined.
    AgentJoined {
        /// Its agent.
        agent: AgentId,
    },
    /// A node was lost.
    AgentLost {
        /// Its agent.
        agent: AgentId,
        /// Why.
        cause: String,
    },
    /// A worker is live.
    WorkerReady {
        /// Which worker.
        worker: WorkerId,
        /// Its epoch.
        epoch: Epoch,
    },
    /// A worker was lost.
    WorkerLost(Arc<Loss>),
    /// A worker will start again.
    WorkerRestarting {
        /// Which worker.
        worker: WorkerId,
        /// Its new epoch.
        epoch: Epoch,
        /// Restarts of its group so far.
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
}

impl ClusterEvent {
    /// `info`, `warn` or `error`, as a notice of the job.
    #[must_use]
    pub fn level(&self) -> &'static str {
        match self {
            Self::AgentJoined { .. } | Self::WorkerReady { .. } => "info",
            Self::WorkerLost(_) | Self::WorkerRestarting { .. } | Self::AgentLost { .. } => "warn",
            Self::GroupFailed { .. } => "error",
        }
    }
}

impl fmt::Display for ClusterEvent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::AgentJoined { agent } => write!(f, "node {agent} joined"),
            Self::AgentLost { agent, cause } => write!(f, "node {agent} was lost: {cause}"),
            Self::WorkerReady { worker, epoch } => write!(f, "{worker} is ready (epoch {epoch})"),
            Self::WorkerLost(loss) => write!(
                f,
                "{} (rank {}, epoch {}) was lost in {}: {}",
                loss.worker, loss.rank, loss.epoch, loss.phase, loss.cause
            ),
            Self::WorkerRestarting { worker, epoch, restarts, after_millis } => write!(
                f,
                "{worker} starts again in {after_millis} ms (epoch {epoch}, restart {restarts})"
            ),
            Self::GroupFailed { group, cause } => write!(f, "group {group} failed: {cause}"),
        }
    }
}
