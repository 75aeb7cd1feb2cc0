//! Advantages of ranks: each rank of a list is compared with the same rank of the group's others.

use crate::AlgoError;
use crate::error::{parameter, same_length};
use crate::group::Groups;
use crate::statistics::{mean, square_sum};

/// How several rewards become one advantage.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Combination {
    /// Weighted sum of the rewards, then compared within the group (GRPO).
    #[default]
    SumThenCompare,
    /// Each reward is compared within the group and scaled by itself; the weighted sum of these is
    /// then scaled over the whole batch (GDPO).
    CompareThenSum,
    /// [`Combination::CompareThenSum`], but a single reward is treated as by
    /// [`Combination::SumThenCompare`], as the reference does.
    CompatGdpo,
}

/// Settings of the advantages.
#[derive(Debug, Clone, PartialEq)]
pub struct RankAdvantage {
    /// Default [`Combination::SumThenCompare`].
    pub combination: Combination,
    /// Divide by the group's standard deviation ([`Combination::SumThenCompare`] only; the other
    /// always does). Default true.
    pub scale: bool,
    /// Added to standard deviations. Default 1e-4.
    pub epsilon: f64,
    /// Weight of each reward. Default: 1 each.
    pub weights: Option<Vec<f64>>,
}

impl Default for RankAdvantage {
    fn default() -> Self {
        Self { combination: Combination::default(), scale: true, epsilon: 1e-4, weights: None }
    }
}

/// Rewards `[B][F][K]` of B samples by F reward functions at K ranks. NaN stands for no reward: it
/// adds nothing to a sum.
pub type RankRewards = [Vec<Vec<f64>>];

const F: &str = "RankAdvantage::of";

impl RankAdvantage {
    /// Advantages `[B][K]`.
    ///
    /// Sum, then compare: `R = sum_f w_f r_f`, `A = (R - mean) / (std + epsilon)` over the group at
    /// the rank; without `scale`, `R - mean`. Compare, then sum: `z_f = (r_f - mean) / (std +
    /// epsilon)` over the group at the rank, `Z = sum_f w_f z_f`, `A = (Z - mean) / (std + epsilon)`
    /// over all B K entries; where one of a group has no reward by a function, none of them has a
    /// `z_f`. Standard deviations are unbiased.
    ///
    /// A group of one has nobody to be compared with: its advantage is 0, where the reference
    /// divides by NaN; so is that of a batch of a single entry.
    ///
    /// Source: Rank-GRPO, Safe-Rank-GRPO (section 4.2), GDPO; `RankGRPOTrainer
    /// ._generate_and_score_completions`.
    ///
    /// # Errors
    /// [`AlgoError::Parameter`] for an epsilon below 0, [`AlgoError::Length`] for ragged rewards or
    /// a wrong number of weights, [`AlgoError::NonFinite`] for infinities.
    pub fn of(
        &self,
        rewards: &RankRewards,
        groups: &Groups,
        rec_num: usize,
    ) -> Result<Vec<Vec<f64>>, AlgoError> {
        parameter(F, "epsilon", self.epsilon, self.epsilon >= 0.0, "at least 0")?;
        same_length(F, "rewards", groups.samples(), rewards.len())?;
        let functions = rewards.first().map_or(0, Vec::len);
        let weights = self.weights.clone().unwrap_or_else(|| vec![1.0; functions]);
        check(rewards, functions, rec_num, &weights)?;
        let sum_first = match self.combination {
            Combination::SumThenCompare => true,
            Combination::CompareThenSum => false,
            Combination::CompatGdpo => functions < 2,
        };
        if sum_first {
            let mut sums = weighted(rewards, &weights, rec_num);
            for_each_column(&mut sums, groups, rec_num, |own| self.compare(own, self.scale));
            return Ok(sums);
        }
        let mut scaled: Vec<Vec<Vec<f64>>> = rewards.to_vec();
        for f in 0..functions {
            let mut one: Vec<Vec<f64>> = rewards.iter().map(|sample| sample[f].clone()).collect();
            for_each_column(&mut one, groups, rec_num, |own| self.compare(own, true));
            for (sample, ranks) in scaled.iter_mut().zip(one) {
                sample[f] = ranks;
            }
        }
        let sums = weighted(&scaled, &weights, rec_num);
        let mut batch = sums.concat();
        self.compare(&mut batch, true);
        Ok(match rec_num {
            0 => sums,
            _ => batch.chunks(rec_num).map(<[f64]>::to_vec).collect(),
        })
    }

    /// `x - mean`, over `std + epsilon` if so asked. A single value, and equal ones, become 0; where
    /// there is NaN among them, all become NaN.
    fn compare(&self, values: &mut [f64], scale: bool) {
        if values.iter().any(|value| value.is_nan()) {
            values.fill(f64::NAN);
            return;
        }
        if values.iter().all(|value| *value == values[0]) {
            values.fill(0.0);
            return;
        }
        let mean = mean(values);
        let std = (square_sum(values, mean) / (values.len() - 1) as f64).sqrt();
        let divisor = if scale { std + self.epsilon } else { 1.0 };
        for value in values {
            *value = (*value - mean) / divisor;
        }
    }
}

fn check(
    rewards: &RankRewards,
    functions: usize,
    rec_num: usize,
    weights: &[f64],
) -> Result<(), AlgoError> {
    if !rewards.is_empty() {
        same_length(F, "weights", functions, weights.len())?;
    }
    crate::error::all_finite(F, "weights", weights)?;
    for (b, sample) in rewards.iter().enumerate() {
        same_length(F, "rewards[b]", functions, sample.len())?;
        for ranks in sample {
            same_length(F, "rewards[b][f]", rec_num, ranks.len())?;
            if let Some(value) = ranks.iter().find(|reward| reward.is_infinite()) {
                return Err(AlgoError::NonFinite {
                    function: F,
                    argument: "rewards",
                    index: b,
                    value: *value,
                });
            }
        }
    }
    Ok(())
}

/// Weighted sums over the functions, NaN left out: `[B][K]`.
fn weighted(rewards: &RankRewards, weights: &[f64], rec_num: usize) -> Vec<Vec<f64>> {
    let of = |sample: &Vec<Vec<f64>>| {
        let mut sums = vec![0.0; rec_num];
        for (ranks, weight) in sample.iter().zip(weights) {
            for (sum, reward) in sums.iter_mut().zip(ranks).filter(|(_, reward)| !reward.is_nan()) {
                *sum += weight * reward;
            }
        }
        sums
    };
    rewards.iter().map(of).collect()
}

/// Applies `change` to the values of each group at each rank.
fn for_each_column(
    rows: &mut [Vec<f64>],
    groups: &Groups,
    rec_num: usize,
    change: impl Fn(&mut [f64]),
) {
    let mut own = Vec::new();
    for (members, rank) in groups.iter().flat_map(|g| (0..rec_num).map(move |rank| (g, rank))) {
        own.clear();
        own.extend(members.iter().map(|b| rows[*b][rank]));
        change(&mut own);
        for (b, value) in members.iter().zip(&own) {
            rows[*b][rank] = *value;
        }
    }
}
