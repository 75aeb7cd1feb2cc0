//! The ledger: what was said and done, and whether it keeps the invariants.

use std::collections::{BTreeMap, BTreeSet};

use plumb_domain::{AgentId, Epoch, WorkerId};
use plumb_machine::{Assignment, Effect, Event, GroupSpec, Machine, RestartScope, Time};

type Life = (WorkerId, Epoch);

#[derive(Default)]
pub(crate) struct Ledger {
    specs: BTreeMap<String, GroupSpec>,
    /// Current lives that were asked for, with what they hold.
    held: BTreeMap<Life, (String, AgentId, Assignment)>,
    newest: BTreeMap<String, Epoch>,
    lost: BTreeMap<Life, Time>,
    ready: BTreeSet<Life>,
    stops: BTreeSet<Life>,
    arrived: BTreeSet<Life>,
    restarts: BTreeMap<String, u32>,
    failed: BTreeSet<String>,
}

impl Ledger {
    pub(crate) fn record(
        &mut self,
        now: Time,
        event: &Event,
        effects: &[Effect],
        machine: &Machine,
    ) {
        match event {
            Event::PlaceGroup { spec } => self.placed(spec),
            Event::ReleaseGroup { group } => self.released(group),
            _ => {}
        }
        for effect in effects {
            self.effect(now, effect);
        }
        self.check_stops(event, effects);
        self.check_state(now, event, machine);
    }

    fn placed(&mut self, spec: &GroupSpec) {
        // A released group of the same name starts its count anew.
        self.restarts.remove(&spec.name);
        self.failed.remove(&spec.name);
        self.newest.remove(&spec.name);
        let prefix = format!("{}-", spec.name);
        let of_group = |life: &Life| life.0.as_str().starts_with(&prefix);
        self.lost.retain(|life, _| !of_group(life));
        self.ready.retain(|life| !of_group(life));
        self.stops.retain(|life| !of_group(life));
        self.arrived.retain(|life| !of_group(life));
        self.specs.insert(spec.name.clone(), spec.clone());
    }

    fn released(&mut self, group: &str) {
        self.held.retain(|_, (name, _, _)| name != group);
        self.specs.remove(group);
    }

    fn effect(&mut self, now: Time, effect: &Effect) {
        match effect {
            Effect::StartWorker { agent, worker, epoch, group, assignment, .. } => {
                let newest = self.newest.entry(group.clone()).or_default();
                assert!(*epoch >= *newest || self.restarts.contains_key(group), "EP-2");
                *newest = (*newest).max(*epoch);
                assert!(!self.failed.contains(group), "SU-2: {group} failed and starts {worker}");
                let life = (worker.clone(), *epoch);
                assert!(!self.lost.contains_key(&life), "LE-2: {life:?} starts again");
                let others = self.held.keys().filter(|(w, _)| w == worker).count();
                assert_eq!(others, 0, "EP-1: {worker} has two current epochs");
                self.held.insert(life, (group.clone(), agent.clone(), assignment.clone()));
            }
            Effect::StopWorker { worker, epoch, .. } => {
                self.stops.insert((worker.clone(), *epoch));
            }
            Effect::WorkerReady { worker, epoch, .. } => {
                let life = (worker.clone(), *epoch);
                assert!(!self.lost.contains_key(&life), "LE-2: {life:?} is ready after its loss");
                assert!(self.ready.insert(life), "a second registration was taken");
            }
            Effect::WorkerLost { worker, epoch, cause, .. } => {
                let life = (worker.clone(), *epoch);
                self.held.remove(&life);
                assert!(!cause.is_empty());
                assert_eq!(self.lost.insert(life.clone(), now), None, "SU-1: {life:?} lost twice");
            }
            Effect::WorkerRestarting { group, worker, epoch, restarts, .. } => {
                let newest = self.newest.entry(group.clone()).or_default();
                assert!(*epoch >= *newest && epoch.0 > 1, "EP-2: {worker} {epoch} of {newest}");
                *newest = *epoch;
                let limit = self.specs[group].restart.max_restarts;
                assert!(*restarts <= limit, "SU-2: {restarts} restarts of {limit}");
                self.restarts.insert(group.clone(), *restarts);
            }
            Effect::GroupFailed { group, .. } => {
                assert!(self.failed.insert(group.clone()), "{group} failed twice");
            }
            Effect::GroupReady { .. } | Effect::AgentLost { .. } => {}
        }
    }

    fn check_state(&self, now: Time, event: &Event, machine: &Machine) {
        if matches!(event, Event::Tick) {
            assert!(
                machine.next_deadline().is_none_or(|at| at > now),
                "LE-1: overdue after a tick"
            );
        }
        for (name, spec) in &self.specs {
            let slots = machine.group(name).unwrap();
            if spec.restart.scope == RestartScope::Group && machine.is_ready(name) {
                assert!(slots.iter().all(|s| s.epoch == slots[0].epoch), "EP-3: {slots:?}");
            }
        }
        let mut used: BTreeMap<&AgentId, u64> = BTreeMap::new();
        for (_, agent, assignment) in self.held.values() {
            *used.entry(agent).or_default() += assignment.bundle.cpus_milli;
        }
        for (agent, resources) in machine.agents() {
            let used = used.get(agent).copied().unwrap_or(0);
            assert!(used <= resources.cpus_milli, "PL-1: {agent} holds {used}");
        }
    }

    /// EP-1: what a life says that is over is refused; what a current one says is not.
    pub(crate) fn check_refusal(&self, event: &Event, refused: bool) {
        let (life, registers) = match event {
            Event::WorkerRegistered { worker, epoch, .. } => ((worker.clone(), *epoch), true),
            Event::WorkerHeartbeat { worker, epoch, .. } => ((worker.clone(), *epoch), false),
            _ => return,
        };
        if !self.held.contains_key(&life) {
            assert!(refused, "EP-1: {life:?} is over and was heard");
        } else if registers || self.ready.contains(&life) {
            assert!(!refused, "EP-1: {life:?} is current and was refused");
        }
    }

    /// SU-4: a lost process is stopped in the same breath, unless its end is the news.
    fn check_stops(&self, event: &Event, effects: &[Effect]) {
        for effect in effects {
            let Effect::WorkerLost { worker, epoch, .. } = effect else { continue };
            let ended = matches!(event, Event::WorkerExited { worker: w, epoch: e, .. }
                if w == worker && e == epoch);
            let stopped = self.stops.contains(&(worker.clone(), *epoch));
            assert!(ended != stopped, "SU-4: {worker} epoch {epoch} by {event:?}");
        }
    }

    pub(crate) fn stop_came(&self, life: &Life) -> bool {
        self.arrived.contains(life)
    }

    pub(crate) fn stop_arrived(&mut self, worker: &WorkerId, epoch: Epoch) {
        self.arrived.insert((worker.clone(), epoch));
    }

    pub(crate) fn has_registered(&self, worker: &WorkerId, epoch: Epoch) -> bool {
        self.ready.contains(&(worker.clone(), epoch))
    }

    pub(crate) fn live(&self) -> usize {
        self.held.keys().filter(|life| self.ready.contains(*life)).count()
    }

    pub(crate) fn lost_at(&self, now: Time) -> usize {
        self.lost.values().filter(|time| **time == now).count()
    }
}
