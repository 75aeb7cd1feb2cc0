//! A rendezvous store in a folder, for ranks that are processes of one machine.

use std::fs::{self, File};
use std::io::ErrorKind;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use plumb_torch::{Store, StoreError};

const PAUSE: Duration = Duration::from_millis(2);

/// One file per key.
#[derive(Debug)]
pub(crate) struct FolderStore(pub(crate) PathBuf);

impl FolderStore {
    /// Keys hold slashes; file names do not.
    fn path(&self, key: &str) -> PathBuf {
        let name: String = key.bytes().map(|byte| format!("{byte:02x}")).collect();
        self.0.join(name)
    }

    /// Holds off others while a counter is read and written.
    fn locked<T>(&self, work: impl FnOnce() -> Result<T, StoreError>) -> Result<T, StoreError> {
        let lock = self.0.join("lock");
        while let Err(error) = File::create_new(&lock) {
            if error.kind() != ErrorKind::AlreadyExists {
                return Err(failed(&error));
            }
            std::thread::sleep(PAUSE);
        }
        let outcome = work();
        fs::remove_file(&lock).map_err(|error| failed(&error))?;
        outcome
    }
}

fn failed(error: &std::io::Error) -> StoreError {
    StoreError::Failed(error.to_string())
}

impl Store for FolderStore {
    fn set(&self, key: &str, value: &[u8]) -> Result<(), StoreError> {
        let path = self.path(key);
        // A reader sees the whole value or none.
        let partial = path.with_extension(format!("{}.partial", std::process::id()));
        fs::write(&partial, value).map_err(|error| failed(&error))?;
        fs::rename(&partial, &path).map_err(|error| failed(&error))
    }

    fn get(&self, keys: &[&str], timeout: Duration) -> Result<Vec<Vec<u8>>, StoreError> {
        let start = Instant::now();
        loop {
            let found: Vec<_> = keys.iter().map(|key| fs::read(self.path(key)).ok()).collect();
            if found.iter().all(Option::is_some) {
                return Ok(found.into_iter().flatten().collect());
            }
            if start.elapsed() >= timeout {
                let absent = keys.iter().zip(&found).filter(|(_, value)| value.is_none());
                let missing = absent.map(|(key, _)| (*key).to_owned()).collect();
                return Err(StoreError::Timeout { missing, timeout_secs: timeout.as_secs_f64() });
            }
            std::thread::sleep(PAUSE);
        }
    }

    fn add(&self, key: &str, amount: i64) -> Result<i64, StoreError> {
        self.locked(|| {
            let text = fs::read_to_string(self.path(key)).unwrap_or_else(|_| "0".to_owned());
            let held: i64 = text
                .parse()
                .map_err(|_| StoreError::Failed(format!("key {key:?} holds no counter")))?;
            let sum = held + amount;
            self.set(key, sum.to_string().as_bytes())?;
            Ok(sum)
        })
    }

    fn delete(&self, key: &str) -> Result<bool, StoreError> {
        match fs::remove_file(self.path(key)) {
            Ok(()) => Ok(true),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(false),
            Err(error) => Err(failed(&error)),
        }
    }
}
