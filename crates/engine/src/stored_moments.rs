//! A rank's share of the moments that a checkpoint holds.
//!
//! 8-bit moments come back bit for bit where shards are cut as they were stored. At another world
//! size the edges of their blocks move: they are then read in fp32 and, where the model keeps
//! 8-bit moments, quantised anew, which moves an element by half a step of its map at most.

use tch::{Device, Kind, Tensor};

use crate::eight_bit::{BLOCK, DynamicMap, Quantized};
use crate::flat::Layout;
use crate::moments::{Maps, Moments};
use crate::{MomentState, Result};

/// How the moments of a block are stored.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Stored {
    /// fp32 or 8 bits.
    pub(crate) state: MomentState,
    /// Elements of a shard.
    pub(crate) shard: i64,
    /// Number of shards.
    pub(crate) ranks: i64,
}

/// Moments on their way into a model.
#[derive(Debug)]
pub(crate) enum StoredMoments {
    /// fp32, `[S]` each.
    Values([Tensor; 2]),
    /// Codes and scales of the first, then of the second moment.
    Codes([Tensor; 4]),
}

impl StoredMoments {
    /// Reads this rank's share. `slice` gives elements of a vector of a shard file: file, name,
    /// first element, number of elements.
    pub(crate) fn read(
        stored: Stored,
        own: (&Moments, &Layout, i64),
        mut slice: impl FnMut(i64, &str, i64, i64) -> Result<Tensor>,
    ) -> Result<Self> {
        let (moments, layout, rank) = own;
        let same_cut = stored.shard == layout.shard && stored.ranks == layout.ranks;
        let eight_bit = stored.state == MomentState::EightBit;
        if same_cut && eight_bit && matches!(moments, Moments::EightBit { .. }) {
            let blocks = (layout.shard + BLOCK - 1) / BLOCK;
            return Ok(Self::Codes([
                slice(rank, "first", 0, layout.shard)?,
                slice(rank, "first.scales", 0, blocks)?,
                slice(rank, "second", 0, layout.shard)?,
                slice(rank, "second.scales", 0, blocks)?,
            ]));
        }
        let maps = eight_bit.then(|| Maps::new(Device::Cpu));
        let mut values = |name: &str, map: Option<&DynamicMap>| {
            share(stored.shard, layout, rank, |file, first, count| match map {
                None => slice(file, name, first, count),
                Some(map) => dequantised(file, name, (first, count), map, &mut slice),
            })
        };
        let first_s = values("first", maps.as_ref().map(|maps| &maps.first))?;
        let second_s = values("second", maps.as_ref().map(|maps| &maps.second))?;
        Ok(Self::Values([first_s, second_s]))
    }

    /// Puts them into a model's moments.
    pub(crate) fn restore(self, moments: &mut Moments) {
        match (self, moments) {
            (Self::Values([first_s, second_s]), moments) => moments.set(&first_s, &second_s),
            (Self::Codes(vectors), Moments::EightBit { first, second }) => {
                let [first_codes, first_scales, second_codes, second_scales] = vectors;
                first.codes_s.copy_(&first_codes);
                first.scales_b.copy_(&first_scales);
                second.codes_s.copy_(&second_codes);
                second.scales_b.copy_(&second_scales);
            }
            (Self::Codes(_), Moments::Full { .. }) => {
                unreachable!("codes are read for 8-bit moments only")
            }
        }
    }
}

/// A rank's shard `[S]` of a vector that was cut into shards of `stored` elements, padded with
/// zeros. `part` reads elements of one file: file, first, count.
fn share(
    stored: i64,
    layout: &Layout,
    rank: i64,
    mut part: impl FnMut(i64, i64, i64) -> Result<Tensor>,
) -> Result<Tensor> {
    let (begin, end) = (rank * layout.shard, ((rank + 1) * layout.shard).min(layout.elements));
    let (mut parts, mut at) = (Vec::new(), begin);
    while at < end {
        let file = at / stored;
        let count = end.min((file + 1) * stored) - at;
        parts.push(part(file, at - file * stored, count)?);
        at += count;
    }
    let padding = layout.shard - (at - begin).max(0);
    parts.push(Tensor::zeros([padding], (Kind::Float, Device::Cpu)));
    Ok(Tensor::cat(&parts, 0))
}

/// Elements of a stored 8-bit vector in fp32.
fn dequantised(
    file: i64,
    name: &str,
    (first, count): (i64, i64),
    map: &DynamicMap,
    slice: &mut impl FnMut(i64, &str, i64, i64) -> Result<Tensor>,
) -> Result<Tensor> {
    let start = first / BLOCK * BLOCK;
    let read = first + count - start;
    let codes_s = slice(file, name, start, read)?;
    let blocks = (read + BLOCK - 1) / BLOCK;
    let scales_b = slice(file, &format!("{name}.scales"), start / BLOCK, blocks)?;
    let values_n = Quantized { codes_s, scales_b }.read(map, 0, read);
    Ok(values_n.narrow(0, first - start, count))
}
