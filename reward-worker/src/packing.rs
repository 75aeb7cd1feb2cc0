//! Cutting sequences into packed batches.

/// Cuts `lengths` (tokens) into batches of at most `budget` tokens, longest first so that a batch
/// holds sequences of like length. A longer sequence gets a batch of its own. Returns the places
/// of the sequences of each batch.
#[must_use]
pub fn batches(lengths: &[usize], budget: usize) -> Vec<Vec<usize>> {
    let mut order: Vec<usize> = (0..lengths.len()).collect();
    order.sort_by_key(|place| (std::cmp::Reverse(lengths[*place]), *place));
    let mut batches: Vec<Vec<usize>> = Vec::new();
    let mut tokens = 0;
    for place in order {
        match batches.last_mut() {
            Some(batch) if tokens + lengths[place] <= budget => batch.push(place),
            _ => {
                batches.push(vec![place]);
                tokens = 0;
            }
        }
        tokens += lengths[place];
    }
    batches
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn batches_hold_every_sequence_once_within_the_budget() {
        let lengths = [5, 9, 1, 4, 12, 3, 3];
        let batches = batches(&lengths, 10);
        assert_eq!(batches, [vec![4], vec![1], vec![0, 3], vec![5, 6, 2]]);
        let mut all: Vec<usize> = batches.concat();
        all.sort_unstable();
        assert_eq!(all, (0..7).collect::<Vec<_>>());
    }

    #[test]
    fn nothing_makes_no_batch() {
        assert!(batches(&[], 10).is_empty());
    }
}
