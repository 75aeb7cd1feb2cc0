//! The way of new weights from the policy ranks to the rollout workers.
//!
//! - **WE-1**: a publication forms on a collective of exactly the live policy ranks and rollout
//!   workers; a restart of any of them needs a new one.
//! - **WE-2**: a version becomes live only when every rollout worker has shown the sender's
//!   digests.

use std::sync::Arc;

use futures::future::{try_join, try_join_all};
use plumb_domain::PolicyVersion;
use plumb_proto::actor::PublishRequest;
use plumb_proto::rollout::{ActivateRequest, ReceiveRequest};
use tokio::sync::Mutex;

use super::RoleGroup;
use super::group::CallId;
use super::reference::client as actor_client;
use super::rollout::{RolloutFleet, client as rollout_client};
use crate::cluster::Worker;
use crate::ports::{PhaseError, PhaseKey};

/// Name of the collective; policy rank 0 is its rank 0.
const COLLECTIVE: &str = "weights";

/// Sends weights.
pub struct Weights {
    policy: Arc<RoleGroup>,
    rollout: Arc<RolloutFleet>,
    /// Members of the collective as it was last formed (WE-1).
    members: Mutex<Vec<Worker>>,
}

impl Weights {
    /// No collective is formed yet.
    #[must_use]
    pub fn new(policy: Arc<RoleGroup>, rollout: Arc<RolloutFleet>) -> Self {
        Self { policy, rollout, members: Mutex::default() }
    }

    /// Makes `version`, which the policy ranks hold, live in every rollout worker.
    ///
    /// # Errors
    /// A worker was lost, or a digest differed.
    pub async fn publish(&self, key: PhaseKey, version: PolicyVersion) -> Result<(), PhaseError> {
        self.form().await?;
        let policy = self.policy.workers();
        let rollout = self.rollout.group().workers();
        // Set-up publications have no step of their own; a fresh attempt keeps keys apart.
        let attempt = self.policy.fresh_attempt();
        let (step, group) = (key.step.0, self.policy.collective_name(COLLECTIVE));
        let send = self.policy.call_all(&policy, "publish", |worker, shard| {
            let id = CallId { step, phase: "publish", shard, attempt };
            let request = PublishRequest {
                context: Some(self.policy.context(&worker, &id)),
                policy_version: version.0,
                group: group.clone(),
            };
            async move { Ok(actor_client(&worker).publish(request).await?.into_inner()) }
        });
        let receivers = self.rollout.group();
        let receive = receivers.call_all(&rollout, "receive", |worker, shard| {
            let id = CallId { step, phase: "receive", shard, attempt };
            let request = ReceiveRequest {
                context: Some(receivers.context(&worker, &id)),
                policy_version: version.0,
                group: group.clone(),
            };
            async move { Ok(rollout_client(&worker).receive(request).await?.into_inner()) }
        });
        let sent = match try_join(send, receive).await {
            Ok((sent, _)) => sent,
            Err(error) => {
                self.dissolve().await;
                return Err(error);
            }
        };
        let buckets =
            sent.into_iter().map(|s| s.buckets).find(|b| !b.is_empty()).ok_or_else(|| {
                PhaseError::Failed(format!("no policy rank told the buckets of version {version}"))
            })?;
        try_join_all(rollout.iter().enumerate().map(|(rank, worker)| {
            let id = CallId { step, phase: "activate", shard: rank as u32, attempt };
            let request = ActivateRequest {
                context: Some(receivers.context(worker, &id)),
                policy_version: version.0,
                buckets: buckets.clone(),
            };
            let activate =
                async move { Ok(rollout_client(worker).activate(request).await?.into_inner()) };
            receivers.call(worker, "activate", activate)
        }))
        .await?;
        self.rollout.set_version(version);
        Ok(())
    }

    /// Forms the collective unless it stands with the same members.
    async fn form(&self) -> Result<(), PhaseError> {
        let mut members = self.members.lock().await;
        let mut wanted = self.policy.workers();
        wanted.extend(self.rollout.group().workers());
        let same = |a: &Worker, b: &Worker| a.id() == b.id() && a.epoch() == b.epoch();
        let stands =
            members.len() == wanted.len() && members.iter().zip(&wanted).all(|(a, b)| same(a, b));
        if stands {
            return Ok(());
        }
        let name = self.policy.collective_name(COLLECTIVE);
        if !members.is_empty() {
            members.clear();
            self.policy.abort_collective(&name).await;
        }
        self.policy.collective(&name, &wanted).await?;
        *members = wanted;
        Ok(())
    }

    /// Leaves the collective: what is pending in it fails, and the next publication forms anew.
    pub async fn dissolve(&self) {
        self.members.lock().await.clear();
        self.policy.abort_collective(&self.policy.collective_name(COLLECTIVE)).await;
    }
}
