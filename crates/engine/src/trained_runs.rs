//! Which elements of a shard the optimiser steps on.

use crate::flat::FlatBlock;

/// Neighbouring elements of a shard that step alike.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Run {
    /// First element within the shard.
    pub(crate) first: i64,
    /// Number of elements.
    pub(crate) count: i64,
    /// The group of their parameters.
    pub(crate) group: Option<usize>,
}

impl Run {
    /// Its part among `count` elements from `start`, if there is one.
    pub(crate) fn within(&self, start: i64, count: i64) -> Option<Self> {
        let first = self.first.max(start);
        let end = (self.first + self.count).min(start + count);
        (first < end).then_some(Self { first, count: end - first, group: self.group })
    }
}

impl FlatBlock {
    /// Runs of trained elements of a rank's shard, without padding. `groups` has the group of
    /// every slot.
    pub(crate) fn trained_runs(&self, rank: usize, groups: &[Option<usize>]) -> Vec<Run> {
        let shard = self.layout.shard;
        let begin = rank as i64 * shard;
        let mut runs: Vec<Run> = Vec::new();
        let slots = self.layout.slots.iter().zip(&self.trained).zip(groups);
        for ((slot, _), &group) in slots.filter(|((_, trained), _)| **trained) {
            let first = slot.offset.max(begin) - begin;
            let end = (slot.offset + slot.elements).min(begin + shard) - begin;
            match runs.last_mut() {
                _ if first >= end => {}
                Some(run) if run.first + run.count == first && run.group == group => {
                    run.count += end - first;
                }
                _ => runs.push(Run { first, count: end - first, group }),
            }
        }
        runs
    }
}
