//! CPUs and memory.

use super::{Finding, gib};

/// Below this, even a small model with its workers does not fit.
const LITTLE_MEMORY_BYTES: u64 = 2 << 30;
/// What NCCL, Gloo and weight publication like to have of shared memory.
const SHARED_MEMORY_BYTES: u64 = 1 << 30;

pub(super) fn examine() -> Vec<Finding> {
    let meminfo = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let limit = cgroup_limit();
    let mut findings = vec![cpus(), memory(&meminfo, limit)];
    findings.extend(swap(&meminfo));
    findings.push(shared_memory(super::disk::space("/dev/shm".as_ref()).map(|space| space.total)));
    findings
}

fn cpus() -> Finding {
    let usable = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let online = std::fs::read_to_string("/proc/cpuinfo")
        .map_or(0, |text| text.lines().filter(|line| line.starts_with("processor")).count());
    threads(usable, online, std::env::var("OMP_NUM_THREADS").ok().as_deref())
}

fn threads(usable: usize, online: usize, omp: Option<&str>) -> Finding {
    let found = format!("{usable} usable of {online} online");
    match omp.map(|text| (text, text.parse::<usize>())) {
        Some((text, Ok(wanted))) if wanted > usable => Finding::warn(
            "cpus",
            format!("{found}; OMP_NUM_THREADS is {text}"),
            "unset OMP_NUM_THREADS: workers set their threads themselves, and more threads than \
             CPUs make every one of them slower",
        ),
        _ => Finding::ok("cpus", found),
    }
}

/// The memory limit of this process' control group, where it has one.
fn cgroup_limit() -> Option<u64> {
    let own = std::fs::read_to_string("/proc/self/cgroup").ok()?;
    let path = own.lines().find_map(|line| line.strip_prefix("0::"))?;
    let file = format!("/sys/fs/cgroup{}/memory.max", path.trim_end_matches('/'));
    std::fs::read_to_string(file).ok()?.trim().parse().ok()
}

fn memory(meminfo: &str, limit: Option<u64>) -> Finding {
    let (Some(total), Some(available)) =
        (field(meminfo, "MemTotal"), field(meminfo, "MemAvailable"))
    else {
        return Finding::warn(
            "memory",
            "/proc/meminfo says neither MemTotal nor MemAvailable",
            "mount /proc",
        );
    };
    let bound = limit.filter(|limit| *limit < total);
    let usable = available.min(bound.unwrap_or(u64::MAX));
    let limit = bound.map_or_else(String::new, |bytes| format!(", limited to {}", gib(bytes)));
    let found = format!("{} available of {}{limit}", gib(available), gib(total));
    if usable < LITTLE_MEMORY_BYTES {
        let fix = "end other processes or raise the container's memory limit; `plumb explain \
                   RECIPE` says what a recipe needs";
        return Finding::warn("memory", found, fix);
    }
    Finding::ok("memory", found)
}

fn swap(meminfo: &str) -> Option<Finding> {
    let used = field(meminfo, "SwapTotal")?.checked_sub(field(meminfo, "SwapFree")?)?;
    (used > 256 << 20).then(|| {
        Finding::warn(
            "swap",
            format!("{} of swap in use", gib(used)),
            "free memory: a worker that swaps misses its lease and is taken for lost",
        )
    })
}

fn shared_memory(total: Option<u64>) -> Finding {
    match total {
        Some(bytes) if bytes >= SHARED_MEMORY_BYTES => {
            Finding::ok("shared memory", format!("/dev/shm of {}", gib(bytes)))
        }
        other => Finding::warn(
            "shared memory",
            other.map_or_else(
                || "no /dev/shm".to_owned(),
                |bytes| format!("/dev/shm of {} MiB", bytes >> 20),
            ),
            "give the container at least 1 GiB: `docker run --shm-size=8g`, or on Kubernetes an \
             emptyDir of medium Memory at /dev/shm",
        ),
    }
}

/// A field of `/proc/meminfo`, bytes.
fn field(meminfo: &str, name: &str) -> Option<u64> {
    let value = |line: &str| line.strip_prefix(name)?.strip_prefix(':').map(str::to_owned);
    let text = meminfo.lines().find_map(value)?;
    let kibibytes: u64 = text.split_whitespace().next()?.parse().ok()?;
    Some(kibibytes * 1024)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::Health;

    #[test]
    fn a_limit_below_the_machine_s_memory_is_what_counts() {
        let text = "MemTotal: 33554432 kB\nMemAvailable: 16777216 kB\n";
        let free = memory(text, None);
        assert_eq!(free, Finding::ok("memory", "16.0 GiB available of 32.0 GiB"));
        let tight = memory(text, Some(1 << 30));
        assert_eq!(tight.health, Health::Warn);
        assert_eq!(tight.found, "16.0 GiB available of 32.0 GiB, limited to 1.0 GiB");
        assert_eq!(memory("", None).health, Health::Warn);
    }

    #[test]
    fn swap_counts_when_it_is_used() {
        let used = |free: u64| format!("SwapTotal: 2097152 kB\nSwapFree: {free} kB\n");
        assert_eq!(swap(&used(2_097_152)), None);
        assert_eq!(swap(&used(1_048_576)).map(|f| f.found), Some("1.0 GiB of swap in use".into()));
        assert_eq!(swap("MemTotal: 1 kB\n"), None);
    }

    #[test]
    fn a_container_s_64_mib_of_shared_memory_are_too_few() {
        assert_eq!(shared_memory(Some(64 << 20)).found, "/dev/shm of 64 MiB");
        assert_eq!(shared_memory(Some(64 << 20)).health, Health::Warn);
        assert_eq!(shared_memory(None).health, Health::Warn);
        assert_eq!(shared_memory(Some(8 << 30)).health, Health::Ok);
    }

    #[test]
    fn more_threads_than_cpus_are_told() {
        assert_eq!(threads(2, 4, None), Finding::ok("cpus", "2 usable of 4 online"));
        assert_eq!(threads(2, 4, Some("2")).health, Health::Ok);
        assert_eq!(threads(2, 4, Some("16")).found, "2 usable of 4 online; OMP_NUM_THREADS is 16");
    }
}
