//! Feeds events to the machine and carries out its effects.
//!
//! Effects in memory (fences, notices) happen under the machine's lock, so that nobody sees a
//! state whose effects are still to come. Effects on agents are calls, each in its own task.

mod effects;

use std::collections::BTreeMap;
use std::future::Future;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use plumb_domain::{AgentId, Epoch, WorkerId};
use plumb_machine::{Event, Machine, Refusal, Settings, SlotView, Time};
use plumb_runtime::{CertificateAuthority, Peers};
use tokio::sync::{Notify, broadcast, watch};
use tonic::transport::Channel;

use super::NodeView;
use super::audit::Audit;
use super::collective::Collectives;
use super::error::Loss;
use super::event::ClusterEvent;
use super::settings::ClusterSettings;
use super::store::Store;
use super::token::Tokens;

/// The driver wakes at least this often.
const LONGEST_SLEEP: Duration = Duration::from_millis(500);
/// Waking later than planned by this much means that the coordinator itself did not run (LE-3).
const STALL: Duration = Duration::from_secs(2);
/// Notices kept for a slow reader.
const NOTICES: usize = 1_024;

/// Tells every holder of a worker's handle that its epoch is over.
pub(super) type LostSignal = watch::Receiver<Option<Arc<Loss>>>;

pub(super) struct Driver {
    settings: ClusterSettings,
    address: String,
    started: Instant,
    ca: CertificateAuthority,
    peers: Peers,
    tokens: Tokens,
    audit: Audit,
    store: Store,
    collectives: Collectives,
    state: Mutex<State>,
    changed: watch::Sender<u64>,
    timer: Notify,
    events: broadcast::Sender<ClusterEvent>,
    closed: AtomicBool,
}

pub(super) struct State {
    pub(super) machine: Machine,
    agents: BTreeMap<AgentId, (String, Channel)>,
    lives: BTreeMap<(WorkerId, Epoch), watch::Sender<Option<Arc<Loss>>>>,
    exits: BTreeMap<(WorkerId, Epoch), String>,
    log_dirs: BTreeMap<String, PathBuf>,
    /// The newest loss of each group, for reports.
    losses: BTreeMap<String, Arc<Loss>>,
}

impl Driver {
    pub(super) fn start(
        settings: ClusterSettings,
        ca: CertificateAuthority,
        peers: Peers,
        audit: Audit,
        address: String,
    ) -> Arc<Self> {
        let lease_millis = u64::try_from(settings.lease.as_millis()).unwrap_or(u64::MAX);
        let state = State {
            machine: Machine::new(Settings { lease_millis }),
            agents: BTreeMap::new(),
            lives: BTreeMap::new(),
            exits: BTreeMap::new(),
            log_dirs: BTreeMap::new(),
            losses: BTreeMap::new(),
        };
        let driver = Arc::new(Self {
            settings,
            address,
            started: Instant::now(),
            ca,
            peers,
            tokens: Tokens::default(),
            audit,
            store: Store::default(),
            collectives: Collectives::default(),
            state: Mutex::new(state),
            changed: watch::Sender::new(0),
            timer: Notify::new(),
            events: broadcast::Sender::new(NOTICES),
            closed: AtomicBool::new(false),
        });
        let weak = Arc::downgrade(&driver);
        tokio::spawn(async move {
            while let Some(driver) = weak.upgrade() {
                driver.tick().await;
                if driver.closed.load(Ordering::Acquire) {
                    return;
                }
            }
        });
        driver
    }

    /// Takes an event; its effects are under way when this returns.
    pub(super) fn handle(self: &Arc<Self>, event: Event) -> Result<(), Refusal> {
        let mut state = self.lock();
        let effects = state.machine.handle(self.now(), event)?;
        if !effects.is_empty() {
            self.carry_out(&mut state, effects);
            drop(state);
            self.changed.send_modify(|n| *n = n.wrapping_add(1));
            self.timer.notify_one();
        }
        Ok(())
    }

    /// Resolves when the condition holds; it is looked at after every change.
    pub(super) async fn until(&self, mut condition: impl FnMut(&Self) -> bool) {
        let mut changed = self.changed.subscribe();
        loop {
            changed.mark_unchanged();
            if condition(self) || changed.changed().await.is_err() {
                return;
            }
        }
    }

    /// Resolves with the first `Some`; looked at after every change.
    pub(super) async fn first<T>(&self, mut look: impl FnMut(&Self) -> Option<T>) -> Option<T> {
        let mut changed = self.changed.subscribe();
        loop {
            changed.mark_unchanged();
            if let Some(found) = look(self) {
                return Some(found);
            }
            changed.changed().await.ok()?;
        }
    }

    /// No more restarts, no more ticks: the cluster is coming down.
    pub(super) fn close(&self) {
        self.closed.store(true, Ordering::Release);
        self.timer.notify_one();
    }

    pub(super) fn is_closed(&self) -> bool {
        self.closed.load(Ordering::Acquire)
    }

    async fn tick(self: &Arc<Self>) {
        let planned = self.sleep_length();
        let slept_from = Instant::now();
        tokio::select! {
            () = tokio::time::sleep(planned) => {}
            () = self.timer.notified() => return,
        }
        if self.is_closed() {
            return;
        }
        let late = slept_from.elapsed().saturating_sub(planned);
        if late > STALL {
            let millis = u64::try_from(late.as_millis()).unwrap_or(u64::MAX);
            tracing::warn!(millis, "the coordinator itself did not run; leases are extended");
            self.take(Event::Stalled { millis });
        }
        self.take(Event::Tick);
    }

    /// For events that the machine never refuses.
    pub(super) fn take(self: &Arc<Self>, event: Event) {
        if let Err(refusal) = self.handle(event) {
            tracing::error!(%refusal, "an event that cannot be refused was");
        }
    }

    fn sleep_length(&self) -> Duration {
        let deadline = self.lock().machine.next_deadline();
        let wait = deadline.map_or(u64::MAX, |at| at.0.saturating_sub(self.now().0));
        Duration::from_millis(wait).clamp(Duration::from_millis(1), LONGEST_SLEEP)
    }

    fn now(&self) -> Time {
        Time(u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX))
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn settings(&self) -> &ClusterSettings {
        &self.settings
    }

    pub(super) fn address(&self) -> &str {
        &self.address
    }

    pub(super) fn ca(&self) -> &CertificateAuthority {
        &self.ca
    }

    pub(super) fn peers(&self) -> &Peers {
        &self.peers
    }

    pub(super) fn tokens(&self) -> &Tokens {
        &self.tokens
    }

    pub(super) fn audit(&self) -> &Audit {
        &self.audit
    }

    pub(super) fn store(&self) -> &Store {
        &self.store
    }

    pub(super) fn collectives(&self) -> &Collectives {
        &self.collectives
    }

    pub(super) fn events(&self) -> broadcast::Receiver<ClusterEvent> {
        self.events.subscribe()
    }

    pub(super) fn set_log_dir(&self, group: &str, folder: PathBuf) {
        self.lock().log_dirs.insert(group.to_owned(), folder);
    }

    /// An agent may be called from now on.
    pub(super) fn agent_joined(&self, agent: &AgentId, address: String, channel: Channel) {
        self.lock().agents.insert(agent.clone(), (address, channel));
        self.notice(ClusterEvent::AgentJoined { agent: agent.clone() });
        self.changed.send_modify(|n| *n = n.wrapping_add(1));
    }

    pub(super) fn agents(&self) -> Vec<(AgentId, Channel)> {
        let state = self.lock();
        state.agents.iter().map(|(id, (_, channel))| (id.clone(), channel.clone())).collect()
    }

    /// What an agent reported about the end of a process, before the machine hears of it.
    pub(super) fn remember_exit(&self, worker: &WorkerId, epoch: Epoch, stderr_tail: String) {
        self.lock().exits.insert((worker.clone(), epoch), stderr_tail);
    }

    /// Whether this life of a worker is the current one and was placed on this node.
    pub(super) fn placed_on(&self, worker: &WorkerId, epoch: Epoch, agent: &AgentId) -> bool {
        let state = self.lock();
        state
            .machine
            .groups()
            .filter_map(|group| state.machine.group(group))
            .flatten()
            .any(|slot| slot.worker == *worker && slot.epoch == epoch && slot.agent == *agent)
    }

    pub(super) fn nodes(&self) -> Vec<NodeView> {
        let state = self.lock();
        let slots: Vec<SlotView> =
            state.machine.groups().filter_map(|g| state.machine.group(g)).flatten().collect();
        let view = |(id, resources): (&AgentId, &plumb_machine::NodeResources)| NodeView {
            agent: id.clone(),
            address: state.agents.get(id).map(|(address, _)| address.clone()).unwrap_or_default(),
            resources: resources.clone(),
            workers: slots
                .iter()
                .filter(|s| s.agent == *id)
                .map(|s| s.worker.to_string())
                .collect(),
        };
        state.machine.agents().map(view).collect()
    }

    fn notice(&self, event: ClusterEvent) {
        match event.level() {
            "info" => tracing::info!("{event}"),
            "warn" => tracing::warn!("{event}"),
            _ => tracing::error!("{event}"),
        }
        // Nobody listens when no job runs.
        let _ = self.events.send(event);
    }

    /// Runs a task that ends with the driver's work on an agent.
    fn spawn(work: impl Future<Output = ()> + Send + 'static) {
        tokio::spawn(work);
    }
}

impl State {
    /// The signal of a worker's epoch, if that epoch is known and not over.
    pub(super) fn lost_signal(&self, worker: &WorkerId, epoch: Epoch) -> Option<LostSignal> {
        self.lives.get(&(worker.clone(), epoch)).map(watch::Sender::subscribe)
    }

    /// The newest loss in a group.
    pub(super) fn last_loss(&self, group: &str) -> Option<Arc<Loss>> {
        self.losses.get(group).cloned()
    }

    /// Forgets a released group.
    pub(super) fn forget(&mut self, group: &str) {
        self.log_dirs.remove(group);
        self.losses.remove(group);
    }
}
