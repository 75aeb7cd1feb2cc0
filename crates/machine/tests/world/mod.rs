//! The simulated outside: nodes, processes, and a network that delays, reorders and loses.

mod check;

use std::collections::BTreeMap;

use plumb_domain::{AgentId, Epoch, Role, WorkerId};
use plumb_machine::{
    Bundle, Effect, Event, GroupSpec, Machine, NodeResources, RestartPolicy, RestartScope,
    Settings, Strategy, Time,
};

use check::Ledger;

const LEASE: u64 = 1_000;
const BEAT: u64 = 250;
const NODES: u64 = 3;

/// SplitMix64 (Steele, Lea and Flood 2014).
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }

    fn one_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }
}

/// What is under way, by arrival.
enum Message {
    ToMachine(Event),
    Start { agent: AgentId, worker: WorkerId, epoch: Epoch },
    Stop { worker: WorkerId, epoch: Epoch },
    Beat { worker: WorkerId, epoch: Epoch },
    AgentBeat { agent: AgentId },
}

struct Process {
    agent: AgentId,
    hangs: bool,
}

pub(crate) struct World {
    random: Random,
    machine: Machine,
    now: u64,
    messages: BTreeMap<(u64, u64), Message>,
    sent: u64,
    processes: BTreeMap<(WorkerId, Epoch), Process>,
    agents: BTreeMap<AgentId, bool>,
    ledger: Ledger,
    pub(crate) restarts: u64,
    pub(crate) became_ready: u64,
    pub(crate) failed: u64,
}

impl World {
    pub(crate) fn new(seed: u64) -> Self {
        let mut world = Self {
            random: Random(seed),
            machine: Machine::new(Settings { lease_millis: LEASE }),
            now: 0,
            messages: BTreeMap::new(),
            sent: 0,
            processes: BTreeMap::new(),
            agents: BTreeMap::new(),
            ledger: Ledger::default(),
            restarts: 0,
            became_ready: 0,
            failed: 0,
        };
        for node in 0..NODES {
            world.agent_up(node);
        }
        world
    }

    /// One message, or one misfortune.
    pub(crate) fn step(&mut self) {
        match self.random.below(40) {
            0 => self.place(),
            1 => self.crash(),
            2 => self.hang(),
            3 if self.random.one_in(3) => self.node_fails(),
            4 => {
                let node = self.random.below(NODES);
                self.agent_up(node);
            }
            5 if self.random.one_in(4) => self.release(),
            6 if self.random.one_in(4) => self.stall(),
            7 if self.random.one_in(3) => self.restart(),
            _ => self.deliver(),
        }
    }

    /// Good weather, then the end: every group is released and every process must go.
    pub(crate) fn settle(&mut self) {
        for group in self.machine.groups().map(str::to_owned).collect::<Vec<_>>() {
            self.handle(Event::ReleaseGroup { group });
        }
        while let Some((key, message)) = self.messages.pop_first() {
            self.now = self.now.max(key.0);
            match message {
                Message::Start { agent, worker, epoch } => self.started(agent, worker, epoch),
                Message::Stop { worker, epoch } => self.stopped(&worker, epoch),
                Message::Beat { worker, epoch } => self.last_beat(worker, epoch),
                _ => {}
            }
        }
        let left: Vec<_> = self.processes.keys().collect();
        assert!(left.is_empty(), "SU-4: {left:?} run although nothing is placed");
    }

    fn deliver(&mut self) {
        let due = self.machine.next_deadline().map_or(u64::MAX, |t| t.0);
        let arrival = self.messages.first_key_value().map(|(key, _)| key.0);
        if arrival.is_none_or(|arrival| due <= arrival) && due < u64::MAX {
            self.now = self.now.max(due);
            self.handle(Event::Tick);
            return;
        }
        let Some((key, message)) = self.messages.pop_first() else { return };
        self.now = self.now.max(key.0);
        match message {
            Message::ToMachine(event) => self.handle(event),
            Message::Start { agent, worker, epoch } => self.started(agent, worker, epoch),
            Message::Stop { worker, epoch } => self.stopped(&worker, epoch),
            Message::Beat { worker, epoch } => self.beat(worker, epoch),
            Message::AgentBeat { agent } => self.agent_beat(agent),
        }
    }

    fn handle(&mut self, event: Event) {
        let told = event.clone();
        let before = self.machine.clone();
        let result = self.machine.handle(Time(self.now), event);
        match &result {
            Ok(effects) => self.ledger.record(Time(self.now), &told, effects, &self.machine),
            Err(_) => assert_eq!(before, self.machine, "a refusal changed the state"),
        }
        self.ledger.check_refusal(&told, result.is_err());
        for effect in result.unwrap_or_default() {
            self.carry_out(effect);
        }
    }

    fn carry_out(&mut self, effect: Effect) {
        match effect {
            Effect::StartWorker { agent, worker, epoch, .. } => {
                self.send(Message::Start { agent, worker, epoch });
            }
            Effect::StopWorker { worker, epoch, .. } => {
                self.send(Message::Stop { worker, epoch });
            }
            Effect::WorkerRestarting { .. } => self.restarts += 1,
            Effect::GroupReady { .. } => self.became_ready += 1,
            Effect::GroupFailed { .. } => self.failed += 1,
            _ => {}
        }
    }

    fn send(&mut self, message: Message) {
        let delay = if self.random.one_in(20) { 1_500 } else { 60 };
        let millis = 1 + self.random.below(delay);
        self.send_after(millis, message);
    }

    fn send_after(&mut self, millis: u64, message: Message) {
        self.sent += 1;
        self.messages.insert((self.now + millis, self.sent), message);
    }

    fn started(&mut self, agent: AgentId, worker: WorkerId, epoch: Epoch) {
        let key = (worker.clone(), epoch);
        if !self.agents.get(&agent).copied().unwrap_or(false) || self.ledger.stop_came(&key) {
            return;
        }
        self.processes.insert(key, Process { agent, hangs: false });
        let address = format!("{worker}:{epoch}");
        let register = Event::WorkerRegistered { worker: worker.clone(), epoch, address };
        if !self.random.one_in(15) {
            self.send(Message::ToMachine(register));
        }
        self.send_after(BEAT, Message::Beat { worker, epoch });
    }

    fn stopped(&mut self, worker: &WorkerId, epoch: Epoch) {
        self.ledger.stop_arrived(worker, epoch);
        self.end(worker, epoch);
    }

    fn beat(&mut self, worker: WorkerId, epoch: Epoch) {
        let Some(process) = self.processes.get(&(worker.clone(), epoch)) else { return };
        if !process.hangs && !self.random.one_in(10) {
            let phase = "update".to_owned();
            let event = Event::WorkerHeartbeat { worker: worker.clone(), epoch, phase };
            let refused = self.machine.clone().handle(Time(self.now), event.clone()).is_err();
            self.handle(event);
            if refused && self.ledger.has_registered(&worker, epoch) {
                // HB-2: a fenced process stops by itself.
                self.end(&worker, epoch);
                return;
            }
        }
        self.send_after(BEAT, Message::Beat { worker, epoch });
    }

    /// In the end every beat is answered with a refusal.
    fn last_beat(&mut self, worker: WorkerId, epoch: Epoch) {
        let event =
            Event::WorkerHeartbeat { worker: worker.clone(), epoch, phase: "idle".to_owned() };
        assert!(self.machine.handle(Time(self.now), event).is_err(), "{worker} is not fenced");
        let hangs = self.processes.get(&(worker.clone(), epoch)).is_some_and(|p| p.hangs);
        if !hangs {
            self.end(&worker, epoch);
        }
    }

    fn agent_beat(&mut self, agent: AgentId) {
        if !self.agents.get(&agent).copied().unwrap_or(false) {
            return;
        }
        let event = Event::AgentHeartbeat { agent: agent.clone() };
        if self.machine.clone().handle(Time(self.now), event.clone()).is_err() {
            self.node_ends(&agent);
            return;
        }
        if !self.random.one_in(8) {
            self.handle(event);
        }
        self.send_after(BEAT, Message::AgentBeat { agent });
    }

    /// A process ends; its agent reports it unless the report is lost.
    fn end(&mut self, worker: &WorkerId, epoch: Epoch) {
        let Some(process) = self.processes.remove(&(worker.clone(), epoch)) else { return };
        let reported = self.agents.get(&process.agent).copied().unwrap_or(false);
        if reported && !self.random.one_in(10) {
            let reason = "signal 9".to_owned();
            let event = Event::WorkerExited { worker: worker.clone(), epoch, reason };
            self.send(Message::ToMachine(event));
        }
    }

    fn crash(&mut self) {
        if let Some((worker, epoch)) = self.some_process() {
            self.end(&worker, epoch);
        }
    }

    fn hang(&mut self) {
        if let Some(key) = self.some_process()
            && let Some(process) = self.processes.get_mut(&key)
        {
            process.hangs = true;
        }
    }

    fn some_process(&mut self) -> Option<(WorkerId, Epoch)> {
        let count = self.processes.len() as u64;
        if count == 0 {
            return None;
        }
        let index = usize::try_from(self.random.below(count)).unwrap();
        self.processes.keys().nth(index).cloned()
    }

    fn agent_up(&mut self, node: u64) {
        let agent = AgentId::new(format!("n{node}")).unwrap();
        if self.agents.insert(agent.clone(), true) == Some(true) {
            // It restarts: its processes die with it (AG-1).
            self.kill_all_on(&agent);
        }
        let resources = NodeResources { cpus_milli: 2_000, memory_bytes: 1 << 30, gpus: vec![] };
        self.handle(Event::AgentRegistered { agent: agent.clone(), resources });
        self.send_after(BEAT, Message::AgentBeat { agent });
    }

    fn node_fails(&mut self) {
        let agent = AgentId::new(format!("n{}", self.random.below(NODES))).unwrap();
        self.node_ends(&agent);
    }

    fn node_ends(&mut self, agent: &AgentId) {
        self.agents.insert(agent.clone(), false);
        self.kill_all_on(agent);
    }

    fn kill_all_on(&mut self, agent: &AgentId) {
        self.processes.retain(|_, process| process.agent != *agent);
    }

    fn place(&mut self) {
        let group = self.random.one_in(2);
        let strategies =
            [Strategy::Pack, Strategy::Spread, Strategy::StrictPack, Strategy::StrictSpread];
        let spec = GroupSpec {
            name: format!("g{}", self.random.below(3)),
            role: if group { Role::Policy } else { Role::Rollout },
            world_size: u32::try_from(1 + self.random.below(3)).unwrap(),
            bundle: Bundle {
                cpus_milli: 300 + self.random.below(700),
                memory_bytes: 0,
                gpus_milli: 0,
            },
            threads: 1,
            strategy: strategies[usize::try_from(self.random.below(4)).unwrap()],
            restart: RestartPolicy {
                max_restarts: u32::try_from(self.random.below(6)).unwrap(),
                back_off_millis: 20,
                max_back_off_millis: 200,
                scope: if group { RestartScope::Group } else { RestartScope::Worker },
            },
            start_timeout_millis: 800,
        };
        self.handle(Event::PlaceGroup { spec });
    }

    fn release(&mut self) {
        let group = format!("g{}", self.random.below(3));
        self.handle(Event::ReleaseGroup { group });
    }

    fn restart(&mut self) {
        let group = format!("g{}", self.random.below(3));
        self.handle(Event::RestartGroup { group, reason: "asked for".to_owned() });
    }

    /// The coordinator itself stands still (LE-3).
    fn stall(&mut self) {
        let millis = 5_000;
        let live = self.ledger.live();
        self.now += millis;
        self.handle(Event::Stalled { millis });
        self.handle(Event::Tick);
        // What arrives late was sent in time: it must find its lease alive.
        assert!(self.ledger.live() + self.ledger.lost_at(Time(self.now)) >= live);
    }
}
