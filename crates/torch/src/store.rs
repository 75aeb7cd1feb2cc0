use std::collections::BTreeMap;
use std::ffi::{c_char, c_int, c_void};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::ffi::{self, Answer, StoreCallbacks, StoreKey, ValueSink};

/// Why a rendezvous store could not answer.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum StoreError {
    /// Keys that nobody set in time.
    #[error("nobody set {missing:?} within {timeout_secs} s")]
    Timeout {
        /// The keys that do not exist.
        missing: Vec<String>,
        /// How long was waited, in seconds.
        timeout_secs: f64,
    },
    /// The store cannot be reached or refused the call.
    #[error("rendezvous store: {0}")]
    Failed(String),
}

/// The key-value store through which the ranks of a group find each other.
///
/// Called from any thread. Keys are the group's own: an implementation keeps groups apart.
pub trait Store: Send + Sync + 'static {
    /// Sets a key, replacing what it held.
    ///
    /// # Errors
    /// [`StoreError::Failed`].
    fn set(&self, key: &str, value: &[u8]) -> Result<(), StoreError>;

    /// The values of `keys` in order, once all exist.
    ///
    /// # Errors
    /// [`StoreError::Timeout`] naming the missing keys, [`StoreError::Failed`].
    fn get(&self, keys: &[&str], timeout: Duration) -> Result<Vec<Vec<u8>>, StoreError>;

    /// Adds to a counter that starts at 0 and returns the sum.
    ///
    /// # Errors
    /// [`StoreError::Failed`].
    fn add(&self, key: &str, amount: i64) -> Result<i64, StoreError>;

    /// Removes a key; whether it existed.
    ///
    /// # Errors
    /// [`StoreError::Failed`].
    fn delete(&self, key: &str) -> Result<bool, StoreError>;

    /// Whether all `keys` exist now.
    ///
    /// # Errors
    /// [`StoreError::Failed`].
    fn check(&self, keys: &[&str]) -> Result<bool, StoreError> {
        match self.get(keys, Duration::ZERO) {
            Ok(_) => Ok(true),
            Err(StoreError::Timeout { .. }) => Ok(false),
            Err(error) => Err(error),
        }
    }
}

/// A store for ranks that are threads of one process.
#[derive(Debug, Default)]
pub struct MemoryStore {
    values: Mutex<BTreeMap<String, Vec<u8>>>,
    changed: Condvar,
}

impl MemoryStore {
    /// An empty store, ready to be shared.
    #[must_use]
    pub fn new() -> Arc<Self> {
        Arc::new(Self::default())
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, Vec<u8>>> {
        // Every change is one insertion or removal, so a panicking holder leaves no half-state.
        self.values.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Store for MemoryStore {
    fn set(&self, key: &str, value: &[u8]) -> Result<(), StoreError> {
        self.lock().insert(key.to_owned(), value.to_vec());
        self.changed.notify_all();
        Ok(())
    }

    fn get(&self, keys: &[&str], timeout: Duration) -> Result<Vec<Vec<u8>>, StoreError> {
        let start = Instant::now();
        let mut values = self.lock();
        loop {
            let missing: Vec<String> = keys
                .iter()
                .filter(|key| !values.contains_key(**key))
                .map(|key| (*key).to_owned())
                .collect();
            if missing.is_empty() {
                return Ok(keys.iter().filter_map(|key| values.get(*key).cloned()).collect());
            }
            let Some(left) = timeout.checked_sub(start.elapsed()).filter(|left| !left.is_zero())
            else {
                return Err(StoreError::Timeout { missing, timeout_secs: timeout.as_secs_f64() });
            };
            let (guard, _) =
                self.changed.wait_timeout(values, left).unwrap_or_else(PoisonError::into_inner);
            values = guard;
        }
    }

    fn add(&self, key: &str, amount: i64) -> Result<i64, StoreError> {
        let mut values = self.lock();
        let current = match values.get(key) {
            None => 0,
            Some(bytes) => std::str::from_utf8(bytes)
                .ok()
                .and_then(|text| text.parse::<i64>().ok())
                .ok_or_else(|| StoreError::Failed(format!("key {key:?} holds no counter")))?,
        };
        let sum = current
            .checked_add(amount)
            .ok_or_else(|| StoreError::Failed(format!("counter {key:?} overflows")))?;
        values.insert(key.to_owned(), sum.to_string().into_bytes());
        self.changed.notify_all();
        Ok(sum)
    }

    fn delete(&self, key: &str) -> Result<bool, StoreError> {
        Ok(self.lock().remove(key).is_some())
    }
}

/// The callbacks by which libtorch reaches `store`. Their `release` drops the reference.
pub(crate) fn callbacks(store: Arc<dyn Store>) -> StoreCallbacks {
    // A fat pointer does not fit a void*, so the Arc itself is boxed.
    let context = Box::into_raw(Box::new(store)).cast::<c_void>();
    StoreCallbacks { context, set, get, check, add, remove, release }
}

/// Runs one callback; an error or a panic becomes a message, since neither may unwind into C++.
///
/// # Safety
/// `context` comes from [`callbacks`] and was not released.
unsafe fn call(
    context: *mut c_void,
    body: impl FnOnce(&dyn Store) -> Result<(), StoreError>,
) -> Answer {
    // SAFETY: by the contract `context` is the boxed Arc, alive until `release`.
    let store = unsafe { &*context.cast::<Arc<dyn Store>>() };
    let message = match catch_unwind(AssertUnwindSafe(|| body(&**store))) {
        Ok(Ok(())) => return std::ptr::null_mut(),
        Ok(Err(error)) => error.to_string(),
        Err(_) => "the rendezvous store panicked".to_owned(),
    };
    // SAFETY: pointer and length are of one live string; the shim copies it.
    unsafe { ffi::plumb_string_new(message.as_ptr().cast::<c_char>(), message.len()) }
}

/// # Safety
/// `key` points at `key.bytes` readable bytes for as long as the result is used.
unsafe fn text<'a>(key: StoreKey) -> Result<&'a str, StoreError> {
    // SAFETY: by the contract; the bytes are those of a live std::string.
    let bytes = unsafe { std::slice::from_raw_parts(key.data.cast::<u8>(), key.bytes) };
    std::str::from_utf8(bytes).map_err(|_| StoreError::Failed("a key is not utf-8".to_owned()))
}

/// # Safety
/// `keys` points at `count` keys, each as [`text`] wants it.
unsafe fn texts<'a>(keys: *const StoreKey, count: usize) -> Result<Vec<&'a str>, StoreError> {
    if count == 0 {
        return Ok(Vec::new());
    }
    // SAFETY: by the contract.
    unsafe { std::slice::from_raw_parts(keys, count) }
        .iter()
        // SAFETY: by the contract.
        .map(|key| unsafe { text(*key) })
        .collect()
}

unsafe extern "C" fn set(
    context: *mut c_void,
    key: StoreKey,
    value: *const u8,
    bytes: usize,
) -> Answer {
    // SAFETY: the shim passes its live context, key and value; an empty vector's data may be null.
    unsafe {
        call(context, |store| {
            let value = if bytes == 0 { &[] } else { std::slice::from_raw_parts(value, bytes) };
            store.set(text(key)?, value)
        })
    }
}

unsafe extern "C" fn get(
    context: *mut c_void,
    keys: *const StoreKey,
    count: usize,
    timeout_millis: i64,
    sink_value: ValueSink,
    sink: *mut c_void,
) -> Answer {
    // SAFETY: the shim passes its live context and keys, and a sink that lives for this call.
    unsafe {
        call(context, |store| {
            let timeout = Duration::from_millis(u64::try_from(timeout_millis).unwrap_or(0));
            for value in store.get(&texts(keys, count)?, timeout)? {
                sink_value(sink, value.as_ptr(), value.len());
            }
            Ok(())
        })
    }
}

unsafe extern "C" fn check(
    context: *mut c_void,
    keys: *const StoreKey,
    count: usize,
    exist: *mut c_int,
) -> Answer {
    // SAFETY: the shim passes its live context, keys and out-parameter.
    unsafe {
        call(context, |store| {
            *exist = c_int::from(store.check(&texts(keys, count)?)?);
            Ok(())
        })
    }
}

unsafe extern "C" fn add(
    context: *mut c_void,
    key: StoreKey,
    amount: i64,
    sum: *mut i64,
) -> Answer {
    // SAFETY: the shim passes its live context, key and out-parameter.
    unsafe {
        call(context, |store| {
            *sum = store.add(text(key)?, amount)?;
            Ok(())
        })
    }
}

unsafe extern "C" fn remove(context: *mut c_void, key: StoreKey, existed: *mut c_int) -> Answer {
    // SAFETY: the shim passes its live context, key and out-parameter.
    unsafe {
        call(context, |store| {
            *existed = c_int::from(store.delete(text(key)?)?);
            Ok(())
        })
    }
}

unsafe extern "C" fn release(context: *mut c_void) {
    // SAFETY: the shim's store calls this once, in its destructor, with the boxed Arc.
    drop(unsafe { Box::from_raw(context.cast::<Arc<dyn Store>>()) });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_store_waits_counts_and_names_missing_keys() {
        let store = MemoryStore::new();
        assert!(!store.check(&["a"]).unwrap());
        let setter = {
            let store = Arc::clone(&store);
            std::thread::spawn(move || {
                std::thread::sleep(Duration::from_millis(20));
                store.set("a", b"1").unwrap();
            })
        };
        assert_eq!(store.get(&["a"], Duration::from_secs(10)).unwrap(), [b"1".to_vec()]);
        setter.join().unwrap();
        assert_eq!(store.add("n", 2).unwrap(), 2);
        assert_eq!(store.add("n", -5).unwrap(), -3);
        let error = store.get(&["a", "b"], Duration::from_millis(5)).unwrap_err();
        assert!(matches!(error, StoreError::Timeout { ref missing, .. } if missing == &["b"]));
        assert!(store.delete("a").unwrap());
        assert!(!store.delete("a").unwrap());
    }
}
