//! verl's vectorised GRPO, which differs from its loop form for groups of small spread.

use crate::AlgoError;
use crate::error::{all_finite, parameter, same_length};
use crate::group::Groups;

/// GRPO in float32, with the group's variance raised to at least `epsilon` before its root:
/// `a_i = (s_i - mean) / (sqrt(max(var, epsilon)) + epsilon)`, so a spread below
/// `sqrt(epsilon) = 1e-3` no longer counts in full. A group of one keeps its score.
///
/// Source: verl `compute_grpo_vectorized_outcome_advantage` (core_algos.py) with `group_mean_std`
/// (groupwise.py): variance as `(sum s^2 - (sum s)^2 / n) / (n - 1)` in float32, which also loses
/// the spread of scores that lie far from 0. Use [`super::grpo`]; this is for comparisons.
/// `scores` is `[B]`; verl's epsilon is 1e-6.
///
/// # Errors
/// As [`super::grpo`].
pub fn compat_grpo_vectorized(
    norm_by_std: bool,
    epsilon: f64,
    scores: &[f64],
    groups: &Groups,
) -> Result<Vec<f64>, AlgoError> {
    const F: &str = "compat_grpo_vectorized";
    parameter(F, "epsilon", epsilon, epsilon >= 0.0, "at least 0")?;
    same_length(F, "scores", groups.samples(), scores.len())?;
    all_finite(F, "scores", scores)?;
    let epsilon = epsilon as f32;
    let mut advantages = vec![0.0; scores.len()];
    for members in groups.iter() {
        let (mean, std) = mean_std(members.iter().map(|i| scores[*i] as f32), epsilon);
        let divisor = f64::from(std + epsilon);
        for &i in members {
            let difference = scores[i] - f64::from(mean);
            advantages[i] = match norm_by_std {
                false => difference,
                true if difference == 0.0 => 0.0,
                true => difference / divisor,
            };
        }
    }
    Ok(advantages)
}

/// Mean and floored standard deviation, in float32 and in this order of operations.
fn mean_std(scores: impl Iterator<Item = f32>, epsilon: f32) -> (f32, f32) {
    let (mut n, mut sum, mut squares) = (0.0f32, 0.0f32, 0.0f32);
    for score in scores {
        n += 1.0;
        sum += score;
        squares += score * score;
    }
    if n <= 1.0 {
        return (0.0, 1.0);
    }
    let variance = (squares - sum * sum / n) / (n - 1.0);
    (sum / n, variance.max(epsilon).sqrt())
}
