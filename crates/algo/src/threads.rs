//! Batches too big for one thread.

use std::panic::resume_unwind;
use std::thread::{available_parallelism, scope};

/// Fewest entries that a thread of its own is started for: a millisecond's work, against the tens of
/// microseconds that a start takes.
pub(crate) const LEAST_ENTRIES: usize = 1 << 20;

/// Threads that `entries` are worth, of those that this process may run at once; at least 1.
pub(crate) fn worth(entries: usize) -> usize {
    match entries / LEAST_ENTRIES {
        // Asking the system for its processors takes memory and time.
        0 | 1 => 1,
        most => available_parallelism().map_or(1, |processors| processors.get().min(most)),
    }
}

/// `work` on every piece, each on a thread of its own; the results in the order of the pieces.
pub(crate) fn at_once<P: Send, T: Send>(
    pieces: impl Iterator<Item = P>,
    work: impl Fn(P) -> T + Sync,
) -> Vec<T> {
    let work = &work;
    scope(|scope| {
        let running: Vec<_> = pieces.map(|piece| scope.spawn(move || work(piece))).collect();
        let joined = running.into_iter().map(std::thread::ScopedJoinHandle::join);
        joined.map(|result| result.unwrap_or_else(|panic| resume_unwind(panic))).collect()
    })
}
