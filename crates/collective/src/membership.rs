//! What the backends between processes share: joining, numbering of operations, and finding out on
//! failure who did not arrive.
//!
//! Ranks talk about failures through the rendezvous store, and only once something failed: each
//! failing rank closes its connections (so that its peers fail at once too), writes
//! `failed/<rank>`, and gives the others [`REPORT_GRACE`] to do the same. Who does not is dead,
//! hangs, or never came to the operation.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use plumb_torch::{Store, StoreError};

use crate::CollectiveError;

/// How long a failing rank waits for the others to report.
pub(crate) const REPORT_GRACE: Duration = Duration::from_secs(2);

pub(crate) struct Membership {
    pub(crate) group: String,
    pub(crate) rank: usize,
    pub(crate) world_size: usize,
    pub(crate) timeout: Duration,
    store: Arc<dyn Store>,
    ended: AtomicBool,
    next_sequence: AtomicU64,
}

impl Membership {
    /// Announces this rank and waits for all others.
    pub(crate) fn join(
        store: Arc<dyn Store>,
        group: &str,
        rank: usize,
        world_size: usize,
        timeout: Duration,
    ) -> Result<Self, CollectiveError> {
        let membership = Self {
            group: group.to_owned(),
            rank,
            world_size,
            timeout,
            store,
            ended: AtomicBool::new(false),
            next_sequence: AtomicU64::new(0),
        };
        if rank >= world_size {
            let reason = format!("there is no rank {rank} in a group of {world_size}");
            return Err(membership.misuse("join", reason));
        }
        membership.join_all()?;
        Ok(membership)
    }

    fn join_all(&self) -> Result<(), CollectiveError> {
        let keys: Vec<String> = (0..self.world_size).map(|r| format!("joined/{r}")).collect();
        let backend = |error: StoreError| self.backend("rendezvous", error.to_string());
        self.store.set(&keys[self.rank], b"1").map_err(backend)?;
        let all: Vec<&str> = keys.iter().map(String::as_str).collect();
        match self.store.get(&all, self.timeout) {
            Ok(_) => Ok(()),
            Err(StoreError::Timeout { .. }) => Err(CollectiveError::Join {
                group: self.group.clone(),
                rank: self.rank,
                world_size: self.world_size,
                absent: self.without(&keys),
                timeout_secs: self.timeout.as_secs_f64(),
            }),
            Err(error) => Err(backend(error)),
        }
    }

    /// The ranks whose key does not exist, other than this one.
    fn without(&self, keys: &[String]) -> Vec<usize> {
        let exists = |rank: usize| self.store.check(&[&keys[rank]]).unwrap_or(false);
        (0..self.world_size).filter(|&rank| rank != self.rank && !exists(rank)).collect()
    }

    /// The number of an operation that may start.
    pub(crate) fn enter(
        &self,
        operation: &'static str,
        operands: Result<(), String>,
    ) -> Result<u64, CollectiveError> {
        if self.has_ended() {
            return Err(self.aborted(operation));
        }
        operands.map_err(|reason| self.misuse(operation, reason))?;
        Ok(self.next_sequence.fetch_add(1, Ordering::SeqCst))
    }

    pub(crate) fn has_ended(&self) -> bool {
        self.ended.load(Ordering::SeqCst)
    }

    /// Refuses operations from now on; whether the group had not ended before.
    pub(crate) fn end(&self) -> bool {
        !self.ended.swap(true, Ordering::SeqCst)
    }

    /// What to report for an operation that the backend failed. `close` breaks the connections.
    pub(crate) fn failure(
        &self,
        operation: &'static str,
        sequence: u64,
        cause: String,
        close: impl FnOnce(),
    ) -> CollectiveError {
        let first = self.end();
        close();
        let keys: Vec<String> = (0..self.world_size).map(|r| format!("failed/{r}")).collect();
        let report = format!("{operation} number {sequence}");
        let reported = self.store.set(&keys[self.rank], report.as_bytes());
        if !first {
            return self.aborted(operation);
        }
        let mut cause = cause;
        if let Err(error) = reported {
            cause = format!("{cause}; the peers could not be asked: {error}");
        }
        let (absent, elsewhere) = self.reports(&keys, &report);
        if !elsewhere.is_empty() {
            cause = format!("{cause}; {}", elsewhere.join(", "));
        }
        CollectiveError::Peer {
            group: self.group.clone(),
            rank: self.rank,
            world_size: self.world_size,
            operation,
            sequence,
            absent,
            cause,
            timeout_secs: self.timeout.as_secs_f64(),
        }
    }

    /// The ranks that do not report, and what those say that failed in another operation.
    fn reports(&self, keys: &[String], own: &str) -> (Vec<usize>, Vec<String>) {
        let all: Vec<&str> = keys.iter().map(String::as_str).collect();
        match self.store.get(&all, REPORT_GRACE.min(self.timeout)) {
            Err(_) => (self.without(keys), Vec::new()),
            Ok(reports) => {
                let texts = reports.iter().map(|text| String::from_utf8_lossy(text));
                let others = texts.enumerate().filter(|(_, text)| text != own);
                (Vec::new(), others.map(|(r, text)| format!("rank {r} was in {text}")).collect())
            }
        }
    }

    pub(crate) fn aborted(&self, operation: &'static str) -> CollectiveError {
        CollectiveError::Aborted { group: self.group.clone(), rank: self.rank, operation }
    }

    pub(crate) fn misuse(&self, operation: &'static str, reason: String) -> CollectiveError {
        CollectiveError::Misuse { group: self.group.clone(), rank: self.rank, operation, reason }
    }

    pub(crate) fn backend(&self, backend: &'static str, reason: String) -> CollectiveError {
        CollectiveError::Backend { group: self.group.clone(), rank: self.rank, backend, reason }
    }
}
