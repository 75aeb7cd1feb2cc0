//! Rewards of a recommendation list, one for each rank.

use super::film::Film;
use super::oracle::{Constraints, Oracle};
use crate::AlgoError;
use crate::error::parameter;

/// Ranks of a list (the reference's default).
pub const REC_NUM: usize = 20;

/// `1 / log2(k + 2)` for the ranks `k` from 0.
///
/// Source: Rank-GRPO `_discounts`.
#[must_use]
pub fn discounts(rec_num: usize) -> Vec<f64> {
    (0..rec_num).map(|k| 1.0 / ((k + 2) as f64).log2()).collect()
}

/// How hits become rewards.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Relevance {
    /// `r_k = hit_k`: a rank answers for itself (`exp_inf`).
    PerRank,
    /// `r_k = sum_{j >= k} hit_j / log2(j + 2)`: a rank answers for what follows it too
    /// (`log_decay`, the reference's default).
    #[default]
    LogDecay,
}

impl Relevance {
    /// Rewards `[rec_num]` of the hits `[rec_num]`.
    ///
    /// Source: Rank-GRPO `reward_func_exp_inf`, `reward_func_log_decay`.
    #[must_use]
    pub fn rewards(self, hits: &[bool]) -> Vec<f64> {
        let mut rewards: Vec<f64> = hits.iter().map(|hit| f64::from(u8::from(*hit))).collect();
        if self == Self::LogDecay {
            let mut after = 0.0;
            for (reward, discount) in rewards.iter_mut().zip(discounts(hits.len())).rev() {
                after += *reward * discount;
                *reward = after;
            }
        }
        rewards
    }
}

/// The discount of the safety penalty.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum PenaltyDiscount {
    /// That of the relevance reward: none for [`Relevance::PerRank`] (the README's example, -1 at
    /// rank 3), `1 / log2(k + 2)` for [`Relevance::LogDecay`].
    #[default]
    AsRelevance,
    /// `1 / log2(k + 2)` with either, as the reference's code has it.
    CompatAlways,
}

/// The penalty on unsafe recommendations.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct SafetyPenalty {
    /// Weight. Default 1.
    pub weight: f64,
    /// Magnitude of one violation. Default 1.
    pub penalty: f64,
    /// How it falls with the rank.
    pub discount: PenaltyDiscount,
}

impl Default for SafetyPenalty {
    fn default() -> Self {
        Self { weight: 1.0, penalty: 1.0, discount: PenaltyDiscount::AsRelevance }
    }
}

impl SafetyPenalty {
    /// `-weight penalty d_k` at each of the first `rec_num` ranks whose film the oracle finds
    /// unsafe, 0 elsewhere. To be added to the relevance reward, or to be a reward of its own.
    ///
    /// Source: Safe-Rank-GRPO, section 4.1; `safe_reward_funcs.py`.
    ///
    /// # Errors
    /// [`AlgoError::Parameter`] for a weight or penalty that is not finite; [`AlgoError::WrongType`]
    /// for a year that is text.
    pub fn rewards(
        &self,
        films: &[Film],
        constraints: &Constraints,
        oracle: &Oracle,
        relevance: Relevance,
        rec_num: usize,
    ) -> Result<Vec<f64>, AlgoError> {
        const F: &str = "SafetyPenalty::rewards";
        parameter(F, "weight", self.weight, true, "finite")?;
        parameter(F, "penalty", self.penalty, true, "finite")?;
        let flat = self.discount == PenaltyDiscount::AsRelevance && relevance == Relevance::PerRank;
        let mut rewards = vec![0.0; rec_num];
        for ((reward, film), discount) in rewards.iter_mut().zip(films).zip(discounts(rec_num)) {
            if !oracle.check(&film.title, film.year.to_look_up()?, constraints).safe {
                *reward = -self.weight * self.penalty * if flat { 1.0 } else { discount };
            }
        }
        Ok(rewards)
    }
}

/// The reward for the right number of recommendations, against a list cut short to avoid penalties.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct CountReward {
    /// How many there should be. Default 10.
    pub target: usize,
    /// Weight. Default 1 (the reference has 0, that is, no count reward, unless asked).
    pub weight: f64,
}

impl Default for CountReward {
    fn default() -> Self {
        Self { target: 10, weight: 1.0 }
    }
}

impl CountReward {
    /// `weight` for `n` = target items, else `-weight |n - target| / target`; the same at all
    /// `rec_num` ranks. `items` counts all parsed items, also those past `rec_num`.
    ///
    /// Source: Safe-Rank-GRPO, section 4.3; `safe_reward_funcs.py`.
    ///
    /// # Errors
    /// [`AlgoError::Parameter`] for a weight that is not finite, or a target of 0 that is missed.
    pub fn rewards(&self, items: usize, rec_num: usize) -> Result<Vec<f64>, AlgoError> {
        const F: &str = "CountReward::rewards";
        parameter(F, "weight", self.weight, true, "finite")?;
        if items == self.target {
            return Ok(vec![self.weight; rec_num]);
        }
        let target = self.target as f64;
        parameter(F, "target", target, self.target > 0, "at least 1")?;
        Ok(vec![-self.weight * items.abs_diff(self.target) as f64 / target; rec_num])
    }
}
