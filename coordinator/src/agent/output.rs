//! The captured output of a worker process.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::ExitStatus;

use crate::cluster::file_stem;

const TAIL_BYTES: u64 = 8 << 10;
const TAIL_LINES: usize = 20;

/// `<log_dir>/<worker>-<epoch>.{out,err}`.
#[derive(Debug, Clone)]
pub(super) struct OutputFiles {
    pub(super) stdout: PathBuf,
    pub(super) stderr: PathBuf,
}

impl OutputFiles {
    pub(super) fn new(log_dir: &Path, worker: &str, epoch: u64) -> Self {
        let stem = format!("{}-{epoch}", file_stem(worker));
        Self {
            stdout: log_dir.join(format!("{stem}.out")),
            stderr: log_dir.join(format!("{stem}.err")),
        }
    }

    /// The last lines of stderr; empty when it cannot be read.
    pub(super) fn stderr_tail(&self) -> String {
        tail(&self.stderr).unwrap_or_default()
    }
}

fn tail(path: &Path) -> std::io::Result<String> {
    let mut file = File::open(path)?;
    let length = file.metadata()?.len();
    file.seek(SeekFrom::Start(length.saturating_sub(TAIL_BYTES)))?;
    let mut bytes = Vec::new();
    file.take(TAIL_BYTES).read_to_end(&mut bytes)?;
    let text = String::from_utf8_lossy(&bytes);
    let lines: Vec<&str> = text.lines().collect();
    Ok(lines[lines.len().saturating_sub(TAIL_LINES)..].join("\n"))
}

/// `exit code 1`, `signal 9 (SIGKILL)`.
pub(super) fn exit_reason(status: ExitStatus) -> String {
    match (status.signal(), status.code()) {
        (Some(signal), _) => match nix::sys::signal::Signal::try_from(signal) {
            Ok(known) => format!("signal {signal} ({known})"),
            Err(_) => format!("signal {signal}"),
        },
        (None, Some(code)) => format!("exit code {code}"),
        (None, None) => "for an unknown reason".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exit_reasons_name_code_or_signal() {
        assert_eq!(exit_reason(ExitStatus::from_raw(9)), "signal 9 (SIGKILL)");
        assert_eq!(exit_reason(ExitStatus::from_raw(3 << 8)), "exit code 3");
        assert_eq!(exit_reason(ExitStatus::from_raw(0)), "exit code 0");
    }

    #[test]
    fn the_tail_is_the_last_lines() {
        let folder = std::env::temp_dir().join(format!("plumb-output-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        let files = OutputFiles::new(&folder, "job/policy-0", 3);
        assert!(files.stderr.ends_with("job_policy-0-3.err"));
        let text: Vec<String> = (0..5_000).map(|i| format!("line {i}")).collect();
        std::fs::write(&files.stderr, text.join("\n")).unwrap();
        let tail = files.stderr_tail();
        assert_eq!(tail.lines().count(), TAIL_LINES);
        assert!(tail.ends_with("line 4999"));
        std::fs::remove_dir_all(&folder).unwrap();
        assert_eq!(files.stderr_tail(), "");
    }
}
