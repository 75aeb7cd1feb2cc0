//! The ports of a step, carried out by worker groups of a cluster.
//!
//! A role's group is placed when it is first asked for and kept until it is released, so that
//! stages share it. Supervision (restart, budget, back-off) is the cluster's; what a restarted
//! worker must load and hear is [`recovery`]'s.

pub mod commits;
pub mod critic;
mod figures;
mod group;
pub mod memory;
mod optimizer;
pub mod policy;
pub mod ptx;
pub mod recovery;
pub mod reference;
pub mod rewards;
pub mod rollout;
pub mod trainer;
pub mod weights;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use plumb_config::{GroupConfig, Recipe};
use plumb_domain::{JobId, Role};
use tokio::sync::Mutex;
use tokio_util::sync::CancellationToken;

use crate::cluster::{Bundle, Cluster, GroupSpec, RestartPolicy, RestartScope, Strategy};
use crate::job::error::JobError;

pub use group::RoleGroup;

/// The worker groups of one job.
pub struct Fleet {
    cluster: Cluster,
    job: JobId,
    /// Before every group's and collective's name; empty for a cluster's first job.
    prefix: String,
    recipe: Arc<Recipe>,
    log_dir: PathBuf,
    cancel: CancellationToken,
    groups: Mutex<BTreeMap<Role, Arc<RoleGroup>>>,
    /// How often each role's group was placed. Processes of a released group may still be ending
    /// when the next one is placed, so that each placing has names of its own.
    placings: std::sync::Mutex<BTreeMap<Role, u32>>,
    /// Figures of released groups that nobody has taken yet.
    peaks: std::sync::Mutex<BTreeMap<Role, memory::PeakBytes>>,
}

impl Fleet {
    /// No group is placed yet.
    #[must_use]
    pub fn new(
        cluster: Cluster,
        job: JobId,
        prefix: String,
        recipe: Arc<Recipe>,
        log_dir: PathBuf,
        cancel: CancellationToken,
    ) -> Self {
        let (groups, placings, peaks) = Default::default();
        Self { cluster, job, prefix, recipe, log_dir, cancel, groups, placings, peaks }
    }

    /// The cluster.
    #[must_use]
    pub fn cluster(&self) -> &Cluster {
        &self.cluster
    }

    /// The recipe.
    #[must_use]
    pub fn recipe(&self) -> &Arc<Recipe> {
        &self.recipe
    }

    /// Ends when the job is cancelled.
    #[must_use]
    pub fn cancel(&self) -> &CancellationToken {
        &self.cancel
    }

    /// The group of a role, placed if it is not there.
    ///
    /// # Errors
    /// No room for it, or its workers did not start.
    pub async fn group(&self, role: Role) -> Result<Arc<RoleGroup>, JobError> {
        let mut groups = self.groups.lock().await;
        if let Some(group) = groups.get(&role) {
            return Ok(Arc::clone(group));
        }
        let spec = self.spec(role);
        let name = spec.name.clone();
        let placed = tokio::select! {
            placed = self.cluster.place(spec, self.log_dir.clone()) => placed,
            () = self.cancel.cancelled() => return Err(crate::ports::PhaseError::Cancelled.into()),
        };
        let group = placed.map_err(|error| JobError::Placement {
            group: name,
            cause: crate::job::error::chain(&error),
        })?;
        let group = Arc::new(RoleGroup::new(group, role, self));
        group.wait_ready().await?;
        groups.insert(role, Arc::clone(&group));
        Ok(group)
    }

    /// Stops a role's workers, if there are any.
    pub async fn release(&self, role: Role) {
        let group = self.groups.lock().await.remove(&role);
        if let Some(group) = group {
            self.note_peak_bytes(&group).await;
            group.release();
        }
    }

    /// Stops all workers of the job.
    pub async fn release_all(&self) {
        let groups = std::mem::take(&mut *self.groups.lock().await);
        for group in groups.values() {
            group.release();
        }
    }

    fn config(&self, role: Role) -> &GroupConfig {
        let groups = &self.recipe.groups;
        match role {
            Role::Policy => &groups.policy,
            Role::Critic => &groups.critic,
            Role::CostCritic => &groups.cost_critic,
            Role::Reference => &groups.reference,
            Role::RewardTrainer => &groups.reward_trainer,
            Role::Rollout => &groups.rollout,
            Role::Reward => &groups.reward,
        }
    }

    /// `<prefix><role>`, and from the second placing on `<prefix><role>.<n>`.
    fn fresh_name(&self, role: Role) -> String {
        let mut placings = self.placings.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let placing = placings.entry(role).or_default();
        *placing += 1;
        match *placing {
            1 => format!("{}{role}", self.prefix),
            n => format!("{}{role}.{n}", self.prefix),
        }
    }

    fn spec(&self, role: Role) -> GroupSpec {
        let config = self.config(role);
        let scope = match role {
            Role::Rollout | Role::Reward => RestartScope::Worker,
            _ => RestartScope::Group,
        };
        let millis = |secs: f64| (secs * 1e3) as u64;
        GroupSpec {
            name: self.fresh_name(role),
            role,
            world_size: config.world_size,
            bundle: Bundle {
                cpus_milli: (config.cpus * 1e3) as u64,
                gpus_milli: (config.gpus * 1e3) as u64,
                memory_bytes: 0,
            },
            threads: config.threads,
            strategy: match config.strategy {
                plumb_config::Strategy::Pack => Strategy::Pack,
                plumb_config::Strategy::Spread => Strategy::Spread,
                plumb_config::Strategy::StrictPack => Strategy::StrictPack,
                plumb_config::Strategy::StrictSpread => Strategy::StrictSpread,
            },
            restart: RestartPolicy {
                max_restarts: config.max_restarts,
                back_off_millis: millis(config.backoff_secs),
                max_back_off_millis: millis(config.backoff_secs * 8.0),
                scope,
            },
            start_timeout_millis: millis(self.recipe.timeouts.start_secs),
        }
    }

    fn phase_timeout(&self) -> Duration {
        Duration::from_secs_f64(self.recipe.timeouts.phase_secs)
    }

    fn collective_timeout(&self) -> Duration {
        Duration::from_secs_f64(self.recipe.timeouts.collective_secs)
    }
}
