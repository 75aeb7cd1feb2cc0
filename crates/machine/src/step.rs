//! The phases of a training step: what is legal, and where a replay starts.
//!
//! A replay may start only where all inputs exist (ST-2). Samples live with the rollout worker
//! that made them, reference log-probs with the reference worker; scores and advantages are
//! scalars that the coordinator holds; the optimiser's state lives with the policy ranks and, as
//! of the last checkpoint, on disk.

use std::collections::BTreeMap;
use std::fmt;

use plumb_domain::{PolicyVersion, Role, StepId};
use serde::{Deserialize, Serialize};

/// The phases, in order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    /// Rollout workers answer the prompts.
    Generate,
    /// Reward workers score; the reference computes its log-probs.
    Score,
    /// The algorithm turns scores into advantages.
    Advantages,
    /// The policy takes its optimiser steps.
    Update,
    /// The new weights go to the rollout workers.
    Publish,
    /// The step's results are durable.
    Commit,
}

impl Phase {
    /// All of them, in order.
    pub const ALL: [Self; 6] =
        [Self::Generate, Self::Score, Self::Advantages, Self::Update, Self::Publish, Self::Commit];

    fn next(self) -> Option<Self> {
        Self::ALL.into_iter().find(|phase| *phase > self)
    }

    /// Its name in call contexts, logs and reports.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Generate => "generate",
            Self::Score => "score",
            Self::Advantages => "advantages",
            Self::Update => "update",
            Self::Publish => "publish",
            Self::Commit => "commit",
        }
    }
}

impl fmt::Display for Phase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Something that may not happen now.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StepError {
    /// ST-1: another phase is due.
    #[error("ST-1: {asked} of step {step} is not due; {due} is")]
    NotDue {
        /// The step.
        step: StepId,
        /// What was to be completed.
        asked: Phase,
        /// What is due.
        due: Phase,
    },
    /// ST-3: another step is due.
    #[error("ST-3: step {asked} is not due; step {due} is")]
    WrongStep {
        /// What was to begin.
        asked: StepId,
        /// What is due.
        due: StepId,
    },
    /// A step is running already, or none is.
    #[error("step {step}: {what}")]
    OutOfPlace {
        /// The step that is due.
        step: StepId,
        /// What is wrong.
        what: &'static str,
    },
}

/// What has to be done before the step goes on, and where it goes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Recovery {
    /// The policy must load this checkpoint: the state after that step, or the state the job
    /// started from.
    pub restore: Option<Restore>,
    /// The rollout workers must get the live version again before they generate.
    pub republish: bool,
    /// The step that is run next.
    pub step: StepId,
    /// The phase it goes on from. `None`: the step was not running, begin it.
    pub phase: Option<Phase>,
    /// Attempt number for the calls of the replay.
    pub attempt: u32,
}

/// Which state the policy goes back to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Restore {
    /// As the job started.
    Start,
    /// The checkpoint written when this step was committed.
    Checkpoint(StepId),
}

/// The steps of one job.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StepMachine {
    next: StepId,
    due: Option<Phase>,
    attempt: u32,
    checkpoint: Option<(StepId, PolicyVersion)>,
    /// Versions after the steps committed since the checkpoint.
    committed: BTreeMap<StepId, PolicyVersion>,
    start_version: PolicyVersion,
    version: PolicyVersion,
}

impl StepMachine {
    /// A job whose policy starts at this version.
    #[must_use]
    pub fn new(version: PolicyVersion) -> Self {
        Self {
            next: StepId(0),
            due: None,
            attempt: 0,
            checkpoint: None,
            committed: BTreeMap::new(),
            start_version: version,
            version,
        }
    }

    /// A job that goes on after a committed step with a checkpoint.
    #[must_use]
    pub fn resume(step: StepId, version: PolicyVersion) -> Self {
        Self { next: StepId(step.0 + 1), checkpoint: Some((step, version)), ..Self::new(version) }
    }

    /// Begins a step; Generate is due.
    ///
    /// # Errors
    /// [`StepError`] when a step is running or another step is due (ST-3).
    pub fn begin(&mut self, step: StepId) -> Result<Phase, StepError> {
        if self.due.is_some() {
            return Err(self.out_of_place("it is running already"));
        }
        if step != self.next {
            return Err(StepError::WrongStep { asked: step, due: self.next });
        }
        self.due = Some(Phase::Generate);
        self.attempt = 0;
        Ok(Phase::Generate)
    }

    /// A phase is done; returns the one that is due, or `None` after Commit.
    ///
    /// # Errors
    /// [`StepError::NotDue`] when another phase is due (ST-1).
    pub fn complete(&mut self, phase: Phase) -> Result<Option<Phase>, StepError> {
        let due = self.due.ok_or_else(|| self.out_of_place("no step is running"))?;
        if due != phase {
            return Err(StepError::NotDue { step: self.next, asked: phase, due });
        }
        if phase == Phase::Update {
            self.version = self.version.next();
        }
        self.due = phase.next();
        if self.due.is_none() {
            self.committed.insert(self.next, self.version);
            self.next = StepId(self.next.0 + 1);
        }
        Ok(self.due)
    }

    /// The checkpoint written when `step` was committed is durable; later steps may have been
    /// committed since.
    ///
    /// # Errors
    /// [`StepError::OutOfPlace`] for a step that was not committed since the last checkpoint.
    pub fn checkpointed(&mut self, step: StepId) -> Result<(), StepError> {
        let Some(version) = self.committed.get(&step).copied() else {
            return Err(self.out_of_place("a checkpoint belongs to a step that was committed"));
        };
        self.checkpoint = Some((step, version));
        self.committed.retain(|committed, _| *committed > step);
        Ok(())
    }

    /// The policy went back further than [`Recovery::restore`] said, because newer checkpoints
    /// are damaged: `next` is the first step that its state does not hold.
    ///
    /// # Errors
    /// [`StepError::WrongStep`] for a step after the one that is due.
    pub fn fell_back(&mut self, next: StepId) -> Result<(), StepError> {
        if next > self.next {
            return Err(StepError::WrongStep { asked: next, due: self.next });
        }
        if next < self.next {
            self.next = next;
            self.checkpoint = next.0.checked_sub(1).map(|step| (StepId(step), self.version));
            self.committed.clear();
            self.due = self.due.map(|_| Phase::Generate);
        }
        Ok(())
    }

    /// A worker of this role was lost and its group is live again: what now? (ST-2)
    #[must_use]
    pub fn lost(&mut self, role: Role) -> Recovery {
        let keep = Recovery {
            restore: None,
            republish: false,
            step: self.next,
            phase: self.due,
            attempt: self.attempt,
        };
        let recovery = match role {
            Role::Policy | Role::Critic | Role::CostCritic => self.fall_back(),
            // The samples went with their owner; after Update nobody needs them.
            Role::Rollout => Recovery {
                republish: true,
                phase: self.due.map(|p| if p <= Phase::Update { Phase::Generate } else { p }),
                ..keep
            },
            // Reference log-probs went with their owner; they are made in Score.
            Role::Reference => Recovery {
                phase: self.due.map(|p| {
                    if (Phase::Score..=Phase::Update).contains(&p) { Phase::Score } else { p }
                }),
                ..keep
            },
            // Scores are with the coordinator once Score is complete.
            Role::Reward | Role::RewardTrainer => keep,
        };
        self.due = recovery.phase;
        if self.due.is_some() {
            self.attempt += 1;
        }
        Recovery { attempt: self.attempt, ..recovery }
    }

    /// The policy's state is gone: back to the last checkpoint, the only place ST-3 yields.
    fn fall_back(&mut self) -> Recovery {
        let (restore, next, version) = match self.checkpoint {
            Some((step, version)) => (Restore::Checkpoint(step), StepId(step.0 + 1), version),
            None => (Restore::Start, StepId(0), self.start_version),
        };
        let running = self.due.is_some();
        self.next = next;
        self.version = version;
        self.committed.clear();
        Recovery {
            restore: Some(restore),
            // The rollouts may hold a version that the policy has just lost.
            republish: true,
            step: next,
            phase: running.then_some(Phase::Generate),
            attempt: self.attempt,
        }
    }

    /// The phase that is due, if a step is running.
    #[must_use]
    pub fn due(&self) -> Option<Phase> {
        self.due
    }

    /// The step that is running, or comes next.
    #[must_use]
    pub fn step(&self) -> StepId {
        self.next
    }

    /// The version of the policy's weights.
    #[must_use]
    pub fn version(&self) -> PolicyVersion {
        self.version
    }

    fn out_of_place(&self, what: &'static str) -> StepError {
        StepError::OutOfPlace { step: self.next, what }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A job that has done `steps` whole steps; the checkpoints follow the steps listed.
    fn after(steps: u64, checkpoints: &[u64]) -> StepMachine {
        let mut machine = StepMachine::new(PolicyVersion(0));
        for step in 0..steps {
            machine.begin(StepId(step)).unwrap();
            for phase in Phase::ALL {
                machine.complete(phase).unwrap();
            }
            if checkpoints.contains(&step) {
                machine.checkpointed(StepId(step)).unwrap();
            }
        }
        machine
    }

    /// A step of such a job that has come to `due`.
    fn at(due: Phase, steps: u64, checkpoints: &[u64]) -> StepMachine {
        let mut machine = after(steps, checkpoints);
        machine.begin(StepId(steps)).unwrap();
        for phase in Phase::ALL.into_iter().filter(|p| *p < due) {
            machine.complete(phase).unwrap();
        }
        machine
    }

    #[test]
    fn st_1_phases_run_in_order_and_no_other() {
        for due in Phase::ALL {
            for asked in Phase::ALL.into_iter().filter(|p| *p != due) {
                let mut machine = at(due, 1, &[]);
                let before = machine.clone();
                assert!(machine.complete(asked).is_err());
                assert_eq!(machine, before);
            }
        }
        let error = at(Phase::Score, 3, &[]).complete(Phase::Update).unwrap_err();
        assert_eq!(error.to_string(), "ST-1: update of step 3 is not due; score is");
        assert_eq!(after(2, &[]).version(), PolicyVersion(2));
    }

    #[test]
    fn st_2_a_lost_rollout_takes_its_samples_along_until_the_update() {
        for (due, resume) in [
            (Phase::Generate, Phase::Generate),
            (Phase::Score, Phase::Generate),
            (Phase::Update, Phase::Generate),
            (Phase::Publish, Phase::Publish),
            (Phase::Commit, Phase::Commit),
        ] {
            let mut machine = at(due, 1, &[]);
            let recovery = machine.lost(Role::Rollout);
            assert_eq!(recovery.phase, Some(resume), "{due}");
            assert!(recovery.republish && recovery.restore.is_none());
            assert_eq!((recovery.step, recovery.attempt), (StepId(1), 1));
            assert_eq!(machine.due(), Some(resume));
        }
    }

    #[test]
    fn st_2_a_lost_reference_or_reward_costs_at_most_the_score_phase() {
        let reference = at(Phase::Update, 1, &[]).lost(Role::Reference);
        assert_eq!((reference.phase, reference.republish), (Some(Phase::Score), false));
        let early = at(Phase::Generate, 1, &[]).lost(Role::Reference);
        assert_eq!(early.phase, Some(Phase::Generate));
        let reward = at(Phase::Update, 1, &[]).lost(Role::Reward);
        assert_eq!((reward.phase, reward.restore), (Some(Phase::Update), None));
    }

    #[test]
    fn st_3_only_a_policy_that_falls_back_runs_a_committed_step_again() {
        let mut machine = at(Phase::Update, 5, &[1, 3]);
        let recovery = machine.lost(Role::Policy);
        assert_eq!(recovery.restore, Some(Restore::Checkpoint(StepId(3))));
        assert_eq!((recovery.step, recovery.phase), (StepId(4), Some(Phase::Generate)));
        assert!(recovery.republish);
        assert_eq!(machine.version(), PolicyVersion(4));

        let mut fresh = at(Phase::Score, 2, &[]);
        let recovery = fresh.lost(Role::Policy);
        assert_eq!((recovery.restore, recovery.step), (Some(Restore::Start), StepId(0)));
        assert_eq!(fresh.version(), PolicyVersion(0));

        let error = after(2, &[]).begin(StepId(1)).unwrap_err();
        assert_eq!(error.to_string(), "ST-3: step 1 is not due; step 2 is");
    }

    #[test]
    fn between_steps_a_loss_replays_nothing() {
        let mut machine = after(2, &[1]);
        let recovery = machine.lost(Role::Rollout);
        assert_eq!((recovery.phase, recovery.step), (None, StepId(2)));
        assert_eq!(machine.begin(StepId(2)), Ok(Phase::Generate));
        assert!(machine.checkpointed(StepId(2)).is_err());
        let resumed = StepMachine::resume(StepId(6), PolicyVersion(7));
        assert_eq!((resumed.step(), resumed.version()), (StepId(7), PolicyVersion(7)));
    }

    #[test]
    fn a_checkpoint_may_become_durable_after_later_steps() {
        let mut machine = at(Phase::Update, 4, &[0]);
        machine.checkpointed(StepId(2)).unwrap();
        assert!(machine.checkpointed(StepId(1)).is_err(), "an older one is of no use");
        let recovery = machine.lost(Role::Policy);
        assert_eq!(recovery.restore, Some(Restore::Checkpoint(StepId(2))));
        assert_eq!((recovery.step, machine.version()), (StepId(3), PolicyVersion(3)));
        assert!(machine.checkpointed(StepId(3)).is_err(), "that step is to be run again");
    }

    #[test]
    fn a_damaged_checkpoint_takes_the_job_further_back() {
        let mut machine = at(Phase::Update, 6, &[1, 5]);
        assert_eq!(machine.lost(Role::Policy).step, StepId(6));
        assert!(machine.fell_back(StepId(7)).is_err());
        machine.fell_back(StepId(2)).unwrap();
        assert_eq!((machine.step(), machine.due()), (StepId(2), Some(Phase::Generate)));
        assert_eq!(machine.lost(Role::Policy).restore, Some(Restore::Checkpoint(StepId(1))));
        machine.fell_back(StepId(0)).unwrap();
        assert_eq!(machine.lost(Role::Policy).restore, Some(Restore::Start));
    }
}
