//! Which samples answer the same prompt.

use std::collections::BTreeMap;

use crate::AlgoError;

/// A partition of the samples `0..B` into groups. Groups keep the order in which they first
/// appear, and samples within a group theirs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Groups {
    members: Vec<Vec<usize>>,
    samples: usize,
}

impl Groups {
    /// Samples with equal keys form a group (verl: `index`, the prompt's uid).
    #[must_use]
    pub fn by_key<K: Ord>(keys: &[K]) -> Self {
        let mut at = BTreeMap::new();
        let mut members: Vec<Vec<usize>> = Vec::new();
        for (sample, key) in keys.iter().enumerate() {
            let group = *at.entry(key).or_insert(members.len());
            if group == members.len() {
                members.push(Vec::new());
            }
            members[group].push(sample);
        }
        Self { members, samples: keys.len() }
    }

    /// Each run of `group_size` adjacent samples is a group (LightRFT).
    ///
    /// # Errors
    /// [`AlgoError::Parameter`] for a group size of 0, [`AlgoError::Length`] when it does not
    /// divide the number of samples.
    pub fn adjacent(group_size: usize, samples: usize) -> Result<Self, AlgoError> {
        const F: &str = "Groups::adjacent";
        crate::error::parameter(F, "group_size", group_size as f64, group_size > 0, "at least 1")?;
        let whole = samples - samples % group_size;
        crate::error::same_length(F, "samples", whole, samples)?;
        let members =
            (0..samples / group_size).map(|g| (g * group_size..(g + 1) * group_size).collect());
        Ok(Self { members: members.collect(), samples })
    }

    /// Number of samples.
    #[must_use]
    pub fn samples(&self) -> usize {
        self.samples
    }

    /// The groups' members.
    pub fn iter(&self) -> impl Iterator<Item = &[usize]> {
        self.members.iter().map(Vec::as_slice)
    }
}
