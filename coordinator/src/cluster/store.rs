//! The rendezvous store: where the ranks of a collective group find one another.
//!
//! - **RE-1**: keys live under (group, epoch); two formations of a group share nothing.
//! - **RE-2**: only members of a formation may touch its keys.
//! - **RE-3**: who waits for a key of a formation that is closed is told at once.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use plumb_domain::{Epoch, WorkerId};
use plumb_proto::cluster::{StoreAddRequest, StoreDeleteRequest, StoreGetRequest, StoreSetRequest};
use tokio::sync::watch;
use tokio::time::Instant;
use tonic::Status;

/// Longest value that a rank may set.
const MAX_VALUE_BYTES: usize = 1 << 20;
/// Most keys of one formation.
const MAX_KEYS: usize = 100_000;
/// Longest wait of one call.
const MAX_WAIT: Duration = Duration::from_secs(3_600);

/// One life of one worker.
pub(super) type Member = (WorkerId, Epoch);

/// All open formations.
#[derive(Debug)]
pub(super) struct Store {
    formations: Mutex<BTreeMap<(String, u64), Formation>>,
    changed: watch::Sender<u64>,
}

#[derive(Debug, Default)]
struct Formation {
    members: Vec<Member>,
    keys: BTreeMap<String, Vec<u8>>,
}

impl Default for Store {
    fn default() -> Self {
        Self { formations: Mutex::default(), changed: watch::Sender::new(0) }
    }
}

impl Store {
    /// Opens a formation for its members.
    pub(super) fn open(&self, group: &str, epoch: u64, members: Vec<Member>) {
        let formation = Formation { members, keys: BTreeMap::new() };
        self.lock().insert((group.to_owned(), epoch), formation);
    }

    /// Closes a formation and wakes who waits in it (RE-3).
    pub(super) fn close(&self, group: &str, epoch: u64) {
        self.lock().remove(&(group.to_owned(), epoch));
        self.wake();
    }

    /// Sets a key.
    ///
    /// # Errors
    /// RE-2, or a value or number of keys beyond the bounds.
    pub(super) fn set(&self, peer: &Member, request: StoreSetRequest) -> Result<(), Status> {
        if request.value.len() > MAX_VALUE_BYTES {
            return Err(Status::invalid_argument(format!(
                "key {:?} of group {}: {} bytes are more than {MAX_VALUE_BYTES}",
                request.key,
                request.group,
                request.value.len()
            )));
        }
        self.with(peer, &request.group, request.epoch, |formation| {
            if formation.keys.len() >= MAX_KEYS && !formation.keys.contains_key(&request.key) {
                return Err(Status::resource_exhausted(format!(
                    "group {} holds {MAX_KEYS} keys already",
                    request.group
                )));
            }
            formation.keys.insert(request.key, request.value);
            Ok(())
        })?;
        self.wake();
        Ok(())
    }

    /// Waits until every key exists.
    ///
    /// # Errors
    /// `DEADLINE_EXCEEDED` naming the missing keys, `ABORTED` when the formation is closed (RE-3).
    pub(super) async fn get(
        &self,
        peer: &Member,
        request: StoreGetRequest,
    ) -> Result<Vec<Vec<u8>>, Status> {
        let wait = Duration::from_millis(u64::from(request.timeout_millis)).min(MAX_WAIT);
        let deadline = Instant::now() + wait;
        let mut changed = self.changed.subscribe();
        loop {
            changed.mark_unchanged();
            let missing = match self.look(peer, &request)? {
                Ok(values) => return Ok(values),
                Err(missing) => missing,
            };
            let woken = tokio::time::timeout_at(deadline, changed.changed()).await;
            if woken.is_err() {
                return Err(Status::deadline_exceeded(format!(
                    "after {} ms nobody has set {}",
                    wait.as_millis(),
                    missing.join(", ")
                )));
            }
        }
    }

    /// Adds to a counter.
    ///
    /// # Errors
    /// RE-2, or a key that holds no number.
    pub(super) fn add(&self, peer: &Member, request: StoreAddRequest) -> Result<i64, Status> {
        let value = self.with(peer, &request.group, request.epoch, |formation| {
            let old = formation.keys.get(&request.key);
            let old = old.map_or(Some(0), |v| std::str::from_utf8(v).ok()?.parse::<i64>().ok());
            let sum = old.and_then(|old| old.checked_add(request.amount)).ok_or_else(|| {
                Status::invalid_argument(format!(
                    "key {:?} of group {} holds no number that {} can be added to",
                    request.key, request.group, request.amount
                ))
            })?;
            formation.keys.insert(request.key, sum.to_string().into_bytes());
            Ok(sum)
        })?;
        self.wake();
        Ok(value)
    }

    /// Removes a key; returns whether it was there.
    ///
    /// # Errors
    /// RE-2.
    pub(super) fn delete(
        &self,
        peer: &Member,
        request: &StoreDeleteRequest,
    ) -> Result<bool, Status> {
        self.with(peer, &request.group, request.epoch, |formation| {
            Ok(formation.keys.remove(&request.key).is_some())
        })
    }

    /// The values, or the names of the missing keys.
    #[allow(clippy::type_complexity)] // the two outcomes of one look
    fn look(
        &self,
        peer: &Member,
        request: &StoreGetRequest,
    ) -> Result<Result<Vec<Vec<u8>>, Vec<String>>, Status> {
        self.with(peer, &request.group, request.epoch, |formation| {
            let missing: Vec<String> = request
                .keys
                .iter()
                .filter(|key| !formation.keys.contains_key(*key))
                .cloned()
                .collect();
            if !missing.is_empty() {
                return Ok(Err(missing));
            }
            Ok(Ok(request.keys.iter().filter_map(|k| formation.keys.get(k).cloned()).collect()))
        })
    }

    fn with<T>(
        &self,
        peer: &Member,
        group: &str,
        epoch: u64,
        work: impl FnOnce(&mut Formation) -> Result<T, Status>,
    ) -> Result<T, Status> {
        let mut formations = self.lock();
        let formation = formations.get_mut(&(group.to_owned(), epoch)).ok_or_else(|| {
            Status::aborted(format!("RE-3: group {group} (epoch {epoch}) is closed"))
        })?;
        if !formation.members.contains(peer) {
            return Err(Status::permission_denied(format!(
                "RE-2: {} (epoch {}) is no member of group {group} (epoch {epoch})",
                peer.0, peer.1
            )));
        }
        work(formation)
    }

    fn wake(&self) {
        self.changed.send_modify(|n| *n = n.wrapping_add(1));
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<(String, u64), Formation>> {
        self.formations.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn member(id: &str) -> Member {
        (WorkerId::new(id).unwrap(), Epoch(1))
    }

    fn set(key: &str, epoch: u64) -> StoreSetRequest {
        StoreSetRequest { group: "g".into(), epoch, key: key.into(), value: key.into() }
    }

    fn get(keys: &[&str], timeout_millis: u32) -> StoreGetRequest {
        let keys = keys.iter().map(|k| (*k).to_owned()).collect();
        StoreGetRequest { group: "g".into(), epoch: 1, keys, timeout_millis }
    }

    fn open() -> Store {
        let store = Store::default();
        store.open("g", 1, vec![member("a"), member("b")]);
        store
    }

    #[tokio::test]
    async fn a_reader_waits_for_every_key() {
        let store = std::sync::Arc::new(open());
        let reader = {
            let store = std::sync::Arc::clone(&store);
            tokio::spawn(async move { store.get(&member("a"), get(&["x", "y"], 5_000)).await })
        };
        store.set(&member("b"), set("y", 1)).unwrap();
        tokio::task::yield_now().await;
        store.set(&member("b"), set("x", 1)).unwrap();
        assert_eq!(reader.await.unwrap().unwrap(), vec![b"x".to_vec(), b"y".to_vec()]);
    }

    #[tokio::test]
    async fn a_reader_that_waits_in_vain_is_told_which_key_is_missing() {
        let store = open();
        store.set(&member("b"), set("x", 1)).unwrap();
        let error = store.get(&member("a"), get(&["x", "y"], 10)).await.unwrap_err();
        assert_eq!(error.message(), "after 10 ms nobody has set y");
    }

    #[tokio::test]
    async fn re_1_and_re_2_keys_belong_to_one_formation_and_its_members() {
        let store = open();
        let error = store.set(&member("stranger"), set("x", 1)).unwrap_err();
        assert!(error.message().starts_with("RE-2: stranger"), "{error}");
        let stale = (WorkerId::new("a").unwrap(), Epoch(0));
        assert!(store.set(&stale, set("x", 1)).is_err());
        store.open("g", 2, vec![member("a")]);
        store.set(&member("a"), set("x", 2)).unwrap();
        assert!(store.get(&member("a"), get(&["x"], 0)).await.is_err());
    }

    #[tokio::test]
    async fn re_3_closing_wakes_who_waits() {
        let store = std::sync::Arc::new(open());
        let reader = {
            let store = std::sync::Arc::clone(&store);
            tokio::spawn(async move { store.get(&member("a"), get(&["x"], 60_000)).await })
        };
        tokio::time::sleep(Duration::from_millis(10)).await;
        store.close("g", 1);
        let error = reader.await.unwrap().unwrap_err();
        assert_eq!(error.message(), "RE-3: group g (epoch 1) is closed");
    }

    #[test]
    fn counters_count_and_refuse_what_is_no_number() {
        let store = open();
        let add = |amount| {
            let request = StoreAddRequest { group: "g".into(), epoch: 1, key: "n".into(), amount };
            store.add(&member("a"), request)
        };
        assert_eq!(add(2).unwrap(), 2);
        assert_eq!(add(-5).unwrap(), -3);
        assert!(add(i64::MIN).is_err());
        store.set(&member("a"), set("n", 1)).unwrap();
        assert!(add(1).is_err());
        let delete = StoreDeleteRequest { group: "g".into(), epoch: 1, key: "n".into() };
        assert!(store.delete(&member("a"), &delete).unwrap());
        assert!(!store.delete(&member("a"), &delete).unwrap());
    }
}
