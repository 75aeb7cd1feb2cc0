//! The coordinator's rendezvous store as libtorch's collectives want it.

use std::time::Duration;

use plumb_runtime::{Rendezvous, RendezvousError};
use plumb_torch::{Store, StoreError};

/// Forwards to the coordinator. Called from libtorch's threads and from the device thread.
pub(crate) struct ClusterStore(pub(crate) Rendezvous);

fn failed(error: RendezvousError) -> StoreError {
    StoreError::Failed(error.to_string())
}

impl Store for ClusterStore {
    fn set(&self, key: &str, value: &[u8]) -> Result<(), StoreError> {
        self.0.set(key, value).map_err(failed)
    }

    fn get(&self, keys: &[&str], timeout: Duration) -> Result<Vec<Vec<u8>>, StoreError> {
        self.0.get(keys, timeout).map_err(|error| match error {
            RendezvousError::TimedOut { .. } => StoreError::Timeout {
                missing: keys.iter().map(|&key| key.to_owned()).collect(),
                timeout_secs: timeout.as_secs_f64(),
            },
            other => failed(other),
        })
    }

    fn add(&self, key: &str, amount: i64) -> Result<i64, StoreError> {
        self.0.add(key, amount).map_err(failed)
    }

    fn delete(&self, key: &str) -> Result<bool, StoreError> {
        self.0.delete(key).map_err(failed)
    }

    fn check(&self, keys: &[&str]) -> Result<bool, StoreError> {
        self.0.check(keys).map_err(failed)
    }
}
