//! What a process is doing, for heartbeats and for reports about lost peers.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use crate::memory::{MemoryProbe, Peaks};

/// Shared, settable text such as `update`. The innermost running call is named. Keeps the most
/// memory that was held in each phase.
#[derive(Debug, Clone, Default)]
pub struct Phase {
    running: Arc<Mutex<Running>>,
}

#[derive(Debug, Default)]
struct Running {
    next: u64,
    calls: Vec<(u64, String)>,
    peaks: Peaks,
}

impl Running {
    fn book(&mut self) {
        self.peaks.book(self.calls.iter().map(|(_, name)| name.as_str()));
    }
}

/// The phase lasts as long as this.
#[derive(Debug)]
pub struct PhaseGuard {
    phase: Phase,
    id: u64,
}

impl Phase {
    /// Enters a phase.
    #[must_use]
    pub fn enter(&self, name: &str) -> PhaseGuard {
        let mut running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
        running.book();
        let id = running.next;
        running.next += 1;
        running.calls.push((id, name.to_owned()));
        PhaseGuard { phase: self.clone(), id }
    }

    /// Takes the figures of memory from `probe` instead of the process's resident memory.
    pub fn measure_with(&self, probe: Arc<dyn MemoryProbe>) {
        let mut running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
        running.peaks.measure_with(probe);
    }

    /// The most bytes held in each phase so far, those that still run included.
    #[must_use]
    pub fn peak_bytes(&self) -> BTreeMap<String, u64> {
        let mut running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
        running.book();
        running.peaks.by_phase().clone()
    }

    /// The phase entered last and not left, or `idle`.
    #[must_use]
    pub fn current(&self) -> String {
        let running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
        running.calls.last().map_or_else(|| "idle".to_owned(), |(_, name)| name.clone())
    }
}

impl Drop for PhaseGuard {
    fn drop(&mut self) {
        let mut running = self.phase.running.lock().unwrap_or_else(PoisonError::into_inner);
        running.book();
        running.calls.retain(|(id, _)| *id != self.id);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU64, Ordering};

    use super::*;

    /// Held now, and the most since the last reset.
    #[derive(Default)]
    struct Held {
        now: AtomicU64,
        peak: AtomicU64,
    }

    impl Held {
        fn hold(&self, bytes: u64) {
            self.now.store(bytes, Ordering::SeqCst);
            self.peak.fetch_max(bytes, Ordering::SeqCst);
        }
    }

    impl MemoryProbe for Held {
        fn peak_bytes(&self) -> u64 {
            self.peak.load(Ordering::SeqCst)
        }

        fn reset(&self) {
            self.peak.store(self.now.load(Ordering::SeqCst), Ordering::SeqCst);
        }
    }

    #[test]
    fn each_phase_gets_what_was_held_while_it_ran() {
        let (phase, held) = (Phase::default(), Arc::new(Held::default()));
        phase.measure_with(held.clone());
        held.hold(90);
        held.hold(10);
        let update = phase.enter("update");
        held.hold(50);
        held.hold(20);
        let publish = phase.enter("publish weights");
        held.hold(30);
        drop(update);
        held.hold(40);
        held.hold(5);
        drop(publish);
        held.hold(70);
        let expected = [("publish".to_owned(), 40), ("update".to_owned(), 50)];
        assert_eq!(phase.peak_bytes(), BTreeMap::from(expected));
    }

    #[test]
    fn phases_may_end_in_any_order() {
        let phase = Phase::default();
        assert_eq!(phase.current(), "idle");
        let update = phase.enter("update");
        let publish = phase.enter("publish");
        assert_eq!(phase.current(), "publish");
        drop(update);
        assert_eq!(phase.current(), "publish");
        drop(publish);
        assert_eq!(phase.current(), "idle");
    }
}
