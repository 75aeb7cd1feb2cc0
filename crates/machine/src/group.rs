//! A worker group: its specification, and the state of each of its slots.

use std::collections::BTreeMap;

use plumb_domain::{AgentId, Epoch, Role, WorkerId};
use serde::{Deserialize, Serialize};

use crate::event::{Refusal, Time};
use crate::placement::Strategy;
use crate::resources::{Assignment, Bundle};

/// What restarts when one rank is lost.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RestartScope {
    /// The lost worker alone (rollout, reward).
    Worker,
    /// All ranks, under one new epoch (policy: shards of one state).
    Group,
}

/// How often and how fast a group restarts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct RestartPolicy {
    /// Restarts in the life of the group; the next loss fails it.
    pub max_restarts: u32,
    /// Wait before the first restart; doubles with each.
    pub back_off_millis: u64,
    /// Longest wait.
    pub max_back_off_millis: u64,
    /// One worker or all.
    pub scope: RestartScope,
}

impl RestartPolicy {
    /// SU-3: the wait before the n-th restart, counted from 1.
    pub(crate) fn back_off(&self, restart: u32) -> u64 {
        let doublings = restart.saturating_sub(1).min(32);
        self.back_off_millis.saturating_mul(1 << doublings).min(self.max_back_off_millis)
    }
}

/// What stage code asks for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GroupSpec {
    /// Unique in the cluster; workers are called `<name>-<rank>`.
    pub name: String,
    /// What the group does; it decides which worker binary runs.
    pub role: Role,
    /// Number of ranks.
    pub world_size: u32,
    /// What each rank needs.
    pub bundle: Bundle,
    /// Threads for tensor operations of each rank.
    pub threads: u32,
    /// How the ranks lie on the nodes.
    pub strategy: Strategy,
    /// Supervision.
    pub restart: RestartPolicy,
    /// From the start of a process to its registration.
    pub start_timeout_millis: u64,
}

impl GroupSpec {
    /// The id of a rank's slot.
    pub(crate) fn worker_id(&self, rank: u32) -> Result<WorkerId, Refusal> {
        WorkerId::new(format!("{}-{rank}", self.name))
            .map_err(|e| Refusal::BadSpec { group: self.name.clone(), what: e.to_string() })
    }

    pub(crate) fn validate(&self) -> Result<(), Refusal> {
        let bad =
            |what: &str| Err(Refusal::BadSpec { group: self.name.clone(), what: what.to_owned() });
        if self.world_size == 0 {
            return bad("world_size is 0; expected at least 1");
        }
        if self.threads == 0 {
            return bad("threads is 0; expected at least 1");
        }
        if self.start_timeout_millis == 0 {
            return bad("start_timeout_millis is 0; expected at least 1");
        }
        if self.bundle.gpus_milli > 1_000 && !self.bundle.gpus_milli.is_multiple_of(1_000) {
            return bad("more than one GPU per rank must be a whole number of GPUs");
        }
        Ok(())
    }
}

/// The state of one slot.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum State {
    /// Waits for its back-off, and for a node if its own is gone.
    Waiting { until: Time, give_up: Time },
    /// A process was asked for and has not registered.
    Starting { deadline: Time },
    /// Registered, with a lease.
    Live { address: String, lease: Time, phase: String },
    /// Over for good (the group has failed).
    Ended,
}

#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Slot {
    pub(crate) worker: WorkerId,
    pub(crate) epoch: Epoch,
    pub(crate) agent: AgentId,
    pub(crate) assignment: Assignment,
    pub(crate) state: State,
}

impl Slot {
    /// Whether a process of the current epoch may run.
    pub(crate) fn has_process(&self) -> bool {
        matches!(self.state, State::Starting { .. } | State::Live { .. })
    }

    pub(crate) fn deadline(&self) -> Option<Time> {
        match &self.state {
            State::Waiting { until, .. } => Some(*until),
            State::Starting { deadline } => Some(*deadline),
            State::Live { lease, .. } => Some(*lease),
            State::Ended => None,
        }
    }

    /// LE-3: gives back the time that the coordinator itself lost.
    pub(crate) fn extend(&mut self, millis: u64) {
        match &mut self.state {
            State::Waiting { .. } | State::Ended => {}
            State::Starting { deadline: time } | State::Live { lease: time, .. } => {
                *time = time.after(millis);
            }
        }
    }

    pub(crate) fn phase(&self) -> String {
        match &self.state {
            State::Live { phase, .. } => phase.clone(),
            State::Starting { .. } => "start".to_owned(),
            State::Waiting { .. } | State::Ended => "none".to_owned(),
        }
    }
}

#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Group {
    pub(crate) spec: GroupSpec,
    pub(crate) slots: BTreeMap<u32, Slot>,
    /// The newest epoch of any slot (EP-2).
    pub(crate) newest: Epoch,
    pub(crate) restarts: u32,
    pub(crate) failed: Option<String>,
}

impl Group {
    pub(crate) fn is_ready(&self) -> bool {
        self.failed.is_none() && self.slots.values().all(|s| matches!(s.state, State::Live { .. }))
    }
}

/// What the outside may see of a slot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SlotView {
    /// Which slot.
    pub worker: WorkerId,
    /// Its rank.
    pub rank: u32,
    /// Its current epoch.
    pub epoch: Epoch,
    /// Its node.
    pub agent: AgentId,
    /// Where it serves; `None` while it does not.
    pub address: Option<String>,
    /// What it was doing when last heard of; `start` before it registers.
    pub phase: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn su_3_back_off_doubles_up_to_its_bound() {
        let policy = RestartPolicy {
            max_restarts: 9,
            back_off_millis: 500,
            max_back_off_millis: 3_000,
            scope: RestartScope::Worker,
        };
        let waits: Vec<u64> = (1..=5).map(|n| policy.back_off(n)).collect();
        assert_eq!(waits, [500, 1_000, 2_000, 3_000, 3_000]);
        assert_eq!(policy.back_off(u32::MAX), 3_000);
    }
}
