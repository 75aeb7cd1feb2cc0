//! Advantage estimators, one a file.
//!
//! Two stages, as in LightRFT: a group estimator turns the rewards of samples into one figure a
//! sample (`[B]` to `[B]`), then [`crate::returns`] or [`gae`] spread figures over tokens.
//! verl's outcome advantages are the first stage, put on every masked-in token
//! ([`broadcast`]).

mod broadcast;
mod cpgd;
mod estimator;
mod gae;
mod gdpo;
mod gpg;
mod group_norm;
mod grpo;
mod grpo_vectorized;
mod normalize;
mod opo;
mod pass_k;
mod reinforce_baseline;
mod reinforce_plus_plus;
mod remax;
mod response_gae;
mod rloo;

pub use broadcast::{broadcast, broadcast_rows};
pub use cpgd::{Cpgd, CpgdWeight, cpgd};
pub use estimator::{Estimator, Outcomes};
pub use gae::{Gae, Outside, gae, gae_rows};
pub use gdpo::{Component, Gdpo, GdpoAdvantages, Missing, gdpo, gdpo_tokens};
pub use gpg::{Gpg, gpg};
pub use group_norm::{GROUP_NORM_EPSILON, group_norm};
pub use grpo::{Grpo, grpo};
pub use grpo_vectorized::compat_grpo_vectorized;
pub use normalize::{CROSS_BATCH_FLOOR, CrossBatch, clip, cross_batch};
pub use opo::{Opo, opo};
pub use pass_k::{PassK, pass_k};
pub use reinforce_baseline::{ReinforceBaseline, reinforce_baseline};
pub use reinforce_plus_plus::{
    ReinforcePlusPlusBaseline, reinforce_plus_plus, reinforce_plus_plus_baseline,
};
pub use remax::remax;
pub use response_gae::{TokenAdvantages, response_gae};
pub use rloo::{Rloo, rloo};

use crate::AlgoError;
use crate::error::{all_finite, same_length};
use crate::group::Groups;
use crate::real::Real;

/// What a group of one sample gets, which has nobody to be compared with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Singleton {
    /// Its own score, unchanged by the group (verl).
    Keep,
    /// 0: nothing is learnt from it (verl's vectorised RLOO).
    Zero,
    /// [`AlgoError::GroupOfOne`] (LightRFT asserts it).
    Refuse,
}

/// A sample's outcome score: the sum of its token rewards `[T]`.
#[must_use]
pub fn outcome_score<R: Real>(token_rewards: &[R]) -> f64 {
    token_rewards.iter().map(|r| (*r).into()).sum()
}

/// Checks rewards against groups, then asks `of_group` for the advantages of each group of two or
/// more (given its members, their rewards and where to write); `singleton` says what a group of one gets (given its score). Groups whose rewards are all
/// equal get exactly 0, where rounding of their mean over a tiny epsilon would give noise.
fn per_group(
    function: &'static str,
    rewards: &[f64],
    groups: &Groups,
    singleton: Singleton,
    kept: impl Fn(f64) -> f64,
    of_group: impl Fn(&[usize], &[f64], &mut [f64]),
) -> Result<Vec<f64>, AlgoError> {
    same_length(function, "rewards", groups.samples(), rewards.len())?;
    all_finite(function, "rewards", rewards)?;
    let mut advantages = vec![0.0; rewards.len()];
    let (mut own, mut out) = (Vec::new(), Vec::new());
    for (group, members) in groups.iter().enumerate() {
        if let [only] = members {
            advantages[*only] = match singleton {
                Singleton::Keep => kept(rewards[*only]),
                Singleton::Zero => 0.0,
                Singleton::Refuse => return Err(AlgoError::GroupOfOne { function, group }),
            };
            continue;
        }
        own.clear();
        own.extend(members.iter().map(|i| rewards[*i]));
        if own.iter().all(|reward| *reward == own[0]) {
            continue;
        }
        out.clear();
        out.resize(own.len(), 0.0);
        of_group(members, &own, &mut out);
        for (i, advantage) in members.iter().zip(&out) {
            advantages[*i] = *advantage;
        }
    }
    Ok(advantages)
}
