//! Which samples of which data sets a run is trained on.

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use crate::{MixtureError, Proportion};

/// A data set that a mixture takes samples from.
#[derive(Debug, Clone, PartialEq)]
pub struct Part {
    /// Its name.
    pub name: String,
    /// How many samples it has.
    pub size: usize,
    /// How much of it is taken.
    pub proportion: Proportion,
}

/// The samples of a mixture: for each part, in order, the indices of its samples.
///
/// Source: safe-rlhf `TokenizedDataset._merge_raw_datasets`, with another random generator: part
/// `i` draws from ChaCha8 seeded with `seed`, stream `i`. The same parts and seed give the same
/// samples on every machine, and parts after `i` do not change what `i` gives.
///
/// # Errors
/// [`MixtureError::SameName`]; else as [`select`].
pub fn merge(parts: &[Part], seed: u64) -> Result<Vec<Vec<usize>>, MixtureError> {
    if let Some((index, _)) =
        parts.iter().enumerate().find(|(i, part)| parts[..*i].iter().any(|p| p.name == part.name))
    {
        return Err(MixtureError::SameName { name: parts[index].name.clone() });
    }
    (0u64..).zip(parts).map(|(stream, part)| select(part, seed, stream)).collect()
}

/// The indices of one part: as many whole copies in order as fit, then a random choice without
/// repetition, from ChaCha8 with this seed and stream.
///
/// # Errors
/// [`MixtureError::OutOfRange`] for a negative or non-finite proportion;
/// [`MixtureError::NoSamples`] for a count of an empty data set.
pub fn select(part: &Part, seed: u64, stream: u64) -> Result<Vec<usize>, MixtureError> {
    let out_of_range =
        |proportion| MixtureError::OutOfRange { name: part.name.clone(), proportion };
    let count = match part.proportion {
        Proportion::Ratio(ratio) if !ratio.is_finite() || ratio < 0.0 => {
            return Err(out_of_range(ratio));
        }
        Proportion::Ratio(ratio) => (part.size as f64 * ratio).round_ties_even() as usize,
        Proportion::Count(count) => {
            usize::try_from(count).map_err(|_| out_of_range(count as f64))?
        }
    };
    if count == 0 {
        return Ok(Vec::new());
    }
    if part.size == 0 {
        return Err(MixtureError::NoSamples { name: part.name.clone(), asked: count });
    }
    let (copies, rest) = (count / part.size, count % part.size);
    let mut indices: Vec<usize> = (0..copies).flat_map(|_| 0..part.size).collect();
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    random.set_stream(stream);
    indices.extend(choice(part.size, rest, &mut random));
    Ok(indices)
}

/// `count` distinct indices below `size`, in random order: a Fisher-Yates shuffle, stopped early.
pub(crate) fn choice(size: usize, count: usize, random: &mut impl Rng) -> Vec<usize> {
    if count == 0 {
        return Vec::new();
    }
    let mut indices: Vec<usize> = (0..size).collect();
    for at in 0..count.min(size.saturating_sub(1)) {
        indices.swap(at, random.random_range(at as u64..size as u64) as usize);
    }
    indices.truncate(count);
    indices
}
