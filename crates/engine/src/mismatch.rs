//! How far the trainer's log-probs are from those the sampler recorded for the same weights.

use tch::{Kind, Tensor};

use crate::Result;
use crate::sharded_model::ShardedModel;

/// |Δ log p| over tokens. Numbers of different engines or precisions differ a little; a large
/// value says that sampler and trainer do not run the same policy.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Mismatch {
    /// Largest difference.
    pub max: f64,
    /// Sum of differences.
    pub sum: f64,
    /// Sum of `r - 1 - ln r`, `r = p_trainer / p_rollout`: an estimate of KL(rollout | trainer) that
    /// is never negative.
    pub kl_sum: f64,
    /// Tokens compared.
    pub tokens: f64,
}

impl Mismatch {
    /// Adds tokens; both `[N]`.
    pub fn add(&mut self, trainer_logp_n: &Tensor, rollout_logp_n: &Tensor) {
        let tokens = trainer_logp_n.size()[0];
        if tokens == 0 {
            return;
        }
        let log_ratio_n =
            trainer_logp_n.to_kind(Kind::Double) - rollout_logp_n.to_kind(Kind::Double);
        let difference_n = log_ratio_n.abs();
        // e^x - 1 - x without the cancellation of its naive form.
        let kl_n = log_ratio_n.expm1() - log_ratio_n;
        self.kl_sum += kl_n.sum(Kind::Double).double_value(&[]);
        self.max = self.max.max(difference_n.max().double_value(&[]));
        self.sum += difference_n.sum(Kind::Double).double_value(&[]);
        self.tokens += tokens as f64;
    }

    /// Mean difference, 0 without tokens.
    #[must_use]
    pub fn mean(&self) -> f64 {
        if self.tokens > 0.0 { self.sum / self.tokens } else { 0.0 }
    }

    /// Mean of the estimate of KL(rollout | trainer), 0 without tokens.
    #[must_use]
    pub fn kl(&self) -> f64 {
        if self.tokens > 0.0 { self.kl_sum / self.tokens } else { 0.0 }
    }

    /// Over all ranks.
    ///
    /// # Errors
    /// A failed collective.
    pub fn over_ranks(self, model: &ShardedModel) -> Result<Self> {
        let [sum, kl_sum, tokens] = model.sum_over_ranks([self.sum, self.kl_sum, self.tokens])?;
        let [max] = model.max_over_ranks([self.max])?;
        Ok(Self { max, sum, kl_sum, tokens })
    }
}
