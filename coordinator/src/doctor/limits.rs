//! Limits of the process.

use nix::sys::resource::{RLIM_INFINITY, Resource, getrlimit};

use super::Finding;

/// Files and sockets that a coordinator with many workers holds open.
const OPEN_FILES: u64 = 4_096;
/// Threads and processes of a node full of workers.
const PROCESSES: u64 = 4_096;

pub(super) fn examine() -> Vec<Finding> {
    let limits = |resource| getrlimit(resource).ok();
    vec![
        judge("open files", limits(Resource::RLIMIT_NOFILE), OPEN_FILES, "n"),
        judge("processes", limits(Resource::RLIMIT_NPROC), PROCESSES, "u"),
    ]
}

/// Judges a soft and a hard limit; `flag` is that of `ulimit`.
fn judge(check: &'static str, limits: Option<(u64, u64)>, least: u64, flag: &str) -> Finding {
    let shown = |limit| match limit {
        RLIM_INFINITY => "no limit".to_owned(),
        limit => limit.to_string(),
    };
    match limits {
        None => Finding::warn(check, "the system does not say its limit", "run on Linux"),
        Some((soft, _)) if soft >= least => Finding::ok(check, shown(soft)),
        Some((soft, hard)) => {
            let fix = if hard >= least {
                format!("`ulimit -{flag} {least}` before starting, or in the unit or pod")
            } else {
                format!("the hard limit is {}: have it raised to {least}", shown(hard))
            };
            Finding::warn(check, format!("{}, at least {least} wanted", shown(soft)), fix)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_low_limit_says_how_to_raise_it() {
        let low = |hard| judge("open files", Some((1_024, hard)), 4_096, "n");
        assert_eq!(low(RLIM_INFINITY).found, "1024, at least 4096 wanted");
        assert!(low(RLIM_INFINITY).fix.starts_with("`ulimit -n 4096`"));
        assert_eq!(low(2_048).fix, "the hard limit is 2048: have it raised to 4096");
        let none = judge("open files", Some((RLIM_INFINITY, RLIM_INFINITY)), 4_096, "n");
        assert_eq!(none, Finding::ok("open files", "no limit"));
    }
}
