//! In what order rows are gone through, how far a run has come, and which rank has which rows.
//!
//! Every epoch has an order of its own: the indices `0..rows`, shuffled (Fisher-Yates, as
//! `rand::seq::SliceRandom` does it) by ChaCha8 seeded with the seed, stream = epoch. So the order
//! of an epoch is a function of rows, seed and epoch alone, and a run that is resumed need only
//! know its [`Position`]. A batch is divided among ranks row by row ([`Shard`]); the position
//! counts rows of all ranks, so a run may be resumed with another number of them.

use rand::SeedableRng as _;
use rand::seq::SliceRandom as _;
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};

/// The order of a data set's rows, epoch by epoch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Order {
    rows: usize,
    seed: u64,
}

/// How far a run has come: `index` rows of an epoch are done.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Position {
    /// Counted from 0.
    pub epoch: u64,
    /// Rows of that epoch that are done, of all ranks together.
    pub index: u64,
}

/// A position or shard that does not fit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum OrderError {
    /// Beyond the data.
    #[error(
        "row {index} of epoch {epoch} is to be resumed at, but the data has {rows} rows; resume \
         with the data that the run began with", index = position.index, epoch = position.epoch
    )]
    Position {
        /// Where the run stood.
        position: Position,
        /// Rows that there are.
        rows: usize,
    },
    /// A rank that is none.
    #[error("rank {rank} of {ranks}, expected a rank below the number of ranks")]
    Shard {
        /// The rank.
        rank: usize,
        /// How many there are.
        ranks: usize,
    },
}

impl Order {
    /// The order of that many rows.
    #[must_use]
    pub fn new(rows: usize, seed: u64) -> Self {
        Self { rows, seed }
    }

    /// How many rows there are.
    #[must_use]
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// The indices `0..rows` in the epoch's order.
    #[must_use]
    pub fn epoch(&self, epoch: u64) -> Vec<usize> {
        let mut indices: Vec<usize> = (0..self.rows).collect();
        let mut random = ChaCha8Rng::seed_from_u64(self.seed);
        random.set_stream(epoch);
        indices.shuffle(&mut random);
        indices
    }

    /// Goes through the rows from a position on.
    ///
    /// # Errors
    /// [`OrderError::Position`] for one beyond the data.
    pub fn starting_at(self, position: Position) -> Result<Batches, OrderError> {
        if position.index > self.rows as u64 {
            return Err(OrderError::Position { position, rows: self.rows });
        }
        Ok(Batches { order: self, position, current: self.epoch(position.epoch) })
    }
}

/// Batches of row indices, without end.
#[derive(Debug, Clone)]
pub struct Batches {
    order: Order,
    position: Position,
    /// The order of the position's epoch.
    current: Vec<usize>,
}

impl Batches {
    /// Where the next batch begins; what a checkpoint keeps.
    #[must_use]
    pub fn position(&self) -> Position {
        self.position
    }

    /// The next `size` rows (at least 1). A batch ends with its epoch, so the last one of an epoch
    /// may be shorter. Empty only for data without rows.
    pub fn next_batch(&mut self, size: usize) -> Vec<usize> {
        if self.position.index as usize == self.current.len() && !self.current.is_empty() {
            self.position = Position { epoch: self.position.epoch + 1, index: 0 };
            self.current = self.order.epoch(self.position.epoch);
        }
        let begin = self.position.index as usize;
        let end = begin.saturating_add(size.max(1)).min(self.current.len());
        self.position.index = end as u64;
        self.current[begin..end].to_vec()
    }
}

/// One rank's part of every batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shard {
    rank: usize,
    ranks: usize,
}

impl Shard {
    /// The part of `rank`, counted from 0.
    ///
    /// # Errors
    /// [`OrderError::Shard`] for a rank beyond their number.
    pub fn new(rank: usize, ranks: usize) -> Result<Self, OrderError> {
        if rank < ranks { Ok(Self { rank, ranks }) } else { Err(OrderError::Shard { rank, ranks }) }
    }

    /// The rank's items of a batch: every `ranks`-th from `rank` on. All ranks together have each
    /// item once; their numbers differ by one at most.
    pub fn of<'a, T>(&self, batch: &'a [T]) -> impl Iterator<Item = &'a T> + use<'a, T> {
        batch.iter().skip(self.rank).step_by(self.ranks)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_order_is_the_documented_one() {
        // Written down once: a generator that gives another order would break resumed runs.
        assert_eq!(Order::new(8, 1).epoch(0), STORED[0]);
        assert_eq!(Order::new(8, 1).epoch(1), STORED[1]);
        assert_eq!(Order::new(8, 2).epoch(0), STORED[2]);
    }

    const STORED: [[usize; 8]; 3] =
        [[3, 4, 5, 2, 7, 1, 6, 0], [6, 5, 2, 3, 0, 4, 7, 1], [3, 0, 4, 6, 5, 2, 1, 7]];

    #[test]
    fn a_position_is_a_small_json_value() {
        let position = Position { epoch: 2, index: 7 };
        let text = serde_json::to_string(&position).unwrap();
        assert_eq!(text, r#"{"epoch":2,"index":7}"#);
        assert_eq!(serde_json::from_str::<Position>(&text).unwrap(), position);
    }

    #[test]
    fn a_position_beyond_the_data_and_a_rank_beyond_the_ranks_are_named() {
        let position = Position { epoch: 1, index: 9 };
        let error = Order::new(8, 1).starting_at(position).unwrap_err().to_string();
        assert!(error.contains("row 9 of epoch 1") && error.contains("8 rows"), "{error}");
        assert!(Shard::new(2, 2).unwrap_err().to_string().contains("rank 2 of 2"));
        assert!(Shard::new(0, 0).is_err());
        assert_eq!(
            Order::new(0, 1).starting_at(Position::default()).unwrap().next_batch(3),
            [0; 0]
        );
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(500))]

        #[test]
        fn an_epoch_has_every_row_once_whatever_the_batches(
            rows in 1usize..200,
            seed: u64,
            size in 1usize..40,
        ) {
            let mut batches = Order::new(rows, seed).starting_at(Position::default()).unwrap();
            let mut epoch = Vec::new();
            while epoch.len() < rows {
                let batch = batches.next_batch(size);
                prop_assert!(!batch.is_empty() && batch.len() <= size);
                epoch.extend(batch);
            }
            prop_assert_eq!(batches.position(), Position { epoch: 0, index: rows as u64 });
            prop_assert_eq!(&epoch, &Order::new(rows, seed).epoch(0));
            epoch.sort_unstable();
            prop_assert_eq!(epoch, (0..rows).collect::<Vec<_>>());
        }

        #[test]
        fn a_resumed_run_goes_on_as_the_whole_one(
            rows in 1usize..60,
            seed: u64,
            sizes in prop::collection::vec(1usize..20, 1..20),
            stop in 0usize..20,
        ) {
            let order = Order::new(rows, seed);
            let mut whole = order.starting_at(Position::default()).unwrap();
            let expected: Vec<Vec<usize>> = sizes.iter().map(|n| whole.next_batch(*n)).collect();
            let stop = stop.min(sizes.len());
            let mut first = order.starting_at(Position::default()).unwrap();
            let mut got: Vec<Vec<usize>> =
                sizes[..stop].iter().map(|n| first.next_batch(*n)).collect();
            let kept = serde_json::to_string(&first.position()).unwrap();
            let mut second = order.starting_at(serde_json::from_str(&kept).unwrap()).unwrap();
            got.extend(sizes[stop..].iter().map(|n| second.next_batch(*n)));
            prop_assert_eq!(got, expected);
        }

        #[test]
        fn ranks_share_a_batch_without_overlap_or_loss(
            rows in 0usize..100,
            ranks in 1usize..9,
        ) {
            let batch: Vec<usize> = (0..rows).collect();
            let parts: Vec<Vec<usize>> = (0..ranks)
                .map(|rank| Shard::new(rank, ranks).unwrap().of(&batch).copied().collect())
                .collect();
            let sizes: Vec<usize> = parts.iter().map(Vec::len).collect();
            prop_assert!(sizes.iter().max().unwrap() - sizes.iter().min().unwrap() <= 1);
            let mut all = parts.concat();
            all.sort_unstable();
            prop_assert_eq!(all, batch);
        }

        #[test]
        fn another_number_of_ranks_goes_on_where_the_run_stood(
            rows in 1usize..60,
            seed: u64,
            before in 1usize..5,
            after in 1usize..5,
            steps in 0usize..5,
        ) {
            // Rows that both worlds trained on in the first epoch: each once.
            let order = Order::new(rows, seed);
            let mut batches = order.starting_at(Position::default()).unwrap();
            let mut seen = Vec::new();
            let part = |batch: &[usize], ranks: usize| -> Vec<usize> {
                (0..ranks).flat_map(|r| Shard::new(r, ranks).unwrap().of(batch).copied().collect::<Vec<_>>()).collect()
            };
            for _ in 0..steps {
                if batches.position().index < rows as u64 {
                    seen.extend(part(&batches.next_batch(7), before));
                }
            }
            let mut batches = order.starting_at(batches.position()).unwrap();
            while batches.position().index < rows as u64 {
                seen.extend(part(&batches.next_batch(5), after));
            }
            seen.sort_unstable();
            prop_assert_eq!(seen, (0..rows).collect::<Vec<_>>());
        }
    }
}
