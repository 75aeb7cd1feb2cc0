//! Which groups teach something.

use crate::AlgoError;
use crate::error::same_length;
use crate::group::Groups;

/// False for every sample of a group whose rewards are all exactly 0 or all exactly 1; true for
/// the others. Samples that are not kept leave the loss; nothing is drawn in their place.
///
/// Source: LightRFT `--dynamic_sampling` with group_norm. `rewards` are the raw ones, before any
/// penalty. Groups that are constant at another value are kept, as there (their advantages are 0
/// anyway).
///
/// # Errors
/// [`AlgoError::Length`] when `groups` is over another number of samples.
pub fn keep(rewards: &[f64], groups: &Groups) -> Result<Vec<bool>, AlgoError> {
    same_length("dynamic_sampling::keep", "rewards", groups.samples(), rewards.len())?;
    let mut kept = vec![true; rewards.len()];
    for members in groups.iter() {
        let all = |value: f64| members.iter().all(|i| rewards[*i] == value);
        if all(0.0) || all(1.0) {
            for &i in members {
                kept[i] = false;
            }
        }
    }
    Ok(kept)
}
