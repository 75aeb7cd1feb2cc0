//! Who did what: one JSON line per act of consequence, in `<state>/audit.jsonl`.

use std::fs::File;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::{Mutex, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use super::error::ClusterError;

/// The open log.
#[derive(Debug)]
pub(super) struct Audit {
    file: Mutex<File>,
}

impl Audit {
    /// Opens the log of a state folder, appending.
    ///
    /// # Errors
    /// [`ClusterError::State`] names the file.
    pub(super) fn open(state_dir: &Path) -> Result<Self, ClusterError> {
        let path = state_dir.join("audit.jsonl");
        let mut options = std::fs::OpenOptions::new();
        options.create(true).append(true).mode(0o600);
        let file = options.open(&path).map_err(|cause| ClusterError::State {
            what: "open",
            path,
            cause,
        })?;
        Ok(Self { file: Mutex::new(file) })
    }

    /// Records that `who` did `what`. Never pass a secret.
    pub(super) fn record(&self, who: &str, what: &str, detail: &str) {
        let millis = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_millis());
        let line = serde_json::json!({
            "unix_millis": u64::try_from(millis).unwrap_or(u64::MAX),
            "who": who,
            "what": what,
            "detail": detail,
        });
        let mut file = self.file.lock().unwrap_or_else(PoisonError::into_inner);
        if let Err(error) = writeln!(file, "{line}") {
            tracing::error!(%error, what, "the audit log cannot be written");
        }
    }
}
