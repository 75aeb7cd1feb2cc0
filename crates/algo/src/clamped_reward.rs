//! Rewards and costs with the KL to the reference in them, clamped last.
//!
//! [`crate::token_reward`] clamps a sample's reward before the penalty is added; these clamp what
//! comes out.

use crate::AlgoError;
use crate::error::{all_finite, parameter, same_length};

/// Settings, of safe-rlhf and HC-RLHF.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ClampedReward {
    /// Coefficient of `logp - ref_logp`. Default 0.02 (PPO-Lag's script: 0.01; HC-RLHF's: 0.1).
    pub kl_coef: f64,
    /// Results are clamped to ± this, at least 0; infinity does not clamp. Default 50.
    pub clip: f64,
}

impl Default for ClampedReward {
    fn default() -> Self {
        Self { kl_coef: 0.02, clip: 50.0 }
    }
}

/// Which way the KL pushes a score.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Score {
    /// A reward: `-kl_coef (logp - ref_logp)`.
    Reward,
    /// A cost: `+kl_coef (logp - ref_logp)`, so that leaving the reference costs something.
    Cost,
}

impl ClampedReward {
    /// `clamp(∓kl_coef (logp_t - ref_logp_t) + [t = last] score, ±clip)`.
    ///
    /// Source: safe-rlhf `PPOTrainer` and `PPOLagTrainer.add_kl_divergence_regularization`. Slices
    /// are `[T]`; `last` is the last masked-in position. The KL stands on **every** position, also
    /// those of the prompt and outside the mask, which GAE then leaves out.
    ///
    /// # Errors
    /// [`AlgoError::Length`]; [`AlgoError::Empty`] for a mask that keeps nothing;
    /// [`AlgoError::NonFinite`]; [`AlgoError::Parameter`] for a negative clip.
    pub fn tokens(
        &self,
        kind: Score,
        score: f64,
        logp: &[f64],
        ref_logp: &[f64],
        mask: &[bool],
    ) -> Result<Vec<f64>, AlgoError> {
        let last = self.check(score, logp, ref_logp, mask)?;
        let coef = match kind {
            Score::Reward => -self.kl_coef,
            Score::Cost => self.kl_coef,
        };
        let mut tokens: Vec<f64> =
            logp.iter().zip(ref_logp).map(|(logp, base)| coef * (logp - base)).collect();
        tokens[last] += score;
        for token in &mut tokens {
            *token = token.clamp(-self.clip, self.clip);
        }
        Ok(tokens)
    }

    /// `clamp(reward - kl_coef sum_response (logp_t - ref_logp_t), ±clip)`, one number a sample.
    ///
    /// Source: HC-RLHF `ReinforceCILagTrainer.add_kl_divergence_regularization`; costs have no KL
    /// there. The response is what `mask` keeps from `start` on (prompt tokens less one, see
    /// [`crate::advantage::response_gae`]).
    ///
    /// # Errors
    /// As [`ClampedReward::tokens`].
    pub fn sequence(
        &self,
        reward: f64,
        logp: &[f64],
        ref_logp: &[f64],
        mask: &[bool],
        start: usize,
    ) -> Result<f64, AlgoError> {
        self.check(reward, logp, ref_logp, mask)?;
        let response = logp.iter().zip(ref_logp).zip(mask).skip(start);
        let kl: f64 =
            response.filter(|(_, keep)| **keep).map(|((logp, base), _)| logp - base).sum();
        Ok((reward - self.kl_coef * kl).clamp(-self.clip, self.clip))
    }

    /// Checks arguments; the last masked-in position.
    fn check(
        &self,
        score: f64,
        logp: &[f64],
        ref_logp: &[f64],
        mask: &[bool],
    ) -> Result<usize, AlgoError> {
        const F: &str = "ClampedReward";
        parameter(F, "kl_coef", self.kl_coef, true, "a finite number")?;
        if self.clip.is_nan() || self.clip < 0.0 {
            let expected = "at least 0";
            return Err(AlgoError::Parameter {
                function: F,
                parameter: "clip",
                value: self.clip,
                expected,
            });
        }
        same_length(F, "ref_logp", logp.len(), ref_logp.len())?;
        same_length(F, "mask", logp.len(), mask.len())?;
        all_finite(F, "score", &[score])?;
        all_finite(F, "logp", logp)?;
        all_finite(F, "ref_logp", ref_logp)?;
        mask.iter()
            .rposition(|keep| *keep)
            .ok_or(AlgoError::Empty { function: F, what: "the mask" })
    }
}
