//! Numbers that all ranks must agree on.

use plumb_collective::ReduceOp;
use tch::Tensor;

use crate::sharded_model::ShardedModel;
use crate::{EngineError, Result};

impl ShardedModel {
    /// Element-wise sum over ranks.
    ///
    /// # Errors
    /// A failed collective.
    pub fn sum_over_ranks<const K: usize>(&self, values: [f64; K]) -> Result<[f64; K]> {
        self.over_ranks(values, ReduceOp::Sum)
    }

    /// Element-wise maximum over ranks.
    ///
    /// # Errors
    /// A failed collective.
    pub fn max_over_ranks<const K: usize>(&self, values: [f64; K]) -> Result<[f64; K]> {
        self.over_ranks(values, ReduceOp::Max)
    }

    fn over_ranks<const K: usize>(&self, values: [f64; K], op: ReduceOp) -> Result<[f64; K]> {
        if self.world_size() == 1 {
            return Ok(values);
        }
        let mut tensor = Tensor::from_slice(&values).to_device(self.settings.device);
        self.comm.all_reduce(&mut tensor, op)?.wait()?;
        let tensor = tensor.to_device(tch::Device::Cpu);
        Ok(std::array::from_fn(|index| tensor.double_value(&[index as i64])))
    }

    /// Turns one rank's failure into everybody's: all return together, the failing ranks with
    /// their own error, the others with [`EngineError::OtherRank`].
    ///
    /// # Errors
    /// As said, or a failed collective.
    pub(crate) fn agree<T>(&self, action: &'static str, outcome: Result<T>) -> Result<T> {
        let [failed] = self.sum_over_ranks([f64::from(u8::from(outcome.is_err()))])?;
        let value = outcome?;
        if failed > 0.0 {
            let (failed, world_size) = (failed as usize, self.world_size());
            return Err(EngineError::OtherRank { action, failed, world_size });
        }
        Ok(value)
    }
}
