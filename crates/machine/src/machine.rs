//! Agents, groups, leases and epochs: one event in, effects out.

use std::collections::BTreeMap;

use plumb_domain::{AgentId, Epoch, WorkerId};

use crate::event::{Effect, Event, Refusal, Time};
use crate::group::{Group, GroupSpec, Slot, SlotView, State};
use crate::placement::{Request, place};
use crate::resources::{Free, NodeResources};

mod supervision;

/// What the machine needs to know.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Settings {
    /// How long an agent or worker may be silent.
    pub lease_millis: u64,
}

/// The whole state. See the crate's documentation for its invariants.
#[derive(Debug, Clone, PartialEq)]
pub struct Machine {
    settings: Settings,
    agents: BTreeMap<AgentId, Agent>,
    groups: BTreeMap<String, Group>,
    /// Which group and rank a worker id belongs to.
    index: BTreeMap<WorkerId, (String, u32)>,
}

#[derive(Debug, Clone, PartialEq)]
struct Agent {
    resources: NodeResources,
    lease: Time,
}

impl Machine {
    /// An empty cluster.
    #[must_use]
    pub fn new(settings: Settings) -> Self {
        Self { settings, agents: BTreeMap::new(), groups: BTreeMap::new(), index: BTreeMap::new() }
    }

    /// Takes one event.
    ///
    /// # Errors
    /// [`Refusal`]; the state is then as before.
    pub fn handle(&mut self, now: Time, event: Event) -> Result<Vec<Effect>, Refusal> {
        match event {
            Event::AgentRegistered { agent, resources } => {
                Ok(self.agent_registered(now, agent, resources))
            }
            Event::AgentHeartbeat { agent } => self.agent_heartbeat(now, agent),
            Event::AgentLeft { agent } => Ok(self.agent_left(now, &agent)),
            Event::PlaceGroup { spec } => self.place_group(now, spec),
            Event::ReleaseGroup { group } => self.release_group(&group),
            Event::RestartGroup { group, reason } => self.restart_group(now, &group, &reason),
            Event::WorkerRegistered { worker, epoch, address } => {
                self.worker_registered(now, &worker, epoch, address)
            }
            Event::WorkerHeartbeat { worker, epoch, phase } => {
                self.worker_heartbeat(now, &worker, epoch, phase)
            }
            Event::WorkerExited { worker, epoch, reason } => {
                Ok(self.worker_exited(now, &worker, epoch, &reason))
            }
            Event::Tick => Ok(self.tick(now)),
            Event::Stalled { millis } => {
                self.stalled(millis);
                Ok(Vec::new())
            }
        }
    }

    /// When the next [`Event::Tick`] is due, if nothing else happens first.
    #[must_use]
    pub fn next_deadline(&self) -> Option<Time> {
        let agents = self.agents.values().map(|a| a.lease);
        let slots = self.groups.values().flat_map(|g| g.slots.values()).filter_map(Slot::deadline);
        agents.chain(slots).min()
    }

    /// The slots of a group in rank order, or `None` when there is no such group.
    #[must_use]
    pub fn group(&self, name: &str) -> Option<Vec<SlotView>> {
        let view = |(rank, slot): (&u32, &Slot)| SlotView {
            worker: slot.worker.clone(),
            rank: *rank,
            epoch: slot.epoch,
            agent: slot.agent.clone(),
            address: match &slot.state {
                State::Live { address, .. } => Some(address.clone()),
                _ => None,
            },
            phase: slot.phase(),
        };
        Some(self.groups.get(name)?.slots.iter().map(view).collect())
    }

    /// Whether every rank of the group is live.
    #[must_use]
    pub fn is_ready(&self, group: &str) -> bool {
        self.groups.get(group).is_some_and(Group::is_ready)
    }

    /// Why a group has failed, if it has.
    #[must_use]
    pub fn failure(&self, group: &str) -> Option<&str> {
        self.groups.get(group)?.failed.as_deref()
    }

    /// The specification of a group.
    #[must_use]
    pub fn spec(&self, group: &str) -> Option<&GroupSpec> {
        self.groups.get(group).map(|g| &g.spec)
    }

    /// The names of all groups.
    pub fn groups(&self) -> impl Iterator<Item = &str> {
        self.groups.keys().map(String::as_str)
    }

    /// The nodes with a lease, and what they have.
    pub fn agents(&self) -> impl Iterator<Item = (&AgentId, &NodeResources)> {
        self.agents.iter().map(|(id, agent)| (id, &agent.resources))
    }

    fn agent_registered(
        &mut self,
        now: Time,
        agent: AgentId,
        resources: NodeResources,
    ) -> Vec<Effect> {
        let mut effects = Vec::new();
        if self.agents.contains_key(&agent) {
            effects = self.agent_gone(now, &agent, "its agent started anew");
        }
        let lease = now.after(self.settings.lease_millis);
        self.agents.insert(agent, Agent { resources, lease });
        effects
    }

    fn agent_heartbeat(&mut self, now: Time, agent: AgentId) -> Result<Vec<Effect>, Refusal> {
        let lease = now.after(self.settings.lease_millis);
        match self.agents.get_mut(&agent) {
            Some(known) => {
                known.lease = lease;
                Ok(Vec::new())
            }
            None => Err(Refusal::UnknownAgent { agent }),
        }
    }

    fn agent_left(&mut self, now: Time, agent: &AgentId) -> Vec<Effect> {
        if !self.agents.contains_key(agent) {
            return Vec::new();
        }
        self.agent_gone(now, agent, "its agent left the cluster")
    }

    fn place_group(&mut self, now: Time, spec: GroupSpec) -> Result<Vec<Effect>, Refusal> {
        spec.validate()?;
        if self.groups.contains_key(&spec.name) {
            return Err(Refusal::GroupExists { group: spec.name });
        }
        let ranks: Vec<u32> = (0..spec.world_size).collect();
        let request = Request {
            group: &spec.name,
            strategy: spec.strategy,
            bundle: &spec.bundle,
            ranks: &ranks,
            world_size: spec.world_size,
            placed: &BTreeMap::new(),
        };
        let placed = place(&request, &self.free())?;
        let epoch = Epoch(1);
        let deadline = now.after(spec.start_timeout_millis);
        let mut slots = BTreeMap::new();
        for (rank, (agent, assignment)) in placed {
            let worker = spec.worker_id(rank)?;
            if self.index.contains_key(&worker) {
                return Err(Refusal::GroupExists { group: spec.name });
            }
            let state = State::Starting { deadline };
            slots.insert(rank, Slot { worker, epoch, agent, assignment, state });
        }
        for (rank, slot) in &slots {
            self.index.insert(slot.worker.clone(), (spec.name.clone(), *rank));
        }
        let group = Group { spec, slots, newest: epoch, restarts: 0, failed: None };
        let effects = group.slots.iter().map(|(rank, slot)| start(&group.spec, *rank, slot));
        let effects = effects.collect();
        self.groups.insert(group.spec.name.clone(), group);
        Ok(effects)
    }

    fn release_group(&mut self, name: &str) -> Result<Vec<Effect>, Refusal> {
        let group = self
            .groups
            .remove(name)
            .ok_or_else(|| Refusal::UnknownGroup { group: name.to_owned() })?;
        let mut effects = Vec::new();
        for slot in group.slots.values() {
            self.index.remove(&slot.worker);
            if slot.has_process() {
                effects.push(stop(slot, true));
            }
        }
        Ok(effects)
    }

    fn worker_registered(
        &mut self,
        now: Time,
        worker: &WorkerId,
        epoch: Epoch,
        address: String,
    ) -> Result<Vec<Effect>, Refusal> {
        let lease = now.after(self.settings.lease_millis);
        let (group, rank) = self.current(worker, epoch)?;
        let Some(slot) = group.slots.get_mut(&rank) else { return Ok(Vec::new()) };
        match &slot.state {
            // A repeat of the same registration changes nothing but the lease.
            State::Live { address: known, phase, .. } if *known == address => {
                slot.state = State::Live { address, lease, phase: phase.clone() };
                return Ok(Vec::new());
            }
            State::Starting { .. } => {}
            _ => return Err(fenced(worker, epoch, "another process of this epoch registered")),
        }
        slot.state = State::Live { address, lease, phase: "idle".to_owned() };
        let name = group.spec.name.clone();
        let mut effects =
            vec![Effect::WorkerReady { group: name.clone(), worker: worker.clone(), epoch }];
        if group.is_ready() {
            effects.push(Effect::GroupReady { group: name });
        }
        Ok(effects)
    }

    fn worker_heartbeat(
        &mut self,
        now: Time,
        worker: &WorkerId,
        epoch: Epoch,
        phase: String,
    ) -> Result<Vec<Effect>, Refusal> {
        let renewed = now.after(self.settings.lease_millis);
        let (group, rank) = self.current(worker, epoch)?;
        match group.slots.get_mut(&rank).map(|slot| &mut slot.state) {
            Some(State::Live { lease, phase: known, .. }) => {
                *lease = renewed;
                *known = phase;
                Ok(Vec::new())
            }
            _ => Err(fenced(worker, epoch, "it has not registered, or its lease is over")),
        }
    }

    /// EP-1: the group and rank of a worker whose epoch is the current one.
    fn current(&mut self, worker: &WorkerId, epoch: Epoch) -> Result<(&mut Group, u32), Refusal> {
        let Some((name, rank)) = self.index.get(worker).cloned() else {
            return Err(fenced(worker, epoch, "its group was released"));
        };
        let Some(group) = self.groups.get_mut(&name) else {
            return Err(fenced(worker, epoch, "its group was released"));
        };
        let Some(slot) = group.slots.get(&rank) else {
            return Err(fenced(worker, epoch, "its group was released"));
        };
        if slot.epoch != epoch {
            let why = format!("epoch {} is current", slot.epoch);
            return Err(fenced(worker, epoch, &why));
        }
        if !slot.has_process() {
            return Err(fenced(worker, epoch, "that epoch was given up"));
        }
        Ok((group, rank))
    }

    /// What is left on each node with a lease.
    fn free(&self) -> BTreeMap<AgentId, Free> {
        let mut free: BTreeMap<AgentId, Free> =
            self.agents.iter().map(|(id, a)| (id.clone(), Free::all_of(&a.resources))).collect();
        for group in self.groups.values().filter(|g| g.failed.is_none()) {
            for slot in group.slots.values() {
                if let Some(node) = free.get_mut(&slot.agent) {
                    node.occupy(&slot.assignment);
                }
            }
        }
        free
    }
}

fn start(spec: &GroupSpec, rank: u32, slot: &Slot) -> Effect {
    Effect::StartWorker {
        agent: slot.agent.clone(),
        worker: slot.worker.clone(),
        rank,
        epoch: slot.epoch,
        role: spec.role,
        group: spec.name.clone(),
        assignment: slot.assignment.clone(),
    }
}

fn stop(slot: &Slot, orderly: bool) -> Effect {
    Effect::StopWorker {
        agent: slot.agent.clone(),
        worker: slot.worker.clone(),
        epoch: slot.epoch,
        orderly,
    }
}

fn fenced(worker: &WorkerId, epoch: Epoch, why: &str) -> Refusal {
    Refusal::Fenced { worker: worker.clone(), epoch, why: why.to_owned() }
}
