//! Joining and leaving collective groups.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use plumb_collective::gloo::Gloo;
use plumb_collective::nccl::Nccl;
use plumb_collective::{AbortHandle, Collective, CollectiveError};
use plumb_domain::PolicyVersion;
use plumb_runtime::{Backend, DeviceThread, GroupPlace, WorkerHooks};
use tch::Device;
use tonic::Status;

use crate::rendezvous::CoordinatorStore;
use crate::state::State;

/// The groups of this worker, as threads other than the device thread see them.
pub struct Groups {
    device: DeviceThread<State>,
    /// How to get the device thread out of a group that it may be stuck in.
    aborts: Mutex<BTreeMap<String, AbortHandle>>,
    version: AtomicU64,
}

impl Groups {
    /// No groups yet.
    #[must_use]
    pub fn new(device: DeviceThread<State>) -> Self {
        Self { device, aborts: Mutex::default(), version: AtomicU64::new(0) }
    }

    /// Says which version is live, for status calls.
    pub fn set_version(&self, version: PolicyVersion) {
        self.version.store(version.0, Ordering::Release);
    }
}

#[tonic::async_trait]
impl WorkerHooks for Groups {
    async fn init_group(&self, place: GroupPlace) -> Result<(), Status> {
        let name = place.group.clone();
        let abort = self
            .device
            .run(move |state| {
                let collective = connect(place, state.device())?;
                let abort = collective.abort_handle();
                state.join(collective);
                Ok::<_, Status>(abort)
            })
            .await??;
        let mut aborts = self.aborts.lock().unwrap_or_else(PoisonError::into_inner);
        aborts.insert(name, abort);
        Ok(())
    }

    async fn abort_group(&self, group: &str) -> Result<(), Status> {
        let mut aborts = self.aborts.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(abort) = aborts.remove(group) {
            tracing::warn!(group, "leaving a collective group");
            abort.abort();
        }
        Ok(())
    }

    fn policy_version(&self) -> u64 {
        self.version.load(Ordering::Acquire)
    }

    async fn stopping(&self) {
        let mut aborts = self.aborts.lock().unwrap_or_else(PoisonError::into_inner);
        std::mem::take(&mut *aborts).into_values().for_each(|abort| abort.abort());
    }
}

/// Meets the other ranks; blocks until all are there or the time is over.
// A `Status` is what the call returns; boxing it would be undone at once.
#[allow(clippy::result_large_err)]
fn connect(place: GroupPlace, device: Device) -> Result<Box<dyn Collective>, Status> {
    let GroupPlace { group, rank, world_size, backend, timeout, store, .. } = place;
    let failed = |error: CollectiveError| Status::aborted(plumb_runtime::chain(&error));
    let store = Arc::new(CoordinatorStore(store));
    match (backend, device) {
        (Backend::Gloo, _) => {
            let gloo = Gloo::connect(store, &group, rank, world_size, timeout);
            Ok(Box::new(gloo.map_err(failed)?))
        }
        (Backend::Nccl, Device::Cuda(index)) => {
            let nccl = Nccl::connect(store, &group, rank, world_size, timeout, index);
            Ok(Box::new(nccl.map_err(failed)?))
        }
        (Backend::Nccl, device) => Err(Status::invalid_argument(format!(
            "group {group:?}: backend nccl needs a CUDA device, this worker has {device:?}"
        ))),
    }
}
