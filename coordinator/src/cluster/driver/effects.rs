//! Carrying out the machine's effects.

use std::sync::Arc;
use std::time::{Duration, Instant};

use plumb_domain::{AgentId, Epoch, Role, WorkerId};
use plumb_machine::{Assignment, Effect, Event};
use plumb_proto::agent::agent_service_client::AgentServiceClient;
use plumb_proto::agent::{StartWorkerRequest, StopWorkerRequest, WorkerKind};
use plumb_runtime::Identity;
use tokio::sync::watch;

use super::{Driver, State};
use crate::cluster::error::Loss;
use crate::cluster::event::ClusterEvent;
use crate::cluster::millis;

/// An agent answers a start or stop within this time beyond any grace.
const AGENT_TIMEOUT: Duration = Duration::from_secs(20);

impl Driver {
    pub(super) fn carry_out(self: &Arc<Self>, state: &mut State, effects: Vec<Effect>) {
        for effect in effects {
            match effect {
                Effect::StartWorker { agent, worker, epoch, role, group, assignment, .. } => {
                    self.start_worker(state, &agent, worker, epoch, role, &group, &assignment);
                }
                Effect::StopWorker { agent, worker, epoch, orderly } => {
                    state.lives.remove(&(worker.clone(), epoch));
                    self.stop_worker(state, &agent, &worker, epoch, orderly);
                }
                Effect::WorkerReady { worker, epoch, .. } => {
                    self.notice(ClusterEvent::WorkerReady { worker, epoch });
                }
                Effect::GroupReady { .. } => {}
                Effect::WorkerLost { group, worker, rank, epoch, phase, cause } => {
                    let key = (worker.clone(), epoch);
                    let stderr_tail = state.exits.remove(&key).unwrap_or_default();
                    let loss = Loss { worker, rank, epoch, phase, cause, stderr_tail };
                    self.worker_lost(state, group, Arc::new(loss));
                }
                Effect::WorkerRestarting { worker, epoch, restarts, after_millis, .. } => {
                    self.notice(ClusterEvent::WorkerRestarting {
                        worker,
                        epoch,
                        restarts,
                        after_millis,
                    });
                }
                Effect::GroupFailed { group, cause } => {
                    self.notice(ClusterEvent::GroupFailed { group, cause });
                }
                Effect::AgentLost { agent, cause } => {
                    if let Some((address, _)) = state.agents.remove(&agent) {
                        self.peers.forget(&address);
                    }
                    self.notice(ClusterEvent::AgentLost { agent, cause });
                }
            }
        }
    }

    /// CL-1 and CL-2.
    fn worker_lost(self: &Arc<Self>, state: &mut State, group: String, loss: Arc<Loss>) {
        let key = (loss.worker.clone(), loss.epoch);
        if let Some(life) = state.lives.remove(&key) {
            life.send_replace(Some(Arc::clone(&loss)));
        }
        self.collectives.member_lost(self, &loss);
        state.losses.insert(group, Arc::clone(&loss));
        self.notice(ClusterEvent::WorkerLost(loss));
    }

    #[allow(clippy::too_many_arguments)] // the fields of one effect
    fn start_worker(
        self: &Arc<Self>,
        state: &mut State,
        agent: &AgentId,
        worker: WorkerId,
        epoch: Epoch,
        role: Role,
        group: &str,
        assignment: &Assignment,
    ) {
        if self.is_closed() {
            return;
        }
        state.lives.insert((worker.clone(), epoch), watch::Sender::new(None));
        let spec = state.machine.spec(group);
        let threads = spec.map_or(1, |s| s.threads);
        let life = Duration::from_millis(spec.map_or(60_000, |s| s.start_timeout_millis));
        let identity = Identity::Worker { role, epoch, id: worker.clone() };
        let log_dir = state.log_dirs.get(group).map(|p| p.display().to_string());
        let request = StartWorkerRequest {
            worker_id: worker.to_string(),
            epoch: epoch.0,
            kind: kind_of(role).into(),
            role: role.to_string(),
            join_token: self.tokens.issue(identity, life, Instant::now()),
            log_dir: log_dir.unwrap_or_default(),
            device: device_of(assignment),
            threads,
        };
        let channel = state.agents.get(agent).map(|(_, channel)| channel.clone());
        let (driver, agent) = (Arc::clone(self), agent.clone());
        Self::spawn(async move {
            let failed = match channel {
                None => Some(format!("its node {agent} is gone")),
                Some(channel) => {
                    let mut client = AgentServiceClient::new(channel);
                    let call = client.start_worker(request);
                    match tokio::time::timeout(AGENT_TIMEOUT, call).await {
                        Ok(Ok(_)) => None,
                        Ok(Err(status)) => Some(status.message().to_owned()),
                        Err(_) => Some(format!("agent {agent} did not answer")),
                    }
                }
            };
            if let Some(what) = failed {
                let reason = format!("it could not be started: {what}");
                driver.take(Event::WorkerExited { worker, epoch, reason });
            }
        });
    }

    fn stop_worker(
        self: &Arc<Self>,
        state: &State,
        agent: &AgentId,
        worker: &WorkerId,
        epoch: Epoch,
        orderly: bool,
    ) {
        let Some((_, channel)) = state.agents.get(agent) else { return };
        let grace = if orderly { self.settings.grace } else { Duration::ZERO };
        let request = StopWorkerRequest {
            worker_id: worker.to_string(),
            epoch: epoch.0,
            grace_millis: millis(grace),
        };
        let (mut client, worker) = (AgentServiceClient::new(channel.clone()), worker.clone());
        Self::spawn(async move {
            let call = client.stop_worker(request);
            match tokio::time::timeout(grace + AGENT_TIMEOUT, call).await {
                Ok(Ok(_)) => {}
                Ok(Err(status)) => {
                    let reason = status.message();
                    tracing::warn!(%worker, %epoch, reason, "the agent did not stop a worker");
                }
                Err(_) => tracing::warn!(%worker, %epoch, "the agent did not answer a stop"),
            }
        });
    }
}

fn kind_of(role: Role) -> WorkerKind {
    match role {
        Role::Policy | Role::Reference | Role::Critic | Role::CostCritic | Role::RewardTrainer => {
            WorkerKind::Actor
        }
        Role::Rollout => WorkerKind::Rollout,
        Role::Reward => WorkerKind::Reward,
    }
}

fn device_of(assignment: &Assignment) -> String {
    match assignment.gpus.first() {
        None => "cpu".to_owned(),
        Some(share) => format!("cuda:{}", share.index),
    }
}

#[cfg(test)]
mod tests {
    use plumb_machine::{Bundle, GpuShare};

    use super::*;

    #[test]
    fn a_share_of_a_gpu_is_a_device_and_none_is_the_cpu() {
        let bundle = Bundle { cpus_milli: 0, memory_bytes: 0, gpus_milli: 0 };
        let cpu = Assignment { bundle, gpus: Vec::new() };
        assert_eq!(device_of(&cpu), "cpu");
        let gpu = Assignment { bundle, gpus: vec![GpuShare { index: 3, milli: 500 }] };
        assert_eq!(device_of(&gpu), "cuda:3");
    }
}
