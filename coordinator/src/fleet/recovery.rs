//! What follows the loss of a worker. The cluster restarts it; here the restarted one is given
//! what it needs.
//!
//! | lost | what is done | the job goes on with |
//! |---|---|---|
//! | rollout | load, form the weights collective anew, publish the current version | the same step |
//! | reward, reference | load | the same step |
//! | policy rank, critic rank | policy and critics load the last commit; it is published | the step after it |

use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::future::BoxFuture;
use plumb_domain::{Role, StepId};

use super::policy::PolicyFleet;
use super::reference::ReferenceFleet;
use super::rewards::RewardFleet;
use super::rollout::RolloutFleet;
use crate::job::events::EventLog;
use crate::job::log::RunLog;
use crate::ports::{Answer, Generated, Generation, Phase, PhaseError, PhaseKey, Recovery};

/// The groups of a training stage.
pub struct FleetRecovery {
    /// The model under training.
    pub policy: Arc<PolicyFleet>,
    /// Generation.
    pub rollout: Arc<RolloutFleet>,
    /// Scoring.
    pub rewards: Arc<RewardFleet>,
    /// The leash.
    pub reference: Arc<ReferenceFleet>,
    /// Where the loss is told.
    pub events: Arc<EventLog>,
    /// Where it is counted.
    pub log: RunLog,
}

/// Tries before a worker that is lost again and again while it is brought back ends the job; the
/// restart budget of its group usually ends it first.
const TRIES: u32 = 8;

/// Within this time the coordinator hears of a process that has ended.
const NOTICE: Duration = Duration::from_secs(3);

impl FleetRecovery {
    async fn restore_role(&self, role: Role, step: StepId) -> Result<StepId, PhaseError> {
        self.events.notice("info", format!("bringing the {role} back"));
        self.log.restarted();
        let mut lost = role;
        let mut resume = step;
        for _ in 0..TRIES {
            match self.bring_back(lost, resume).await {
                Ok(next) => {
                    resume = resume.min(next);
                    self.events.notice("info", format!("{role} is back; step {}", resume.0 + 1));
                    return Ok(resume);
                }
                // Lost again, or another one lost meanwhile: that one first.
                Err(PhaseError::Lost { role, worker, phase, cause }) => {
                    tracing::warn!(step = step.0, %worker, %phase, %cause, "lost in recovery");
                    lost = role;
                }
                Err(error) => return Err(error),
            }
        }
        Err(PhaseError::Failed(format!("{role} was lost {TRIES} times while it was brought back")))
    }

    async fn bring_back(&self, role: Role, step: StepId) -> Result<StepId, PhaseError> {
        let key = PhaseKey { step, phase: Phase::Publish, attempt: 0 };
        match role {
            Role::Rollout => {
                self.rollout.group().wait_ready().await?;
                self.policy.dissolve_weights().await;
                self.rollout.load_missing().await?;
                if self.policy.version().0 > 0 {
                    self.policy.publish_current(key).await?;
                }
                Ok(step)
            }
            Role::Reward => {
                self.rewards.group().wait_ready().await?;
                self.rewards.load_missing().await?;
                Ok(step)
            }
            Role::Reference => {
                self.reference.group().wait_ready().await?;
                self.reference.load_missing().await?;
                Ok(step)
            }
            Role::Policy | Role::Critic | Role::CostCritic | Role::RewardTrainer => {
                self.policy.group().wait_ready().await?;
                self.policy.dissolve_weights().await;
                let resume = self.policy.load(true).await?;
                self.rollout.load_missing().await?;
                self.policy.publish_current(key).await?;
                Ok(resume)
            }
        }
    }
}

impl Recovery for FleetRecovery {
    fn restore(&self, role: Role, step: StepId) -> Answer<'_, StepId> {
        Box::pin(self.restore_role(role, step))
    }

    fn lost_owner<'a>(&'a self, generation: &'a Generation) -> BoxFuture<'a, Option<String>> {
        Box::pin(async move {
            let start = Instant::now();
            loop {
                let live = self.rollout.group().workers();
                let lives = |group: &Generated| {
                    live.iter().any(|w| {
                        w.id().as_str() == group.owner
                            && w.epoch() == group.owner_epoch
                            && w.is_live()
                    })
                };
                if let Some(group) = generation.groups.iter().find(|g| !lives(g)) {
                    return Some(group.owner.clone());
                }
                if start.elapsed() > NOTICE {
                    return None;
                }
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        })
    }
}
