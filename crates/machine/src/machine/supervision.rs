//! Losses, restarts and time.

use std::collections::BTreeMap;

use plumb_domain::{AgentId, Epoch, WorkerId};

use super::{Machine, start, stop};
use crate::event::{Effect, Refusal, Time};
use crate::group::{Group, RestartScope, State};
use crate::placement::{Request, place};

/// How long after its node's loss a rank waits before it looks for another node again.
const RETRY_MILLIS: u64 = 500;

/// How the process of a lost slot ended, or did not.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Process {
    /// It has ended by itself.
    Ended,
    /// It may still run and must be stopped (SU-4).
    MayRun,
}

impl Machine {
    pub(super) fn worker_exited(
        &mut self,
        now: Time,
        worker: &WorkerId,
        epoch: Epoch,
        reason: &str,
    ) -> Vec<Effect> {
        let Some((name, rank)) = self.index.get(worker).cloned() else { return Vec::new() };
        let current = self.groups.get(&name).and_then(|g| g.slots.get(&rank));
        // EP-1: the end of a process that is not the current one changes nothing.
        if current.is_none_or(|slot| slot.epoch != epoch || !slot.has_process()) {
            return Vec::new();
        }
        self.lose(now, &name, &[(rank, reason.to_owned(), Process::Ended)])
    }

    pub(super) fn restart_group(
        &mut self,
        now: Time,
        name: &str,
        reason: &str,
    ) -> Result<Vec<Effect>, Refusal> {
        let group = self
            .groups
            .get(name)
            .ok_or_else(|| Refusal::UnknownGroup { group: name.to_owned() })?;
        let running = |(rank, slot): (&u32, &crate::group::Slot)| {
            slot.has_process().then(|| (*rank, reason.to_owned(), Process::MayRun))
        };
        let lost: Vec<_> = group.slots.iter().filter_map(running).collect();
        Ok(self.lose(now, name, &lost))
    }

    pub(super) fn stalled(&mut self, millis: u64) {
        for agent in self.agents.values_mut() {
            agent.lease = agent.lease.after(millis);
        }
        for slot in self.groups.values_mut().flat_map(|g| g.slots.values_mut()) {
            slot.extend(millis);
        }
    }

    pub(super) fn tick(&mut self, now: Time) -> Vec<Effect> {
        let mut effects = Vec::new();
        let expired: Vec<AgentId> =
            self.agents.iter().filter(|(_, a)| a.lease <= now).map(|(id, _)| id.clone()).collect();
        for agent in expired {
            effects.extend(self.agent_gone(now, &agent, "its agent's lease ran out"));
        }
        for name in self.groups.keys().cloned().collect::<Vec<_>>() {
            effects.extend(self.expire(now, &name));
            effects.extend(self.start_due(now, &name));
        }
        effects
    }

    /// Fences every worker of a node and forgets the node.
    pub(super) fn agent_gone(&mut self, now: Time, agent: &AgentId, why: &str) -> Vec<Effect> {
        self.agents.remove(agent);
        let mut effects = vec![Effect::AgentLost { agent: agent.clone(), cause: why.to_owned() }];
        for name in self.groups.keys().cloned().collect::<Vec<_>>() {
            let Some(group) = self.groups.get(&name) else { continue };
            let lost: Vec<_> = group
                .slots
                .iter()
                .filter(|(_, slot)| slot.agent == *agent && slot.has_process())
                .map(|(rank, _)| (*rank, format!("node {agent} is lost: {why}"), Process::MayRun))
                .collect();
            effects.extend(self.lose(now, &name, &lost));
        }
        effects
    }

    /// LE-1: fences what has been silent for too long.
    fn expire(&mut self, now: Time, name: &str) -> Vec<Effect> {
        let Some(group) = self.groups.get(name) else { return Vec::new() };
        let timeout = group.spec.start_timeout_millis;
        let lease = self.settings.lease_millis;
        let mut lost = Vec::new();
        for (rank, slot) in &group.slots {
            let cause = match &slot.state {
                State::Live { lease: until, .. } if *until <= now => {
                    format!("no heartbeat for {lease} ms: the process hangs or was stopped")
                }
                State::Starting { deadline } if *deadline <= now => {
                    format!("it did not register within {timeout} ms of its start")
                }
                _ => continue,
            };
            lost.push((*rank, cause, Process::MayRun));
        }
        self.lose(now, name, &lost)
    }

    /// Ends the current epoch of slots, then restarts by the group's policy or fails the group.
    fn lose(&mut self, now: Time, name: &str, lost: &[(u32, String, Process)]) -> Vec<Effect> {
        let Some(group) = self.groups.get_mut(name) else { return Vec::new() };
        let Some((first_rank, first_cause, _)) = lost.first() else { return Vec::new() };
        let mut effects = Vec::new();
        for (rank, cause, process) in lost {
            fence(group, *rank, cause, *process, &mut effects);
        }
        let summary = format!("{name}-{first_rank} was lost: {first_cause}");
        let mut restarting: Vec<u32> = lost.iter().map(|(rank, _, _)| *rank).collect();
        if group.spec.restart.scope == RestartScope::Group {
            restarting = group.slots.keys().copied().collect();
            let cause = format!("the whole group restarts because {summary}");
            for rank in &restarting {
                fence(group, *rank, &cause, Process::MayRun, &mut effects);
            }
        }
        restart(group, now, &restarting, &summary, &mut effects);
        effects
    }

    /// Starts what waited long enough, on its own node or another.
    fn start_due(&mut self, now: Time, name: &str) -> Vec<Effect> {
        let Some(group) = self.groups.get(name) else { return Vec::new() };
        let due: Vec<u32> = group
            .slots
            .iter()
            .filter(|(_, s)| matches!(s.state, State::Waiting { until, .. } if until <= now))
            .map(|(rank, _)| *rank)
            .collect();
        let mut effects = Vec::new();
        for rank in due {
            effects.extend(self.start_one(now, name, rank));
        }
        effects
    }

    fn start_one(&mut self, now: Time, name: &str, rank: u32) -> Vec<Effect> {
        let moved = self.find_node(name, rank);
        let Some(group) = self.groups.get_mut(name) else { return Vec::new() };
        let deadline = now.after(group.spec.start_timeout_millis);
        let Some(slot) = group.slots.get_mut(&rank) else { return Vec::new() };
        let State::Waiting { give_up, .. } = slot.state else { return Vec::new() };
        match moved {
            Ok(place) => {
                if let Some((agent, assignment)) = place {
                    slot.agent = agent;
                    slot.assignment = assignment;
                }
                slot.state = State::Starting { deadline };
                vec![start(&group.spec, rank, slot)]
            }
            Err(_) if now < give_up => {
                slot.state =
                    State::Waiting { until: now.after(RETRY_MILLIS).min(give_up), give_up };
                Vec::new()
            }
            Err(error) => {
                let mut effects = Vec::new();
                fail(group, &error.to_string(), &mut effects);
                effects
            }
        }
    }

    /// `None` when the slot's own node is there, else a place on another one.
    #[allow(clippy::type_complexity)] // agent and assignment, as placement returns them
    fn find_node(
        &self,
        name: &str,
        rank: u32,
    ) -> Result<Option<(AgentId, crate::Assignment)>, Refusal> {
        let unknown = || Refusal::UnknownGroup { group: name.to_owned() };
        let group = self.groups.get(name).ok_or_else(unknown)?;
        let slot = group.slots.get(&rank).ok_or_else(unknown)?;
        if self.agents.contains_key(&slot.agent) {
            return Ok(None);
        }
        let others: BTreeMap<u32, AgentId> = group
            .slots
            .iter()
            .filter(|(r, s)| **r != rank && self.agents.contains_key(&s.agent))
            .map(|(r, s)| (*r, s.agent.clone()))
            .collect();
        let request = Request {
            group: name,
            strategy: group.spec.strategy,
            bundle: &group.spec.bundle,
            ranks: &[rank],
            world_size: group.spec.world_size,
            placed: &others,
        };
        Ok(place(&request, &self.free())?.remove(&rank))
    }
}

/// SU-1, SU-4: reports a loss once and has the process stopped if it may still run.
fn fence(group: &mut Group, rank: u32, cause: &str, process: Process, effects: &mut Vec<Effect>) {
    let Some(slot) = group.slots.get_mut(&rank) else { return };
    if !slot.has_process() {
        return;
    }
    effects.push(Effect::WorkerLost {
        group: group.spec.name.clone(),
        worker: slot.worker.clone(),
        rank,
        epoch: slot.epoch,
        phase: slot.phase(),
        cause: cause.to_owned(),
    });
    if process == Process::MayRun {
        effects.push(stop(slot, false));
    }
    slot.state = State::Ended;
}

/// SU-2, SU-3, EP-2, EP-3.
fn restart(group: &mut Group, now: Time, ranks: &[u32], summary: &str, effects: &mut Vec<Effect>) {
    let policy = group.spec.restart;
    if group.failed.is_some() {
        return;
    }
    // Ranks lost at the same moment cost one restart together only where they restart together.
    let cost = match policy.scope {
        RestartScope::Group => 1,
        RestartScope::Worker => u32::try_from(ranks.len()).unwrap_or(u32::MAX),
    };
    if group.restarts.saturating_add(cost) > policy.max_restarts {
        let cause = format!("{summary}; its {} restarts are used up", policy.max_restarts);
        fail(group, &cause, effects);
        return;
    }
    group.restarts += cost;
    group.newest = group.newest.next();
    let after_millis = policy.back_off(group.restarts);
    let until = now.after(after_millis);
    let give_up = until.after(group.spec.start_timeout_millis);
    for rank in ranks {
        let Some(slot) = group.slots.get_mut(rank) else { continue };
        slot.epoch = group.newest;
        slot.state = State::Waiting { until, give_up };
        effects.push(Effect::WorkerRestarting {
            group: group.spec.name.clone(),
            worker: slot.worker.clone(),
            epoch: slot.epoch,
            restarts: group.restarts,
            after_millis,
        });
    }
}

fn fail(group: &mut Group, cause: &str, effects: &mut Vec<Effect>) {
    for rank in group.slots.keys().copied().collect::<Vec<_>>() {
        fence(group, rank, &format!("its group failed: {cause}"), Process::MayRun, effects);
        if let Some(slot) = group.slots.get_mut(&rank) {
            slot.state = State::Ended;
        }
    }
    group.failed = Some(cause.to_owned());
    effects.push(Effect::GroupFailed { group: group.spec.name.clone(), cause: cause.to_owned() });
}
