//! Collective groups: formed by the coordinator, aborted when a member is lost (CL-2).

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use plumb_domain::{Epoch, WorkerId};
use plumb_proto::worker::worker_service_client::WorkerServiceClient;
use plumb_proto::worker::{AbortGroupRequest, CallContext, InitGroupRequest};
use tonic::transport::Channel;

use super::driver::Driver;
use super::error::{CallError, Loss};
use super::group::Worker;
use super::{Cluster, millis};

const ABORT_TIMEOUT: Duration = Duration::from_secs(5);

/// The formations that are open, and the newest epoch of every name.
#[derive(Debug, Default)]
pub(super) struct Collectives {
    inner: Mutex<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    newest: BTreeMap<String, u64>,
    open: BTreeMap<String, Formation>,
}

#[derive(Debug, Clone)]
struct Formation {
    epoch: u64,
    members: Vec<Member>,
}

#[derive(Debug, Clone)]
struct Member {
    id: WorkerId,
    epoch: Epoch,
    channel: Channel,
}

impl Collectives {
    fn open(&self, name: &str, workers: &[Worker]) -> (u64, Option<Formation>) {
        let member =
            |w: &Worker| Member { id: w.id().clone(), epoch: w.epoch(), channel: w.channel() };
        let mut inner = self.lock();
        let newest = inner.newest.entry(name.to_owned()).or_default();
        *newest += 1;
        let epoch = *newest;
        let formation = Formation { epoch, members: workers.iter().map(member).collect() };
        let before = inner.open.insert(name.to_owned(), formation);
        (epoch, before)
    }

    /// CL-2: closes every formation with that member and has the others abort.
    pub(super) fn member_lost(&self, driver: &Driver, loss: &Loss) {
        let mut inner = self.lock();
        let broken: Vec<String> = inner
            .open
            .iter()
            .filter(|(_, f)| f.members.iter().any(|m| m.id == loss.worker && m.epoch == loss.epoch))
            .map(|(name, _)| name.clone())
            .collect();
        for name in broken {
            let Some(formation) = inner.open.remove(&name) else { continue };
            driver.store().close(&name, formation.epoch);
            let others = formation.members.into_iter().filter(|m| m.id != loss.worker);
            for member in others {
                tokio::spawn(abort(name.clone(), member));
            }
        }
    }

    fn close(&self, name: &str) -> Option<Formation> {
        self.lock().open.remove(name)
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

async fn abort(group: String, member: Member) {
    let request = AbortGroupRequest {
        context: Some(CallContext {
            phase: format!("abort group {group}"),
            epoch: member.epoch.0,
            ..CallContext::default()
        }),
        group: group.clone(),
    };
    let mut client = WorkerServiceClient::new(member.channel);
    let call = client.abort_group(request);
    match tokio::time::timeout(ABORT_TIMEOUT, call).await {
        Ok(Ok(_)) => {}
        // A member that is going down with the group has nothing left to abort.
        Ok(Err(status)) => {
            tracing::debug!(group, worker = %member.id, reason = status.message(), "abort");
        }
        Err(_) => tracing::warn!(group, worker = %member.id, "abort of a group was not answered"),
    }
}

impl Cluster {
    /// Forms a collective group: rank is the place in `members`. Every member's `InitGroup` runs
    /// at once; an older formation of the same name is closed first. Returns the group's epoch.
    ///
    /// # Errors
    /// The first member's [`CallError`]; the formation is then closed again.
    pub async fn init_collective(
        &self,
        name: &str,
        members: &[Worker],
        backend: &str,
        timeout: Duration,
    ) -> Result<u64, CallError> {
        let driver = &self.driver;
        let (group_epoch, before) = driver.collectives().open(name, members);
        if let Some(before) = before {
            driver.store().close(name, before.epoch);
        }
        let who = members.iter().map(|w| (w.id().clone(), w.epoch())).collect();
        driver.store().open(name, group_epoch, who);
        let world_size = u32::try_from(members.len()).unwrap_or(u32::MAX);
        let inits = (0_u32..).zip(members).map(|(rank, worker)| {
            let phase = format!("init group {name}");
            let request = InitGroupRequest {
                context: Some(worker.context("cluster", group_epoch, &phase, rank, 0)),
                group: name.to_owned(),
                group_epoch,
                rank,
                world_size,
                backend: backend.to_owned(),
                timeout_millis: millis(timeout),
            };
            let mut client = WorkerServiceClient::new(worker.channel());
            async move { worker.call(&phase, client.init_group(request)).await }
        });
        match futures::future::try_join_all(inits).await {
            Ok(_) => Ok(group_epoch),
            Err(error) => {
                self.abort_collective(name).await;
                Err(error)
            }
        }
    }

    /// Closes a collective group and has its members leave it. A group that is not open is no
    /// error.
    pub async fn abort_collective(&self, name: &str) {
        let Some(formation) = self.driver.collectives().close(name) else { return };
        self.driver.store().close(name, formation.epoch);
        let aborts = formation.members.into_iter().map(|m| abort(name.to_owned(), m));
        futures::future::join_all(aborts).await;
    }
}
