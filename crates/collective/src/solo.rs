use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use tch::Tensor;

use crate::operands::{check_one, check_pair, check_root};
use crate::{AbortHandle, Collective, CollectiveError, Pending, ReduceOp};

/// A group of one rank: every operation is a copy or nothing.
#[derive(Debug)]
pub struct Solo {
    aborted: Arc<AtomicBool>,
}

/// A group of one rank, without communication.
#[must_use]
pub fn solo() -> Solo {
    Solo { aborted: Arc::new(AtomicBool::new(false)) }
}

impl Solo {
    fn enter(
        &self,
        operation: &'static str,
        operands: Result<(), String>,
    ) -> Result<(), CollectiveError> {
        let group = self.group().to_owned();
        if self.aborted.load(Ordering::SeqCst) {
            return Err(CollectiveError::Aborted { group, rank: 0, operation });
        }
        operands.map_err(|reason| CollectiveError::Misuse { group, rank: 0, operation, reason })
    }

    fn copy(
        &self,
        operation: &'static str,
        out: &mut Tensor,
        input: &Tensor,
    ) -> Result<Pending, CollectiveError> {
        self.enter(operation, check_pair(out, input, 1))?;
        let _no_grad = tch::no_grad_guard();
        let copied = out.f_view([-1]).and_then(|mut out| out.f_copy_(&input.f_view([-1])?));
        copied.map(|()| Pending::done()).map_err(|error| CollectiveError::Misuse {
            group: self.group().to_owned(),
            rank: 0,
            operation,
            reason: error.to_string(),
        })
    }
}

impl Collective for Solo {
    fn rank(&self) -> usize {
        0
    }

    fn world_size(&self) -> usize {
        1
    }

    fn group(&self) -> &str {
        "solo"
    }

    fn all_reduce(&self, tensor: &mut Tensor, _op: ReduceOp) -> Result<Pending, CollectiveError> {
        self.enter("all-reduce", check_one(tensor))?;
        Ok(Pending::done())
    }

    fn all_gather(&self, out: &mut Tensor, input: &Tensor) -> Result<Pending, CollectiveError> {
        self.copy("all-gather", out, input)
    }

    fn reduce_scatter(
        &self,
        out: &mut Tensor,
        input: &Tensor,
        _op: ReduceOp,
    ) -> Result<Pending, CollectiveError> {
        self.copy("reduce-scatter", out, input)
    }

    fn broadcast(&self, tensor: &mut Tensor, root: usize) -> Result<Pending, CollectiveError> {
        self.enter("broadcast", check_one(tensor).and_then(|()| check_root(root, 1)))?;
        Ok(Pending::done())
    }

    fn barrier(&self) -> Result<(), CollectiveError> {
        self.enter("barrier", Ok(()))
    }

    fn abort_handle(&self) -> AbortHandle {
        let aborted = Arc::clone(&self.aborted);
        AbortHandle::new(move || aborted.store(true, Ordering::SeqCst))
    }
}
