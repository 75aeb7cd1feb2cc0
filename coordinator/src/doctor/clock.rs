//! The clock: certificates are not valid before they were made.

use std::path::Path;
use std::time::{Duration, SystemTime};

use super::Finding;

/// Files that time services keep while they hold the clock.
const SYNCHRONISED: [&str; 3] =
    ["/run/systemd/timesync/synchronized", "/run/chrony/chronyd.pid", "/run/ntpd.pid"];

pub(super) fn examine() -> Finding {
    let built = std::env::current_exe()
        .and_then(std::fs::metadata)
        .and_then(|meta| meta.modified())
        .unwrap_or(SystemTime::UNIX_EPOCH);
    let service = SYNCHRONISED.into_iter().find(|file| Path::new(file).exists());
    judge(SystemTime::now(), built, service)
}

fn judge(now: SystemTime, built: SystemTime, service: Option<&str>) -> Finding {
    // A file copied from a machine whose clock is a little ahead is no proof.
    if let Ok(behind) = (built - Duration::from_secs(600)).duration_since(now) {
        return Finding::fail(
            "clock",
            format!("{behind:.0?} before this program was built"),
            "set the clock and keep it by NTP (chrony, systemd-timesyncd): certificates made \
             elsewhere are not valid here yet",
        );
    }
    match service {
        Some(file) => Finding::ok("clock", format!("kept by a time service ({file})")),
        None => Finding::ok("clock", "plausible; no time service seen in this container or host"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::Health;

    #[test]
    fn a_clock_before_the_build_is_wrong() {
        let built = SystemTime::UNIX_EPOCH + Duration::from_secs(1_700_000_000);
        assert_eq!(judge(built + Duration::from_secs(5), built, None).health, Health::Ok);
        assert_eq!(judge(built - Duration::from_secs(60), built, None).health, Health::Ok);
        let wrong = judge(built - Duration::from_secs(86_400), built, Some("/run/ntpd.pid"));
        assert_eq!(wrong.health, Health::Fail);
        assert_eq!(wrong.found, "85800s before this program was built");
    }
}
