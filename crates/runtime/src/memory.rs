//! The most memory that a process has held, phase by phase.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

/// Where the figures of a process come from.
pub trait MemoryProbe: Send + Sync {
    /// The most bytes held since [`MemoryProbe::reset`]; 0 where that is not known.
    fn peak_bytes(&self) -> u64;

    /// Starts the figure anew from what is held now. Where the system does not let it, the figure
    /// stays that of the whole life of the process.
    fn reset(&self);
}

/// Resident memory of this process, as Linux counts it.
#[derive(Debug, Clone, Copy, Default)]
pub struct ResidentMemory;

impl MemoryProbe for ResidentMemory {
    fn peak_bytes(&self) -> u64 {
        status_bytes("VmHWM:")
    }

    fn reset(&self) {
        // 5 resets the peak; a container may forbid it, and then the peak only grows.
        if let Err(error) = std::fs::write("/proc/self/clear_refs", "5") {
            tracing::debug!(%error, "the peak of resident memory cannot be reset");
        }
    }
}

/// A probe of two functions, for memory that this crate knows nothing of.
#[derive(Debug, Clone, Copy)]
pub struct ProbeFunctions<P, R> {
    /// As [`MemoryProbe::peak_bytes`].
    pub peak_bytes: P,
    /// As [`MemoryProbe::reset`].
    pub reset: R,
}

impl<P, R> MemoryProbe for ProbeFunctions<P, R>
where
    P: Fn() -> u64 + Send + Sync,
    R: Fn() + Send + Sync,
{
    fn peak_bytes(&self) -> u64 {
        (self.peak_bytes)()
    }

    fn reset(&self) {
        (self.reset)();
    }
}

/// Resident memory of this process now; 0 where `/proc` does not say.
#[must_use]
pub fn resident_bytes() -> u64 {
    status_bytes("VmRSS:")
}

fn status_bytes(key: &str) -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix(key));
    let kibibytes = line.and_then(|rest| rest.split_whitespace().next()?.parse::<u64>().ok());
    kibibytes.unwrap_or(0) * 1024
}

/// Peaks by phase. Phases may overlap: each gets what was held while it ran.
#[derive(Clone)]
pub(crate) struct Peaks {
    probe: Arc<dyn MemoryProbe>,
    by_phase: BTreeMap<String, u64>,
}

impl Default for Peaks {
    fn default() -> Self {
        Self { probe: Arc::new(ResidentMemory), by_phase: BTreeMap::new() }
    }
}

impl fmt::Debug for Peaks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Peaks").field(&self.by_phase).finish()
    }
}

impl Peaks {
    /// Takes figures from elsewhere.
    pub(crate) fn measure_with(&mut self, probe: Arc<dyn MemoryProbe>) {
        self.probe = probe;
    }

    /// Books what was held since the last time for the phases that ran, and starts anew.
    pub(crate) fn book<'a>(&mut self, running: impl Iterator<Item = &'a str>) {
        let bytes = self.probe.peak_bytes();
        for name in running {
            // `init group weights (3)` is one phase, whatever the group.
            let name = name.split(' ').next().unwrap_or(name);
            let peak = self.by_phase.entry(name.to_owned()).or_default();
            *peak = (*peak).max(bytes);
        }
        self.probe.reset();
    }

    /// The peaks so far.
    pub(crate) fn by_phase(&self) -> &BTreeMap<String, u64> {
        &self.by_phase
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_has_memory_and_a_peak_above_it() {
        let now = resident_bytes();
        assert!(now > 1 << 20);
        assert!(ResidentMemory.peak_bytes() + (4 << 20) >= now);
    }

    #[test]
    fn a_peak_is_seen_after_its_memory_is_gone() {
        ResidentMemory.reset();
        let before = ResidentMemory.peak_bytes();
        let block = vec![1_u8; 64 << 20];
        assert_eq!(block.iter().map(|&byte| usize::from(byte)).sum::<usize>(), block.len());
        drop(block);
        assert!(ResidentMemory.peak_bytes() >= before + (48 << 20));
    }
}
