//! Cuts sequences into micro-batches under a token budget, balanced over ranks.
//!
//! Every rank computes the same plan from the same lengths, so nobody sends a plan to anybody.
//! All ranks get the same number of micro-batches, because each micro-batch is a round of
//! collectives; a rank without work in a round gets an empty micro-batch.

use crate::EngineError;

/// Which sequences each rank computes in each round: `plan[rank][round]` holds indices.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    ranks: Vec<Vec<Vec<usize>>>,
}

impl Plan {
    /// Packs `tokens[i]` (the length of sequence `i`) into the fewest rounds in which no rank
    /// exceeds `budget_tokens`, longest sequence first onto the least loaded micro-batch.
    ///
    /// # Errors
    /// [`EngineError::SequenceTooLong`] when one sequence alone exceeds the budget.
    pub fn new(tokens: &[usize], ranks: usize, budget_tokens: usize) -> Result<Self, EngineError> {
        if let Some((index, &longest)) = tokens.iter().enumerate().max_by_key(|(_, length)| *length)
            && longest > budget_tokens
        {
            return Err(EngineError::SequenceTooLong { index, tokens: longest, budget_tokens });
        }
        let total: usize = tokens.iter().sum();
        let mut rounds = total.div_ceil(budget_tokens.saturating_mul(ranks).max(1)).max(1);
        loop {
            let bins = pack(tokens, rounds * ranks);
            if bins.iter().all(|bin| load(bin, tokens) <= budget_tokens) {
                return Ok(Self { ranks: deal(bins, tokens, ranks) });
            }
            rounds += 1;
        }
    }

    /// The micro-batches of one rank, in the order they run.
    #[must_use]
    pub fn rank(&self, rank: usize) -> &[Vec<usize>] {
        &self.ranks[rank]
    }

    /// Micro-batches per rank.
    #[must_use]
    pub fn rounds(&self) -> usize {
        self.ranks.first().map_or(0, Vec::len)
    }
}

fn load(bin: &[usize], tokens: &[usize]) -> usize {
    bin.iter().map(|&index| tokens[index]).sum()
}

/// Longest-processing-time packing into `count` bins; ties go to the lowest index.
fn pack(tokens: &[usize], count: usize) -> Vec<Vec<usize>> {
    let mut order: Vec<usize> = (0..tokens.len()).collect();
    order.sort_by_key(|&index| (std::cmp::Reverse(tokens[index]), index));
    let mut bins = vec![Vec::new(); count];
    let mut loads = vec![0usize; count];
    for index in order {
        let lightest = (0..count).min_by_key(|&bin| (loads[bin], bin)).unwrap_or(0);
        bins[lightest].push(index);
        loads[lightest] += tokens[index];
    }
    bins
}

/// Bins of similar load run in the same round, so that ranks do not wait for each other; the
/// direction alternates so that no rank always gets the heavier one.
fn deal(mut bins: Vec<Vec<usize>>, tokens: &[usize], ranks: usize) -> Vec<Vec<Vec<usize>>> {
    bins.sort_by_key(|bin| (std::cmp::Reverse(load(bin, tokens)), bin.first().copied()));
    for bin in &mut bins {
        bin.sort_unstable();
    }
    let mut dealt = vec![Vec::new(); ranks];
    for (position, bin) in bins.into_iter().enumerate() {
        let (round, seat) = (position / ranks, position % ranks);
        let rank = if round % 2 == 0 { seat } else { ranks - 1 - seat };
        dealt[rank].push(bin);
    }
    dealt
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn hand_case_two_ranks() {
        // 10 + 6 | 9 + 7 fit 16 each in one round.
        let plan = Plan::new(&[6, 10, 9, 7], 2, 16).unwrap();
        assert_eq!(plan.rounds(), 1);
        assert_eq!(plan.rank(0), &[vec![0, 1]]);
        assert_eq!(plan.rank(1), &[vec![2, 3]]);
    }

    #[test]
    fn fewer_sequences_than_ranks_leave_an_empty_micro_batch() {
        let plan = Plan::new(&[5], 2, 8).unwrap();
        assert_eq!((plan.rank(0).len(), plan.rank(1).len()), (1, 1));
        assert!(plan.rank(1)[0].is_empty());
    }

    #[test]
    fn a_sequence_over_the_budget_is_refused_by_index() {
        let error = Plan::new(&[5, 20], 1, 8).unwrap_err().to_string();
        assert!(
            error.contains("sequence 1") && error.contains("20") && error.contains('8'),
            "{error}"
        );
    }

    proptest! {
        #[test]
        fn every_sequence_runs_once_and_no_micro_batch_exceeds_the_budget(
            tokens in proptest::collection::vec(1usize..100, 0..60),
            ranks in 1usize..5,
            budget in 100usize..300,
        ) {
            let plan = Plan::new(&tokens, ranks, budget).unwrap();
            let mut seen = vec![0; tokens.len()];
            for rank in 0..ranks {
                prop_assert_eq!(plan.rank(rank).len(), plan.rounds());
                for bin in plan.rank(rank) {
                    prop_assert!(load(bin, &tokens) <= budget);
                    bin.iter().for_each(|&index| seen[index] += 1);
                }
            }
            prop_assert!(seen.iter().all(|&times| times == 1));
            prop_assert_eq!(plan.clone(), Plan::new(&tokens, ranks, budget).unwrap());
        }
    }
}
