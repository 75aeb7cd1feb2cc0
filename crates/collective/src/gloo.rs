//! Collectives between processes over TCP, for CPU tensors.

use std::fmt;
use std::sync::mpsc::{self, Receiver, Sender};
use std::sync::{Arc, Condvar, Mutex, OnceLock, PoisonError, Weak};
use std::time::Duration;

use plumb_torch::gloo::{Closer, ProcessGroup, Work};
use plumb_torch::{Store, TorchError};
use tch::Tensor;

use crate::membership::Membership;
use crate::operands::{check_one, check_pair, check_root};
use crate::{AbortHandle, Collective, CollectiveError, Pending, ReduceOp};

/// The interface that groups use unless told otherwise.
pub const LOOPBACK: &str = "127.0.0.1";

/// One rank of a Gloo group.
pub struct Gloo {
    /// `None` only while being dropped.
    process_group: Option<ProcessGroup>,
    waiter: Sender<Duty>,
    shared: Arc<Shared>,
}

impl fmt::Debug for Gloo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let m = &self.shared.membership;
        write!(f, "Gloo({:?}, rank {} of {})", m.group, m.rank, m.world_size)
    }
}

/// What operations in flight and abort handles need of the group.
struct Shared {
    membership: Membership,
    closer: Closer,
    /// Guards nothing; orders "an operation is done" and "the group ended" before the waits.
    gate: Mutex<()>,
    changed: Condvar,
}

/// The outcome of one operation, once there is one.
type Outcome = Arc<OnceLock<Result<(), TorchError>>>;

/// What the group's waiter thread does, in order. gloo wakes a blocked rank when its peers close
/// their connections, but not when the rank closes its own; so nobody but this thread blocks in
/// gloo, and an abort reaches whoever waits for this thread.
enum Duty {
    Wait(Work, Outcome),
    /// Ending a group joins gloo's threads, which after an abort may be busy until the time limit.
    End(ProcessGroup, Arc<Shared>),
}

fn do_duties(duties: &Receiver<Duty>, shared: &Weak<Shared>) {
    for duty in duties {
        match duty {
            Duty::Wait(work, outcome) => {
                // Set once, here only.
                let _ = outcome.set(work.wait());
                if let Some(shared) = shared.upgrade() {
                    shared.notify();
                }
            }
            Duty::End(process_group, shared) => {
                drop((process_group, shared));
                return;
            }
        }
    }
}

impl Shared {
    fn notify(&self) {
        let _gate = self.gate.lock().unwrap_or_else(PoisonError::into_inner);
        self.changed.notify_all();
    }

    /// Closing twice is harmless, and a connection that is already broken cannot be closed better.
    fn close(&self) {
        let _ = self.closer.close();
        self.notify();
    }

    fn failure(
        &self,
        operation: &'static str,
        sequence: u64,
        error: TorchError,
    ) -> CollectiveError {
        let cause = without_source_line(&error.message).to_owned();
        self.membership.failure(operation, sequence, cause, || self.close())
    }

    /// Blocks until the operation has an outcome or the group ended.
    fn wait(
        &self,
        operation: &'static str,
        sequence: u64,
        outcome: &Outcome,
    ) -> Result<(), CollectiveError> {
        let mut gate = self.gate.lock().unwrap_or_else(PoisonError::into_inner);
        let result = loop {
            match outcome.get() {
                Some(result) => break result.clone(),
                None if self.membership.has_ended() => {
                    break Err(TorchError { operation, message: "aborted".to_owned() });
                }
                None => {
                    gate = self.changed.wait(gate).unwrap_or_else(PoisonError::into_inner);
                }
            }
        };
        drop(gate);
        result.map_err(|error| self.failure(operation, sequence, error))
    }
}

impl Drop for Gloo {
    fn drop(&mut self) {
        if let Some(process_group) = self.process_group.take() {
            // Without a waiter thread the group simply ends here.
            let _ = self.waiter.send(Duty::End(process_group, Arc::clone(&self.shared)));
        }
    }
}

impl Gloo {
    /// Joins `group` over the loopback interface. All ranks call this with the same store, which
    /// belongs to this group and epoch alone. `timeout` bounds the joining and each operation.
    ///
    /// # Errors
    /// [`CollectiveError::Join`] naming the ranks that did not come, [`CollectiveError::Backend`].
    pub fn connect(
        store: Arc<dyn Store>,
        group: &str,
        rank: usize,
        world_size: usize,
        timeout: Duration,
    ) -> Result<Self, CollectiveError> {
        Self::connect_at(store, group, rank, world_size, timeout, LOOPBACK)
    }

    /// As [`Gloo::connect`], over the interface that `address` (name or number) belongs to.
    ///
    /// # Errors
    /// As [`Gloo::connect`].
    pub fn connect_at(
        store: Arc<dyn Store>,
        group: &str,
        rank: usize,
        world_size: usize,
        timeout: Duration,
        address: &str,
    ) -> Result<Self, CollectiveError> {
        let membership = Membership::join(Arc::clone(&store), group, rank, world_size, timeout)?;
        let process_group = ProcessGroup::connect(store, rank, world_size, timeout, address)
            .map_err(|error| membership.backend("gloo", error.message))?;
        let closer = process_group.closer();
        let name = format!("gloo-{group}");
        let (gate, changed) = (Mutex::new(()), Condvar::new());
        let shared = Arc::new(Shared { membership, closer, gate, changed });
        let (waiter, duties) = mpsc::channel();
        let seen = Arc::downgrade(&shared);
        std::thread::Builder::new()
            .name(name)
            .spawn(move || do_duties(&duties, &seen))
            .map_err(|error| shared.membership.backend("gloo", error.to_string()))?;
        Ok(Self { process_group: Some(process_group), waiter, shared })
    }

    fn start(
        &self,
        operation: &'static str,
        operands: Result<(), String>,
        start: impl FnOnce(&ProcessGroup) -> Result<Work, TorchError>,
    ) -> Result<Pending, CollectiveError> {
        self.start_all(operation, operands, |group| Ok(vec![start(group)?]))
    }

    /// Starts an operation that consists of several of libtorch's.
    fn start_all(
        &self,
        operation: &'static str,
        operands: Result<(), String>,
        start: impl FnOnce(&ProcessGroup) -> Result<Vec<Work>, TorchError>,
    ) -> Result<Pending, CollectiveError> {
        let sequence = self.shared.membership.enter(operation, operands)?;
        let failed = |error| self.shared.failure(operation, sequence, error);
        let gone = || TorchError { operation, message: "the group's waiter ended".to_owned() };
        let process_group = self.process_group.as_ref().ok_or_else(|| failed(gone()))?;
        let mut outcomes = Vec::new();
        for work in start(process_group).map_err(failed)? {
            let outcome = Outcome::default();
            let duty = Duty::Wait(work, Arc::clone(&outcome));
            self.waiter.send(duty).map_err(|_| failed(gone()))?;
            outcomes.push(outcome);
        }
        let shared = Arc::clone(&self.shared);
        Ok(Pending::new(move || {
            outcomes.iter().try_for_each(|outcome| shared.wait(operation, sequence, outcome))
        }))
    }
}

impl Collective for Gloo {
    fn rank(&self) -> usize {
        self.shared.membership.rank
    }

    fn world_size(&self) -> usize {
        self.shared.membership.world_size
    }

    fn group(&self) -> &str {
        &self.shared.membership.group
    }

    fn all_reduce(&self, tensor: &mut Tensor, op: ReduceOp) -> Result<Pending, CollectiveError> {
        self.start("all-reduce", on_cpu(tensor), |group| group.all_reduce(tensor, op))
    }

    fn all_gather(&self, out: &mut Tensor, input: &Tensor) -> Result<Pending, CollectiveError> {
        let operands = on_cpu(out).and_then(|()| check_pair(out, input, self.world_size()));
        let (own, ranks) = (self.rank(), self.world_size());
        // libtorch's all-gather receives into a second vector as large as `out` and copies it
        // over. A broadcast of each rank's part arrives in place.
        self.start_all("all-gather", operands, |group| {
            let _guard = tch::no_grad_guard();
            let (out_n, count) = (out.view([-1]), input.numel() as i64);
            let broadcast = |rank| {
                let mut part = out_n.narrow(0, rank as i64 * count, count);
                if rank == own {
                    part.copy_(&input.view([-1]));
                }
                group.broadcast(&part, rank)
            };
            (0..ranks).map(broadcast).collect()
        })
    }

    fn reduce_scatter(
        &self,
        out: &mut Tensor,
        input: &Tensor,
        op: ReduceOp,
    ) -> Result<Pending, CollectiveError> {
        let operands = on_cpu(input).and_then(|()| check_pair(input, out, self.world_size()));
        // libtorch's reduce-scatter sums a copy of the whole input and keeps one part of it.
        // Summing in place is the same without the copy.
        let summed = self.start("reduce-scatter", operands, |group| group.all_reduce(input, op))?;
        let (input_n, mut out) = (input.view([-1]), out.shallow_clone());
        let first = self.rank() as i64 * out.numel() as i64;
        Ok(Pending::new(move || {
            summed.wait()?;
            let _guard = tch::no_grad_guard();
            out.copy_(&input_n.narrow(0, first, out.numel() as i64).view(out.size().as_slice()));
            Ok(())
        }))
    }

    fn broadcast(&self, tensor: &mut Tensor, root: usize) -> Result<Pending, CollectiveError> {
        let operands = on_cpu(tensor).and_then(|()| check_root(root, self.world_size()));
        self.start("broadcast", operands, |group| group.broadcast(tensor, root))
    }

    fn barrier(&self) -> Result<(), CollectiveError> {
        self.start("barrier", Ok(()), ProcessGroup::barrier)?.wait()
    }

    fn abort_handle(&self) -> AbortHandle {
        let shared = Arc::downgrade(&self.shared);
        AbortHandle::new(move || {
            if let Some(shared) = shared.upgrade() {
                shared.membership.end();
                shared.close();
            }
        })
    }
}

/// gloo's messages start with the line of its source: `[/path/pair.cc:538] Read error ...`.
fn without_source_line(message: &str) -> &str {
    match message.strip_prefix('[').and_then(|rest| rest.split_once("] ")) {
        Some((line, text)) if line.contains(".cc:") || line.contains(".h:") => text,
        _ => message,
    }
}

fn on_cpu(tensor: &Tensor) -> Result<(), String> {
    if tensor.device() == tch::Device::Cpu {
        check_one(tensor)
    } else {
        Err(format!("a tensor on {:?} is not on the cpu", tensor.device()))
    }
}

#[cfg(test)]
mod tests {
    use super::without_source_line;

    #[test]
    fn only_a_source_line_is_cut_from_a_message() {
        let message = "[/a/gloo/transport/tcp/pair.cc:538] Read error [127.0.0.1]:1: reset";
        assert_eq!(without_source_line(message), "Read error [127.0.0.1]:1: reset");
        assert_eq!(without_source_line("[127.0.0.1] is gone"), "[127.0.0.1] is gone");
        assert_eq!(without_source_line("aborted"), "aborted");
    }
}
