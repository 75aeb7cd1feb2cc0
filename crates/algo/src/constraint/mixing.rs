//! Reward and cost put together with a multiplier.

use crate::AlgoError;
use crate::error::{all_finite, parameter, same_length};

/// How the advantages of reward and cost become one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Mixing {
    /// `(A_r - lambda A_c) / (1 + lambda)`: the scale stays as `lambda` grows (safe-rlhf PPO-Lag).
    #[default]
    Divided,
    /// `A_r - lambda A_c` (HC-RLHF).
    Undivided,
}

impl Mixing {
    /// Mixes element by element; `rewards` and `costs` are advantages (or returns) of tokens `[T]`
    /// or of samples `[B]`. `lambda` is a constant: no gradient flows to it.
    ///
    /// # Errors
    /// [`AlgoError::Length`]; [`AlgoError::NonFinite`] for an advantage that is no number;
    /// [`AlgoError::Parameter`] for a `lambda` that is negative or infinite.
    pub fn mix(self, rewards: &[f64], costs: &[f64], lambda: f64) -> Result<Vec<f64>, AlgoError> {
        const F: &str = "Mixing::mix";
        parameter(F, "lambda", lambda, lambda >= 0.0, "at least 0")?;
        let scale = match self {
            Self::Divided => 1.0 / (1.0 + lambda),
            Self::Undivided => 1.0,
        };
        let net = penalized_rewards(rewards, costs, lambda)?;
        Ok(net.into_iter().map(|value| value * scale).collect())
    }
}

/// `r - lambda c`, with a coefficient of either sign: the reward-shaping baseline of safe-rlhf
/// (`ppo_reward_shaping`, `lambda_init` kept fixed) and the return of HC-RLHF. Both are `[B]`.
///
/// # Errors
/// [`AlgoError::Length`], [`AlgoError::NonFinite`].
pub fn penalized_rewards(
    rewards: &[f64],
    costs: &[f64],
    lambda: f64,
) -> Result<Vec<f64>, AlgoError> {
    const F: &str = "penalized_rewards";
    same_length(F, "costs", rewards.len(), costs.len())?;
    all_finite(F, "rewards", rewards)?;
    all_finite(F, "costs", costs)?;
    parameter(F, "lambda", lambda, true, "a finite number")?;
    Ok(rewards.iter().zip(costs).map(|(r, c)| r - lambda * c).collect())
}
