//! What a process is doing, for heartbeats and for reports about lost peers.

use std::sync::{Arc, Mutex, PoisonError};

/// Shared, settable text such as `update`. The innermost running call is named.
#[derive(Debug, Clone, Default)]
pub struct Phase {
    running: Arc<Mutex<Running>>,
}

#[derive(Debug, Default)]
struct Running {
    next: u64,
    calls: Vec<(u64, String)>,
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
        let id = running.next;
        running.next += 1;
        running.calls.push((id, name.to_owned()));
        PhaseGuard { phase: self.clone(), id }
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
        running.calls.retain(|(id, _)| *id != self.id);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
