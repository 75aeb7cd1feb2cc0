//! Which elements of a shard the optimiser steps on.

use crate::flat::FlatBlock;

impl FlatBlock {
    /// Runs of trained elements of a rank's shard, (first, count), without padding.
    pub(crate) fn trained_runs(&self, rank: usize) -> Vec<(i64, i64)> {
        let shard = self.layout.shard;
        let begin = rank as i64 * shard;
        let mut runs: Vec<(i64, i64)> = Vec::new();
        let slots = self.layout.slots.iter().zip(&self.trained);
        for (slot, _) in slots.filter(|(_, trained)| **trained) {
            let first = slot.offset.max(begin) - begin;
            let end = (slot.offset + slot.elements).min(begin + shard) - begin;
            match runs.last_mut() {
                _ if first >= end => {}
                Some((start, count)) if *start + *count == first => *count += end - first,
                _ => runs.push((first, end - first)),
            }
        }
        runs
    }
}
