//! How much memory the workers of each role have held.

use std::collections::BTreeMap;
use std::time::Duration;

use plumb_domain::Role;
use plumb_proto::worker::StatusRequest;
use plumb_proto::worker::worker_service_client::WorkerServiceClient;

use super::{Fleet, RoleGroup};
use crate::cluster::Worker;

/// A worker that does not answer within this time goes unmeasured; figures hold nothing up.
const PATIENCE: Duration = Duration::from_secs(2);

/// Phase -> the most bytes that a process of the role held while it ran.
pub type PeakBytes = BTreeMap<String, u64>;

impl Fleet {
    /// What every role that worked since the last call has held, the largest of its processes.
    /// Groups that still live are asked; those that were released left their figures.
    pub async fn take_peak_bytes(&self) -> BTreeMap<Role, PeakBytes> {
        let groups: Vec<_> = self.groups.lock().await.values().cloned().collect();
        for group in groups {
            self.note_peak_bytes(&group).await;
        }
        std::mem::take(&mut *self.peaks())
    }

    /// Keeps the figures of a group that may be released next.
    pub(super) async fn note_peak_bytes(&self, group: &RoleGroup) {
        let workers = group.workers();
        let asked = futures::future::join_all(workers.iter().map(peak_bytes)).await;
        let mut peaks = self.peaks();
        let role = peaks.entry(group.role()).or_default();
        for (phase, bytes) in asked.into_iter().flatten() {
            let peak = role.entry(phase).or_default();
            *peak = (*peak).max(bytes);
        }
    }

    fn peaks(&self) -> std::sync::MutexGuard<'_, BTreeMap<Role, PeakBytes>> {
        self.peaks.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

async fn peak_bytes(worker: &Worker) -> PeakBytes {
    let mut client = WorkerServiceClient::new(worker.channel());
    match tokio::time::timeout(PATIENCE, client.status(StatusRequest {})).await {
        Ok(Ok(status)) => status.into_inner().peak_bytes.into_iter().collect(),
        Ok(Err(status)) => {
            tracing::debug!(worker = %worker.id(), cause = status.message(), "memory not measured");
            PeakBytes::new()
        }
        Err(_) => {
            tracing::debug!(worker = %worker.id(), "memory not measured in time");
            PeakBytes::new()
        }
    }
}
