//! What an agent tells a worker on its stdin: one JSON line, then silence until it is gone.

use std::io::{BufRead, Read};

use nix::sys::prctl;
use nix::sys::signal::Signal;
use plumb_domain::{Epoch, Role, WorkerId};
use serde::{Deserialize, Serialize};

use crate::error::RuntimeError;
use crate::exit::{ExitCode, exit_now};

/// Longest bootstrap line that is read.
const MAX_LINE_BYTES: u64 = 64 << 10;

/// The one line. It holds a secret (the join token), which is why it does not travel in argv
/// or the environment.
#[derive(Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Bootstrap {
    /// Where the coordinator listens, `host:port`.
    pub coordinator: String,
    /// SHA-256 of the run's CA certificate, hex.
    pub ca_fingerprint: String,
    /// Single-use token, bound to this worker and epoch.
    pub join_token: String,
    /// The slot that this process fills.
    pub worker_id: WorkerId,
    /// The epoch that it was started under.
    pub epoch: Epoch,
    /// What its group does.
    pub role: Role,
    /// `cpu`, `cuda:0`, ...
    pub device: String,
    /// Threads for tensor operations.
    pub threads: u32,
    /// Level and targets to log, as `tracing`'s `EnvFilter` reads them, for example `info`.
    pub log_filter: String,
    /// Host that the worker listens on; loopback unless the node was told otherwise.
    pub listen_host: String,
}

impl Bootstrap {
    /// Reads the line and keeps watching stdin: when it ends, the agent is gone and this process
    /// exits at once.
    ///
    /// # Errors
    /// [`RuntimeError::Bootstrap`] when stdin ends first, or the line is not what it should be.
    pub fn from_stdin() -> Result<Self, RuntimeError> {
        let bootstrap = Self::read(&mut std::io::stdin().lock())?;
        exit_with_stdin("worker")?;
        // For the case that this process is stopped, or hangs in its exit, when the agent goes.
        prctl::set_pdeathsig(Signal::SIGKILL)
            .map_err(|e| RuntimeError::Bootstrap(format!("prctl: {e}")))?;
        Ok(bootstrap)
    }

    /// Reads one line.
    ///
    /// # Errors
    /// [`RuntimeError::Bootstrap`]; the line itself is not quoted, because it holds a secret.
    pub fn read(input: &mut impl BufRead) -> Result<Self, RuntimeError> {
        let wrong = |what: String| RuntimeError::Bootstrap(what);
        let mut line = String::new();
        input.take(MAX_LINE_BYTES).read_line(&mut line).map_err(|e| wrong(e.to_string()))?;
        if line.is_empty() {
            return Err(wrong("stdin ended before a line came".to_owned()));
        }
        if !line.ends_with('\n') {
            return Err(wrong(format!(
                "the line is cut off or longer than {MAX_LINE_BYTES} bytes"
            )));
        }
        let bootstrap: Self = serde_json::from_str(&line)
            .map_err(|e| wrong(format!("column {}: not the expected JSON object", e.column())))?;
        if bootstrap.threads == 0 {
            return Err(RuntimeError::BootstrapField {
                field: "threads",
                value: "0".to_owned(),
                expected: "at least 1".to_owned(),
            });
        }
        Ok(bootstrap)
    }

    /// The line, newline included.
    #[must_use]
    pub fn to_line(&self) -> String {
        // A struct of strings and numbers always serialises.
        let mut line = serde_json::to_string(self).unwrap_or_default();
        line.push('\n');
        line
    }
}

impl std::fmt::Debug for Bootstrap {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Bootstrap")
            .field("coordinator", &self.coordinator)
            .field("worker_id", &self.worker_id)
            .field("epoch", &self.epoch)
            .field("role", &self.role)
            .field("device", &self.device)
            .field("threads", &self.threads)
            .finish_non_exhaustive()
    }
}

/// Ends this process when its stdin does. For children whose parent holds the other end.
///
/// # Errors
/// [`RuntimeError::Thread`] when the watching thread cannot be started.
pub fn exit_with_stdin(who: &'static str) -> Result<(), RuntimeError> {
    let watch = move || {
        let mut stdin = std::io::stdin().lock();
        let mut buffer = [0_u8; 256];
        loop {
            match stdin.read(&mut buffer) {
                Ok(0) => break,
                Ok(_) => {}
                Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
                Err(_) => break,
            }
        }
        tracing::warn!(who, "stdin has ended: the parent process is gone; exiting");
        exit_now(ExitCode::ParentGone);
    };
    let name = "stdin-watch".to_owned();
    std::thread::Builder::new()
        .name(name.clone())
        .spawn(watch)
        .map(|_| ())
        .map_err(|cause| RuntimeError::Thread { name, cause })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bootstrap() -> Bootstrap {
        Bootstrap {
            coordinator: "127.0.0.1:4000".into(),
            ca_fingerprint: "ab".into(),
            join_token: "s3cret".into(),
            worker_id: WorkerId::new("rollout-0").unwrap(),
            epoch: Epoch(3),
            role: Role::Rollout,
            device: "cpu".into(),
            threads: 1,
            log_filter: "info".into(),
            listen_host: "127.0.0.1".into(),
        }
    }

    #[test]
    fn the_line_round_trips_and_debug_hides_the_token() {
        let line = bootstrap().to_line();
        let back = Bootstrap::read(&mut line.as_bytes()).unwrap();
        assert_eq!(back.worker_id, bootstrap().worker_id);
        assert_eq!(back.epoch, Epoch(3));
        assert!(!format!("{back:?}").contains("s3cret"));
    }

    #[test]
    fn a_wrong_line_is_an_error_that_does_not_quote_it() {
        let line = bootstrap().to_line();
        let cut = &line[..line.len() - 5];
        let unknown = line.replace("\"threads\"", "\"thread\"");
        for bad in ["", "\n", cut, &unknown] {
            let error = Bootstrap::read(&mut bad.as_bytes()).unwrap_err().to_string();
            assert!(!error.contains("s3cret"), "{error}");
        }
        let none = line.replace("\"threads\":1", "\"threads\":0");
        let error = Bootstrap::read(&mut none.as_bytes()).unwrap_err();
        assert_eq!(error.to_string(), "bootstrap field threads is \"0\": at least 1");
    }
}
