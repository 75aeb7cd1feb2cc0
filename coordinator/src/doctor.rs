//! What is wrong with a node, and what to do about it, before a job finds out.
//!
//! Each check looks at one thing and returns [`Finding`]s. What it judges by is text that the
//! system gave, so the judgement is tested without the system.

mod clock;
mod devices;
mod disk;
mod host;
mod limits;
mod network;
mod workers;

use std::net::SocketAddr;
use std::path::PathBuf;

use serde::Serialize;

/// What to look at.
#[derive(Debug, Clone)]
pub struct Scope {
    /// Where runs are to be written.
    pub run_dir: PathBuf,
    /// Where the coordinator is to listen.
    pub listen: SocketAddr,
    /// Folder of the worker binaries.
    pub binaries: PathBuf,
}

/// How a thing is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Health {
    /// As it should be.
    Ok,
    /// Jobs run, but not as well or not as safely as they could.
    Warn,
    /// Jobs will fail.
    Fail,
}

impl Health {
    /// The word in the table.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Warn => "warn",
            Self::Fail => "FAIL",
        }
    }
}

/// One thing that was looked at.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// What.
    pub check: &'static str,
    /// How it is.
    pub health: Health,
    /// What was found, with figures.
    pub found: String,
    /// What to do; empty where nothing is to be done.
    pub fix: String,
}

impl Finding {
    fn ok(check: &'static str, found: impl Into<String>) -> Self {
        Self { check, health: Health::Ok, found: found.into(), fix: String::new() }
    }

    fn warn(check: &'static str, found: impl Into<String>, fix: impl Into<String>) -> Self {
        Self { check, health: Health::Warn, found: found.into(), fix: fix.into() }
    }

    fn fail(check: &'static str, found: impl Into<String>, fix: impl Into<String>) -> Self {
        Self { check, health: Health::Fail, found: found.into(), fix: fix.into() }
    }
}

/// Looks at everything.
#[must_use]
pub fn examine(scope: &Scope) -> Vec<Finding> {
    let mut findings = host::examine();
    findings.extend(limits::examine());
    findings.extend(disk::examine(&scope.run_dir));
    findings.push(clock::examine());
    findings.extend(network::examine(scope.listen));
    findings.extend(devices::examine());
    findings.extend(workers::examine(&scope.binaries));
    findings
}

/// The worst of them.
#[must_use]
pub fn worst(findings: &[Finding]) -> Health {
    findings.iter().map(|finding| finding.health).max().unwrap_or(Health::Ok)
}

/// A size as people read it.
fn gib(bytes: u64) -> String {
    format!("{:.1} GiB", bytes as f64 / f64::from(1 << 30))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_worst_finding_counts() {
        let ok = Finding::ok("cpus", "2");
        let warn = Finding::warn("swap", "in use", "add memory");
        let fail = Finding::fail("disk", "full", "make room");
        assert_eq!(worst(&[]), Health::Ok);
        assert_eq!(worst(&[ok.clone(), warn.clone()]), Health::Warn);
        assert_eq!(worst(&[fail, warn, ok]), Health::Fail);
    }

    #[test]
    fn every_complaint_says_what_to_do() {
        let scope = Scope {
            run_dir: std::env::temp_dir(),
            listen: SocketAddr::from(([127, 0, 0, 1], 0)),
            binaries: PathBuf::from("/nonexistent"),
        };
        let findings = examine(&scope);
        for finding in &findings {
            assert!(!finding.found.is_empty(), "{finding:?}");
            assert_eq!(finding.fix.is_empty(), finding.health == Health::Ok, "{finding:?}");
        }
        let workers: Vec<_> = findings.iter().filter(|f| f.check == "workers").collect();
        assert!(workers.iter().any(|f| f.health == Health::Fail), "{workers:?}");
    }
}
