//! The costs of the latest episodes.

use std::collections::VecDeque;

use crate::AlgoError;
use crate::statistics::mean;

/// A window over episode costs, oldest first; the oldest leave when it is full.
///
/// Source: safe-rlhf's `episode_costs` (a deque of `episode_cost_window_size`). It is part of the
/// training state: a resumed run extends a new window with [`CostWindow::to_vec`] of the old.
#[derive(Debug, Clone, PartialEq)]
pub struct CostWindow {
    size: usize,
    costs: VecDeque<f64>,
}

impl CostWindow {
    /// Window size of safe-rlhf.
    pub const DEFAULT_SIZE: usize = 128;

    /// An empty window.
    ///
    /// # Errors
    /// [`AlgoError::Parameter`] for a size of 0.
    pub fn new(size: usize) -> Result<Self, AlgoError> {
        if size == 0 {
            return Err(AlgoError::Parameter {
                function: "CostWindow::new",
                parameter: "size",
                value: 0.0,
                expected: "at least 1",
            });
        }
        Ok(Self { size, costs: VecDeque::with_capacity(size.min(1 << 16)) })
    }

    /// Takes in the costs of a rollout, in order.
    ///
    /// # Errors
    /// [`AlgoError::NonFinite`]; the window is then unchanged.
    pub fn extend(&mut self, costs: &[f64]) -> Result<(), AlgoError> {
        crate::error::all_finite("CostWindow::extend", "costs", costs)?;
        for cost in &costs[costs.len().saturating_sub(self.size)..] {
            if self.costs.len() == self.size {
                self.costs.pop_front();
            }
            self.costs.push_back(*cost);
        }
        Ok(())
    }

    /// `J_c`, the mean of the window.
    ///
    /// # Errors
    /// [`AlgoError::Empty`] before the first cost.
    pub fn mean(&self) -> Result<f64, AlgoError> {
        if self.costs.is_empty() {
            return Err(AlgoError::Empty { function: "CostWindow::mean", what: "the window" });
        }
        Ok(mean(&self.to_vec()))
    }

    /// The costs, oldest first.
    #[must_use]
    pub fn to_vec(&self) -> Vec<f64> {
        self.costs.iter().copied().collect()
    }

    /// How many costs it holds.
    #[must_use]
    pub fn len(&self) -> usize {
        self.costs.len()
    }

    /// Does it hold none?
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.costs.is_empty()
    }
}
