//! GAE over the response of a sequence that still holds its prompt.

use super::{Gae, gae};
use crate::AlgoError;
use crate::error::same_length;

/// Advantages and returns of one sample's response.
#[derive(Debug, Clone, PartialEq)]
pub struct TokenAdvantages {
    /// `[T - start]`.
    pub advantages: Vec<f64>,
    /// `[T - start]`; advantage plus value.
    pub returns: Vec<f64>,
}

/// GAE ([`gae`]) over the positions from `start` on; those before are the prompt's and have none.
///
/// Source: safe-rlhf `RLTrainer.get_advantages_and_returns`, for reward and for cost alike, with
/// `spec.outside` = [`super::Outside::Zero`] (rewards and values are multiplied by the mask there)
/// and no whitening. All slices are `[T]`, over next-token positions, so `start` is the number of
/// prompt tokens less one.
///
/// # Errors
/// [`AlgoError::Length`]; [`AlgoError::Empty`] when `start` leaves nothing;
/// [`AlgoError::Parameter`] as [`gae`].
pub fn response_gae(
    spec: &Gae,
    rewards: &[f64],
    values: &[f64],
    mask: &[bool],
    start: usize,
) -> Result<TokenAdvantages, AlgoError> {
    const F: &str = "response_gae";
    same_length(F, "values", rewards.len(), values.len())?;
    same_length(F, "mask", rewards.len(), mask.len())?;
    if start >= rewards.len() {
        return Err(AlgoError::Empty { function: F, what: "the response" });
    }
    let tokens = rewards.len() - start;
    let (mut advantages, mut returns) = (vec![0.0; tokens], vec![0.0; tokens]);

    let (rewards, values, mask) = (&rewards[start..], &values[start..], &mask[start..]);
    gae(spec, rewards, values, mask, &mut advantages, &mut returns)?;
    Ok(TokenAdvantages { advantages, returns })
}
