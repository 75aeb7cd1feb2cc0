//! GPUs, their driver and NCCL.

use std::path::Path;
use std::process::Command;

use super::{Finding, gib};
use crate::agent::gpus;

/// The libraries that a GPU worker loads at run time.
const LIBRARIES: [(&str, &str); 3] = [
    ("libcuda.so.1", "install the NVIDIA driver, or start the container with its devices"),
    ("libtorch_cuda.so", "set LD_LIBRARY_PATH to the lib folder of a CUDA build of torch 2.11"),
    ("libnccl.so.2", "install NCCL 2, or set LD_LIBRARY_PATH to the folder that has it"),
];

pub(super) fn examine() -> Vec<Finding> {
    let driver = std::fs::read_to_string("/proc/driver/nvidia/version").ok();
    let Some(driver) = driver else {
        return vec![Finding::ok("gpus", "no NVIDIA driver: workers compute on CPUs, over Gloo")];
    };
    let devices = gpus();
    let mut findings =
        vec![visible(&driver, &devices.iter().map(|g| g.memory_bytes).collect::<Vec<_>>())];
    let cache = Command::new("ldconfig").arg("-p").output();
    let cache = cache.map(|o| String::from_utf8_lossy(&o.stdout).into_owned()).unwrap_or_default();
    let path = std::env::var("LD_LIBRARY_PATH").unwrap_or_default();
    for (library, fix) in LIBRARIES {
        findings.push(judge(library, find(library, &cache, &path), fix));
    }
    findings
}

fn visible(driver: &str, memory_bytes: &[u64]) -> Finding {
    let version = driver.lines().next().unwrap_or_default().trim();
    if memory_bytes.is_empty() {
        return Finding::fail(
            "gpus",
            format!("a driver ({version}), but nvidia-smi lists no device"),
            "see what `nvidia-smi` prints; in a container, pass the devices in (`--gpus all`, or \
             the resource nvidia.com/gpu)",
        );
    }
    let sizes: Vec<String> = memory_bytes.iter().map(|bytes| gib(*bytes)).collect();
    Finding::ok("gpus", format!("{} ({})", memory_bytes.len(), sizes.join(", ")))
}

/// Where the loader would find a library: `LD_LIBRARY_PATH` first, then its cache.
fn find(library: &str, cache: &str, path: &str) -> Option<String> {
    let on_path =
        path.split(':').filter(|folder| !folder.is_empty()).map(|f| Path::new(f).join(library));
    let cached = || {
        let line = cache.lines().find(|line| line.trim_start().starts_with(library))?;
        line.split_once("=> ").map(|(_, file)| file.trim().to_owned())
    };
    on_path
        .filter(|file| file.is_file())
        .map(|file| file.display().to_string())
        .next()
        .or_else(cached)
}

fn judge(library: &'static str, found: Option<String>, fix: &str) -> Finding {
    match found {
        Some(file) => Finding::ok(library, file),
        None => Finding::fail(library, "not where the loader looks", fix),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::Health;

    #[test]
    fn a_library_is_found_on_the_path_before_the_cache() {
        let cache = "\tlibnccl.so.2 (libc6,x86-64) => /usr/lib/libnccl.so.2\n";
        assert_eq!(find("libnccl.so.2", cache, "").as_deref(), Some("/usr/lib/libnccl.so.2"));
        assert_eq!(find("libcuda.so.1", cache, ""), None);
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("libnccl.so.2");
        std::fs::write(&file, "").unwrap();
        let path = format!(":/nonexistent:{}", folder.path().display());
        assert_eq!(find("libnccl.so.2", cache, &path), Some(file.display().to_string()));
    }

    #[test]
    fn a_driver_without_devices_is_a_failure() {
        let none = visible("NVRM version: 550.1\nGCC", &[]);
        assert_eq!(none.health, Health::Fail);
        assert!(none.found.contains("NVRM version: 550.1"), "{none:?}");
        let two = visible("NVRM", &[1 << 36, 1 << 37]);
        assert_eq!(two, Finding::ok("gpus", "2 (64.0 GiB, 128.0 GiB)"));
        assert_eq!(judge("libnccl.so.2", None, "install it").health, Health::Fail);
    }
}
