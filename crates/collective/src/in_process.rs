//! Collectives between threads of one process, for tests of code that is written against
//! [`Collective`].
//!
//! Each operation is a round: every rank lays its input down, the last to come computes the result
//! (in rank order, so it does not depend on who came when), and each rank's wait copies its part.

use std::collections::BTreeMap;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tch::Tensor;

use crate::operands::{check_one, check_pair, check_root};
use crate::{AbortHandle, Collective, CollectiveError, Pending, ReduceOp};

/// The time limit of [`group`]'s operations.
pub const DEFAULT_TIMEOUT: Duration = Duration::from_secs(60);

/// A group of `world_size` ranks to be handed to that many threads.
#[must_use]
pub fn group(world_size: usize) -> Vec<InProcess> {
    group_with_timeout(world_size, DEFAULT_TIMEOUT)
}

/// As [`group`], with a time limit for each operation.
#[must_use]
pub fn group_with_timeout(world_size: usize, timeout: Duration) -> Vec<InProcess> {
    let state = State { gone: vec![false; world_size], ..State::default() };
    let shared = Arc::new(Shared { state: Mutex::new(state), changed: Condvar::new() });
    (0..world_size)
        .map(|rank| InProcess {
            rank,
            world_size,
            timeout,
            shared: Arc::clone(&shared),
            next: Mutex::new(0),
        })
        .collect()
}

/// One rank of a group of threads. Dropping it makes it a lost peer to the others.
#[derive(Debug)]
pub struct InProcess {
    rank: usize,
    world_size: usize,
    timeout: Duration,
    shared: Arc<Shared>,
    next: Mutex<u64>,
}

#[derive(Debug)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    rounds: BTreeMap<u64, Round>,
    gone: Vec<bool>,
    aborted: bool,
}

#[derive(Debug)]
struct Round {
    operation: Operation,
    inputs: BTreeMap<usize, Tensor>,
    result: Option<Tensor>,
    taken: usize,
}

/// What a rank does in a round; all ranks must agree on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Operation {
    AllReduce(ReduceOp),
    AllGather,
    ReduceScatter(ReduceOp),
    Broadcast { root: usize },
    Barrier,
}

impl Operation {
    const fn name(self) -> &'static str {
        match self {
            Self::AllReduce(_) => "all-reduce",
            Self::AllGather => "all-gather",
            Self::ReduceScatter(_) => "reduce-scatter",
            Self::Broadcast { .. } => "broadcast",
            Self::Barrier => "barrier",
        }
    }

    /// The result that all ranks share; of a reduce-scatter still whole.
    fn combine(self, inputs: &BTreeMap<usize, Tensor>) -> Result<Option<Tensor>, tch::TchError> {
        let all: Vec<&Tensor> = inputs.values().collect();
        match self {
            Self::Barrier => Ok(None),
            Self::Broadcast { root } => Ok(inputs.get(&root).map(Tensor::shallow_clone)),
            Self::AllGather => Tensor::f_cat(&all, 0).map(Some),
            Self::AllReduce(op) | Self::ReduceScatter(op) => reduce(op, &all).map(Some),
        }
    }
}

fn reduce(op: ReduceOp, inputs: &[&Tensor]) -> Result<Tensor, tch::TchError> {
    let mut sum = inputs[0].shallow_clone();
    for input in &inputs[1..] {
        sum = match op {
            ReduceOp::Sum => sum.f_add(input)?,
            ReduceOp::Min => sum.f_minimum(input)?,
            ReduceOp::Max => sum.f_maximum(input)?,
        };
    }
    Ok(sum)
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        // Each change is complete before anything that can panic.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One rank's part in one round.
struct Place {
    rank: usize,
    world_size: usize,
    timeout: Duration,
    shared: Arc<Shared>,
    sequence: u64,
    operation: Operation,
}

impl InProcess {
    fn start(
        &self,
        operation: Operation,
        operands: Result<(), String>,
        input: Tensor,
        out: Option<&Tensor>,
    ) -> Result<Pending, CollectiveError> {
        let name = operation.name();
        let group = || self.group().to_owned();
        let misuse = |reason| CollectiveError::Misuse {
            group: group(),
            rank: self.rank,
            operation: name,
            reason,
        };
        operands.map_err(misuse)?;
        let mut state = self.shared.lock();
        if state.aborted {
            let (group, rank) = (group(), self.rank);
            return Err(CollectiveError::Aborted { group, rank, operation: name });
        }
        let mut next = self.next.lock().unwrap_or_else(PoisonError::into_inner);
        let sequence = *next;
        *next += 1;
        let round = state.rounds.entry(sequence).or_insert_with(|| Round {
            operation,
            inputs: BTreeMap::new(),
            result: None,
            taken: 0,
        });
        if round.operation != operation {
            return Err(misuse(format!(
                "number {sequence} is {:?} here and {:?} on ranks {:?}",
                operation,
                round.operation,
                round.inputs.keys().collect::<Vec<_>>()
            )));
        }
        round.inputs.insert(self.rank, input);
        if round.inputs.len() == self.world_size {
            let combined = operation.combine(&round.inputs);
            round.result = combined.map_err(|error| misuse(error.to_string()))?;
        }
        self.shared.changed.notify_all();
        drop(state);
        let place = Place {
            rank: self.rank,
            world_size: self.world_size,
            timeout: self.timeout,
            shared: Arc::clone(&self.shared),
            sequence,
            operation,
        };
        let out = out.map(Tensor::shallow_clone);
        Ok(Pending::new(move || place.finish(out)))
    }
}

impl Place {
    fn finish(self, out: Option<Tensor>) -> Result<(), CollectiveError> {
        let start = Instant::now();
        let mut state = self.shared.lock();
        loop {
            let Some(round) = state.rounds.get(&self.sequence) else {
                return Err(self.aborted());
            };
            if round.inputs.len() == self.world_size {
                break;
            }
            let waiting = |rank: &usize| !round.inputs.contains_key(rank);
            let absent: Vec<usize> = (0..self.world_size).filter(waiting).collect();
            let lost: Vec<usize> = absent.iter().copied().filter(|&r| state.gone[r]).collect();
            if state.aborted {
                return Err(self.aborted());
            }
            if !lost.is_empty() {
                return Err(self.peer(lost, "its rank was dropped"));
            }
            let Some(left) = self.timeout.checked_sub(start.elapsed()) else {
                return Err(self.peer(absent, "timed out"));
            };
            let waited = self.shared.changed.wait_timeout(state, left);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
        let copied = self.take(&mut state, out);
        copied.map_err(|error| CollectiveError::Misuse {
            group: GROUP.to_owned(),
            rank: self.rank,
            operation: self.operation.name(),
            reason: error.to_string(),
        })
    }

    /// Copies this rank's part of the result; the last rank to do so ends the round.
    fn take(&self, state: &mut State, out: Option<Tensor>) -> Result<(), tch::TchError> {
        let Some(round) = state.rounds.get_mut(&self.sequence) else { return Ok(()) };
        let result = round.result.as_ref().map(Tensor::shallow_clone);
        round.taken += 1;
        if round.taken == self.world_size {
            state.rounds.remove(&self.sequence);
        }
        let (Some(result), Some(out)) = (result, out) else { return Ok(()) };
        let _no_grad = tch::no_grad_guard();
        let part = match self.operation {
            Operation::ReduceScatter(_) => {
                let n = out.numel() as i64;
                result.f_narrow(0, self.rank as i64 * n, n)?
            }
            _ => result,
        };
        out.f_view([-1])?.f_copy_(&part)
    }

    fn aborted(&self) -> CollectiveError {
        CollectiveError::Aborted {
            group: GROUP.to_owned(),
            rank: self.rank,
            operation: self.operation.name(),
        }
    }

    fn peer(&self, absent: Vec<usize>, cause: &str) -> CollectiveError {
        CollectiveError::Peer {
            group: GROUP.to_owned(),
            rank: self.rank,
            world_size: self.world_size,
            operation: self.operation.name(),
            sequence: self.sequence,
            absent,
            cause: cause.to_owned(),
            timeout_secs: self.timeout.as_secs_f64(),
        }
    }
}

const GROUP: &str = "in-process";

/// A flat copy, so that the caller's tensor may change while slower ranks still read.
fn flat(tensor: &Tensor) -> Tensor {
    tensor.detach().reshape([-1]).copy()
}

impl Collective for InProcess {
    fn rank(&self) -> usize {
        self.rank
    }

    fn world_size(&self) -> usize {
        self.world_size
    }

    fn group(&self) -> &str {
        GROUP
    }

    fn all_reduce(&self, tensor: &mut Tensor, op: ReduceOp) -> Result<Pending, CollectiveError> {
        self.start(Operation::AllReduce(op), check_one(tensor), flat(tensor), Some(tensor))
    }

    fn all_gather(&self, out: &mut Tensor, input: &Tensor) -> Result<Pending, CollectiveError> {
        let operands = check_pair(out, input, self.world_size);
        self.start(Operation::AllGather, operands, flat(input), Some(out))
    }

    fn reduce_scatter(
        &self,
        out: &mut Tensor,
        input: &Tensor,
        op: ReduceOp,
    ) -> Result<Pending, CollectiveError> {
        let operands = check_pair(input, out, self.world_size);
        self.start(Operation::ReduceScatter(op), operands, flat(input), Some(out))
    }

    fn broadcast(&self, tensor: &mut Tensor, root: usize) -> Result<Pending, CollectiveError> {
        let operands = check_one(tensor).and_then(|()| check_root(root, self.world_size));
        self.start(Operation::Broadcast { root }, operands, flat(tensor), Some(tensor))
    }

    fn barrier(&self) -> Result<(), CollectiveError> {
        self.start(Operation::Barrier, Ok(()), Tensor::new(), None)?.wait()
    }

    fn abort_handle(&self) -> AbortHandle {
        let shared = Arc::clone(&self.shared);
        AbortHandle::new(move || {
            shared.lock().aborted = true;
            shared.changed.notify_all();
        })
    }
}

impl Drop for InProcess {
    fn drop(&mut self) {
        self.shared.lock().gone[self.rank] = true;
        self.shared.changed.notify_all();
    }
}
