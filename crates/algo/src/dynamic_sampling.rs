//! Which groups teach something: LightRFT masks the others out, DAPO draws new ones for them.

use crate::AlgoError;
use crate::error::{parameter, same_length};
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

/// LightRFT's chunks for [`keep`]: `samples_per_prompt / micro_batch` experiences (rounded down) of
/// `rows_per_experience` samples each. They are the prompts' groups if the sizes divide one another;
/// if not, LightRFT tests runs that cut across prompts. The last chunk may be shorter.
///
/// # Errors
/// [`AlgoError::Parameter`] for sizes of 0 or a micro batch larger than a group (there a step of 0,
/// which raises).
pub fn compat_chunks(
    samples_per_prompt: usize,
    micro_batch: usize,
    rows_per_experience: usize,
    samples: usize,
) -> Result<Groups, AlgoError> {
    const F: &str = "dynamic_sampling::compat_chunks";
    let micro_holds = micro_batch > 0 && micro_batch <= samples_per_prompt;
    parameter(F, "micro_batch", micro_batch as f64, micro_holds, "1 to samples_per_prompt")?;
    let rows = rows_per_experience;
    parameter(F, "rows_per_experience", rows as f64, rows > 0, "at least 1")?;
    let chunk = samples_per_prompt / micro_batch * rows;
    Ok(Groups::by_key(&(0..samples).map(|i| i / chunk).collect::<Vec<_>>()))
}

/// How [`resample`] tells that a group's metrics differ.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Spread {
    /// They are not all equal.
    #[default]
    Exact,
    /// Their population standard deviation is above 0 in floating point, as verl asks; the rounding
    /// of the mean can make that so for equal values.
    CompatRounded,
}

/// For each group, whether it stays in the batch: its metrics differ, or it has one sample, or
/// their mean lies strictly between 0 and 1. For the others new prompts are to be drawn.
///
/// Source: DAPO, section 3.2; verl's DAPO trainer, `filter_groups` (dapo_ray_trainer.py). `metrics`
/// is `[B]` (accuracy or reward). A metric that is NaN makes a group drop unless it is alone in it;
/// so does an infinite one.
///
/// # Errors
/// [`AlgoError::Length`] when `groups` is over another number of samples.
pub fn resample(spread: Spread, metrics: &[f64], groups: &Groups) -> Result<Vec<bool>, AlgoError> {
    same_length("dynamic_sampling::resample", "metrics", groups.samples(), metrics.len())?;
    let stays = |members: &[usize]| {
        if members.len() == 1 {
            return true;
        }
        let own: Vec<f64> = members.iter().map(|i| metrics[*i]).collect();
        let mean = sum(&own) / own.len() as f64;
        let squares: Vec<f64> = own.iter().map(|x| (x - mean) * (x - mean)).collect();
        let differ = match spread {
            Spread::Exact => own.iter().all(|x| x.is_finite()) && own.iter().any(|x| *x != own[0]),
            Spread::CompatRounded => (sum(&squares) / own.len() as f64).sqrt() > 0.0,
        };
        differ || (mean > 0.0 && mean < 1.0)
    };
    Ok(groups.iter().map(stays).collect())
}

/// The sum in numpy's order: one after the other up to 7 values, from 8 on in 8 lanes.
fn sum(values: &[f64]) -> f64 {
    if values.len() < 8 {
        return values.iter().sum();
    }
    let mut lanes = [0.0; 8];
    let chunks = values.chunks_exact(8);
    let rest: &[f64] = chunks.remainder();
    for chunk in chunks {
        for (lane, value) in lanes.iter_mut().zip(chunk) {
            *lane += value;
        }
    }
    let [a, b, c, d, e, f, g, h] = lanes;
    let whole = ((a + b) + (c + d)) + ((e + f) + (g + h));
    rest.iter().fold(whole, |sum, value| sum + value)
}
