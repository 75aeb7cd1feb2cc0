//! Fills shards from a Hugging Face folder, slice by slice.

use std::path::Path;

use plumb_model::{HeadSpec, TensorSource, new_score_head};
use tch::Tensor;

use crate::Result;
use crate::flat::{FlatBlock, Slot};
use crate::sharded_model::ShardedModel;

/// Reads this rank's slice of every parameter. A score head that the folder does not hold is
/// drawn from `head_seed`, the same on every rank and at every world size.
pub(crate) fn fill(model: &mut ShardedModel, folder: &Path, head_seed: u64) -> Result<()> {
    let source = TensorSource::open(folder)?;
    let new_head = match &model.head {
        HeadSpec::Score(head) if !source.has_score_head() => {
            let hidden_size = model.decoder.config().hidden_size;
            Some(new_score_head(head, hidden_size, head_seed)?)
        }
        _ => None,
    };
    source.check(&model.specs, new_head.is_some())?;
    let (rank, head) = (model.comm.rank() as i64, model.head_index());
    for (index, block) in model.blocks.iter_mut().enumerate() {
        for (position, slot) in block.layout.slots.clone().iter().enumerate() {
            // The head block is the final norm, then the score head.
            let new = new_head.as_ref().filter(|_| index == head && position > 0);
            match new {
                Some(params) => write(block, slot, rank, |first, count| {
                    Ok(params[position - 1].view([-1]).narrow(0, first, count))
                })?,
                None => write(block, slot, rank, |first, count| {
                    Ok(source.slice(&slot.name, first, count)?)
                })?,
            }
        }
    }
    Ok(())
}

/// Copies the part of a parameter that lies in this rank's shard; `read` gets the first element
/// and the number of elements, counted within the parameter.
fn write(
    block: &mut FlatBlock,
    slot: &Slot,
    rank: i64,
    read: impl FnOnce(i64, i64) -> Result<Tensor>,
) -> Result<()> {
    let shard = block.layout.shard;
    let begin = slot.offset.max(rank * shard);
    let end = (slot.offset + slot.elements).min((rank + 1) * shard);
    if begin < end {
        let values = read(begin - slot.offset, end - begin)?;
        block.master_mut().narrow(0, begin - rank * shard, end - begin).copy_(&values);
    }
    Ok(())
}
