//! The step machine's ear: every phase boundary goes through it, and onto the timeline.

use std::sync::{Arc, Mutex, PoisonError};

use plumb_domain::{PolicyVersion, Role, StepId};
use plumb_machine::step::{Phase as Due, StepMachine};

use crate::job::log::RunLog;
use crate::ports::{Journal, Phase, PhaseError, PhaseKey};

/// Asks the machine and notes spans.
pub(super) struct StepJournal<'a> {
    machine: Arc<Mutex<StepMachine>>,
    log: &'a RunLog,
}

impl<'a> StepJournal<'a> {
    /// Step `next` comes first; the policy has this version.
    pub(super) fn new(log: &'a RunLog, next: StepId, version: PolicyVersion) -> Self {
        let machine = match next.0.checked_sub(1) {
            None => StepMachine::new(version),
            Some(last) => StepMachine::resume(StepId(last), version),
        };
        Self { machine: Arc::new(Mutex::new(machine)), log }
    }

    /// A worker of this role was lost; returns the step that the machine wants next.
    pub(super) fn lost(&self, role: Role) -> StepId {
        self.machine().lost(role).step
    }

    /// The commit of this step is on disk.
    pub(super) fn checkpointed(&self, step: StepId) -> Result<(), PhaseError> {
        self.machine().checkpointed(step).map_err(|e| PhaseError::Failed(e.to_string()))
    }

    /// The policy holds the state before `next`, which may be older than the machine thinks.
    pub(super) fn fell_back(&self, next: StepId) -> Result<(), PhaseError> {
        self.machine().fell_back(next).map_err(|e| PhaseError::Failed(e.to_string()))
    }

    fn machine(&self) -> std::sync::MutexGuard<'_, StepMachine> {
        self.machine.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Journal for StepJournal<'_> {
    fn begin(&self, key: PhaseKey) -> Result<(), PhaseError> {
        let refused = |cause: String| PhaseError::Failed(cause);
        let mut machine = self.machine();
        if key.phase == Phase::Generate && machine.due().is_none() {
            machine.begin(key.step).map_err(|e| refused(e.to_string()))?;
        }
        let asked = due(key.phase);
        if machine.step() == key.step && machine.due() == Some(asked) {
            return Ok(());
        }
        Err(refused(format!(
            "{} of step {} is not due; {} of step {} is",
            key.phase,
            key.step,
            machine.due().map_or("the beginning", |due| due.as_str()),
            machine.step()
        )))
    }

    fn end(&self, key: PhaseKey, seconds: f64, outcome: Result<(), &PhaseError>) {
        self.log.span(
            key.phase.as_str(),
            &format!("{} {}", key.phase, key.step.0 + 1),
            seconds,
            outcome.is_ok(),
        );
        if outcome.is_err() {
            return;
        }
        let mut machine = self.machine();
        // The machine counts values and reference log-probs as part of Score, advantages, which the
        // coordinator computes between two calls, as a phase of their own, and the critics' update
        // as part of Update.
        let done: &[Due] = match key.phase {
            Phase::Generate => &[Due::Generate],
            Phase::Score | Phase::Values | Phase::UpdateValues => &[],
            Phase::Reference => &[Due::Score, Due::Advantages],
            Phase::Update => &[Due::Update],
            Phase::Publish => &[Due::Publish],
            Phase::Commit => &[Due::Commit],
        };
        for phase in done {
            if let Err(error) = machine.complete(*phase) {
                tracing::error!(step = key.step.0, phase = %key.phase, %error, "phase out of order");
            }
        }
    }
}

fn due(phase: Phase) -> Due {
    match phase {
        Phase::Generate => Due::Generate,
        Phase::Score | Phase::Values | Phase::Reference => Due::Score,
        Phase::UpdateValues | Phase::Update => Due::Update,
        Phase::Publish => Due::Publish,
        Phase::Commit => Due::Commit,
    }
}
