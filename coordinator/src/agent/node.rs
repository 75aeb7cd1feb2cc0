//! What this node has.

use std::path::PathBuf;
use std::process::Command;

use plumb_proto::cluster::{Gpu, Resources};

/// The node cannot be described.
#[derive(Debug, thiserror::Error)]
pub enum NodeError {
    /// The system does not say.
    #[error("cannot find out {what}: {reason}")]
    Unknown {
        /// What was asked.
        what: &'static str,
        /// Why there is no answer.
        reason: String,
    },
}

/// The folder of the running binary.
pub(super) fn own_folder() -> Result<PathBuf, NodeError> {
    let unknown =
        |reason: String| NodeError::Unknown { what: "where the running binary lies", reason };
    let binary = std::env::current_exe().map_err(|e| unknown(e.to_string()))?;
    let folder = binary.parent().ok_or_else(|| unknown("it has no folder".to_owned()))?;
    Ok(folder.to_owned())
}

/// CPUs, memory and GPUs of this node.
pub(crate) fn resources(cpus: Option<u32>) -> Result<Resources, NodeError> {
    let unknown = |what, reason: String| NodeError::Unknown { what, reason };
    let cpus = match cpus {
        Some(cpus) => cpus,
        None => std::thread::available_parallelism()
            .map_err(|e| unknown("the number of CPUs", e.to_string()))
            .map(|n| u32::try_from(n.get()).unwrap_or(u32::MAX))?,
    };
    let text = std::fs::read_to_string("/proc/meminfo")
        .map_err(|e| unknown("the memory", e.to_string()))?;
    let memory_bytes = parse_meminfo(&text)
        .ok_or_else(|| unknown("the memory", "/proc/meminfo has no MemTotal".to_owned()))?;
    Ok(Resources { cpus, memory_bytes, gpus: gpus() })
}

/// Labels that placement and people may go by.
pub(super) fn labels() -> Vec<(String, String)> {
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").ok();
    let mut labels = vec![
        ("os".to_owned(), std::env::consts::OS.to_owned()),
        ("arch".to_owned(), std::env::consts::ARCH.to_owned()),
    ];
    labels.extend(host.map(|host| ("host".to_owned(), host.trim().to_owned())));
    labels
}

fn parse_meminfo(text: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
    let kibibytes: u64 = line.split_whitespace().next()?.parse().ok()?;
    Some(kibibytes * 1024)
}

/// GPUs as the driver's own tool lists them, in device order; none where there is no such tool.
pub(crate) fn gpus() -> Vec<Gpu> {
    let listed = Command::new("nvidia-smi")
        .args(["--query-gpu=uuid,memory.total", "--format=csv,noheader,nounits"])
        .output();
    match listed {
        Ok(output) if output.status.success() => {
            parse_gpus(&String::from_utf8_lossy(&output.stdout))
        }
        _ => Vec::new(),
    }
}

fn parse_gpus(text: &str) -> Vec<Gpu> {
    let gpu = |line: &str| {
        let (uuid, mebibytes) = line.split_once(',')?;
        let memory_bytes = mebibytes.trim().parse::<u64>().ok()? << 20;
        Some(Gpu { uuid: uuid.trim().to_owned(), memory_bytes })
    };
    text.lines().filter_map(gpu).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_and_gpus_are_read_as_the_system_prints_them() {
        let text = "MemFree:  12 kB\nMemTotal:       24689764 kB\n";
        assert_eq!(parse_meminfo(text), Some(24_689_764 * 1024));
        assert_eq!(parse_meminfo("nothing"), None);
        let gpus = parse_gpus("GPU-aa, 143771\nGPU-bb, 81559\n\nFailed to initialise\n");
        let seen: Vec<_> = gpus.iter().map(|g| (g.uuid.as_str(), g.memory_bytes >> 20)).collect();
        assert_eq!(seen, [("GPU-aa", 143_771), ("GPU-bb", 81_559)]);
    }

    #[test]
    fn this_node_has_cpus_and_memory() {
        let found = resources(None).unwrap();
        assert!(found.cpus >= 1 && found.memory_bytes > 1 << 28);
        assert_eq!(resources(Some(7)).unwrap().cpus, 7);
    }
}
