//! Joining and leaving collective groups.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use plumb_collective::gloo::Gloo;
use plumb_collective::nccl::Nccl;
use plumb_collective::{AbortHandle, Collective, CollectiveError};
use plumb_runtime::{Backend, DeviceThread, GroupPlace, WorkerContext, WorkerHooks};
use tonic::Status;

use crate::role::ActorRole;
use crate::store::ClusterStore;

/// The groups of this worker, as threads other than the device thread see them.
pub(crate) struct Groups {
    context: WorkerContext,
    device: DeviceThread<ActorRole>,
    /// How to get the device thread out of a group that it may be stuck in.
    aborts: Mutex<BTreeMap<String, AbortHandle>>,
    policy_version: AtomicU64,
}

impl Groups {
    /// No groups yet.
    pub(crate) fn new(context: WorkerContext, device: DeviceThread<ActorRole>) -> Self {
        Self { context, device, aborts: Mutex::default(), policy_version: AtomicU64::new(0) }
    }

    /// Says which version is live, for status calls.
    pub(crate) fn set_policy_version(&self, policy_version: u64) {
        self.policy_version.store(policy_version, Ordering::Release);
    }
}

#[tonic::async_trait]
impl WorkerHooks for Groups {
    async fn init_group(&self, place: GroupPlace) -> Result<(), Status> {
        let name = place.group.clone();
        let joined = self.device.run(move |role| {
            let collective = connect(place, role.device())?;
            let abort = collective.abort_handle();
            role.join(collective);
            Ok::<_, Status>(abort)
        });
        let abort = joined.await??;
        let mut aborts = self.aborts.lock().unwrap_or_else(PoisonError::into_inner);
        aborts.insert(name, abort);
        Ok(())
    }

    async fn abort_group(&self, group: &str) -> Result<(), Status> {
        let mut aborts = self.aborts.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(abort) = aborts.remove(group) {
            tracing::warn!(worker = %self.context.worker_id(), group, "leaving a collective group");
            abort.abort();
        }
        Ok(())
    }

    fn policy_version(&self) -> u64 {
        self.policy_version.load(Ordering::Acquire)
    }

    async fn stopping(&self) {
        let aborts =
            std::mem::take(&mut *self.aborts.lock().unwrap_or_else(PoisonError::into_inner));
        aborts.into_values().for_each(|abort| abort.abort());
    }
}

/// Meets the other ranks; blocks until all are there or the time is over.
#[allow(clippy::result_large_err)]
fn connect(place: GroupPlace, device: tch::Device) -> Result<Box<dyn Collective>, Status> {
    let GroupPlace { group, rank, world_size, backend, timeout, store, .. } = place;
    let failed = |error: CollectiveError| Status::aborted(plumb_runtime::chain(&error));
    let store = Arc::new(ClusterStore(store));
    match backend {
        Backend::Gloo => {
            let gloo = Gloo::connect(store, &group, rank, world_size, timeout);
            Ok(Box::new(gloo.map_err(failed)?))
        }
        Backend::Nccl => {
            let tch::Device::Cuda(index) = device else {
                let problem = format!(
                    "group {group:?}: backend nccl needs a CUDA device, this worker runs on {device:?}"
                );
                return Err(Status::failed_precondition(problem));
            };
            let nccl = Nccl::connect(store, &group, rank, world_size, timeout, index);
            Ok(Box::new(nccl.map_err(failed)?))
        }
    }
}
