//! The PTX loss: after each update the policy takes one optimiser step on dialogues, so that it
//! does not forget them.

use std::collections::BTreeMap;
use std::sync::Arc;

use plumb_config::PtxConfig;
use plumb_data::Order;
use plumb_domain::StepId;
use plumb_proto::actor::{TargetText, TrainTextsRequest};

use super::RoleGroup;
use super::group::CallId;
use super::reference::client;
use crate::ports::{PhaseError, PhaseKey};

/// Name of the call; a step has one besides its update.
const PHASE: &str = "ptx";

/// The dialogues, encoded, and the policy's workers.
pub struct Ptx {
    group: Arc<RoleGroup>,
    texts: Vec<TargetText>,
    config: PtxConfig,
    seed: u64,
}

impl Ptx {
    /// Takes at least one text.
    #[must_use]
    pub fn new(
        group: Arc<RoleGroup>,
        texts: Vec<TargetText>,
        config: PtxConfig,
        seed: u64,
    ) -> Self {
        Self { group, texts, config, seed }
    }

    /// One optimiser step; the same texts whenever the step is run. Returns `ptx_loss`.
    ///
    /// # Errors
    /// A rank was lost, or the loss is no number.
    pub(super) async fn train(
        &self,
        key: PhaseKey,
        learning_rate: f64,
    ) -> Result<BTreeMap<String, f64>, PhaseError> {
        let rows = rows(self.texts.len(), self.config.dialogues_per_step, key.step, self.seed);
        let texts: Vec<_> = rows.into_iter().map(|row| self.texts[row].clone()).collect();
        let answers = self
            .group
            .call_all(&self.group.workers(), PHASE, |worker, shard| {
                let (step, attempt) = (key.step.0, key.attempt);
                let id = CallId { step, phase: PHASE, shard, attempt };
                let request = TrainTextsRequest {
                    context: Some(self.group.context(&worker, &id)),
                    texts: texts.clone(),
                    learning_rate,
                    weight: Some(self.config.coef),
                };
                async move { Ok(client(&worker).train_texts(request).await?.into_inner()) }
            })
            .await?;
        let metrics = answers.into_iter().next().map(|a| a.metrics).unwrap_or_default();
        let loss = metrics.get("loss").copied().unwrap_or(f64::NAN);
        if !loss.is_finite() {
            let problem = format!("the PTX loss of step {} is {loss}", key.step);
            return Err(PhaseError::Failed(problem));
        }
        Ok([("ptx_loss".to_owned(), loss)].into())
    }
}

/// Rows of a step: each epoch in an order of its own, `per_step` after one another.
fn rows(count: usize, per_step: usize, step: StepId, seed: u64) -> Vec<usize> {
    let order = Order::new(count, seed);
    let mut epochs: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
    let first = step.0 as usize * per_step;
    let row = |at: usize| {
        let epoch = at / count.max(1);
        let order = epochs.entry(epoch).or_insert_with(|| order.epoch(epoch as u64));
        order.get(at % count.max(1)).copied()
    };
    (first..first + per_step).filter_map(row).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_step_has_rows_of_its_own_and_an_epoch_each_row_once() {
        let of = |step| rows(5, 3, StepId(step), 7);
        assert_eq!(of(0), of(0));
        let mut all: Vec<usize> = (0..5).flat_map(of).collect();
        assert_eq!(all.len(), 15);
        all.sort_unstable();
        assert_eq!(all, [0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 3, 4, 4, 4]);
        assert!(rows(0, 3, StepId(0), 7).is_empty());
    }
}
