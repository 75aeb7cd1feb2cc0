//! Fills shards from a Hugging Face folder, slice by slice.

use std::path::Path;

use plumb_model::peft::{AdapterSource, whole_name};
use plumb_model::{HeadSpec, LoraConfig, TensorSource, new_score_head};
use tch::Tensor;

use crate::adapters::{LoraPlan, trained_whole};
use crate::flat::{FlatBlock, Slot};
use crate::sharded_model::ShardedModel;
use crate::{EngineError, Result};

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
    let own_blocks = model.blocks.iter_mut().take(model.specs.len());
    for (index, block) in own_blocks.enumerate() {
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
    fill_adapters(model, rank)
}

/// Fresh adapters, the same on every rank and at every world size, or those of a PEFT folder.
fn fill_adapters(model: &mut ShardedModel, rank: i64) -> Result<()> {
    let Some(adapters) = &model.adapters else { return Ok(()) };
    let LoraPlan { config, seed, folder } = &adapters.plan;
    let (own, head) = (model.specs.len(), model.head_index());
    let Some(folder) = folder else {
        for (block, spec) in model.blocks[own..].iter_mut().zip(&adapters.specs) {
            let initial = LoraConfig::initial(spec, *seed)?;
            for (slot, values) in block.layout.slots.clone().iter().zip(initial) {
                write(block, slot, rank, |first, count| {
                    Ok(values.view([-1]).narrow(0, first, count))
                })?;
            }
        }
        return Ok(());
    };
    let source = AdapterSource::open(folder)?;
    check_same(folder, source.config(), config)?;
    let head_spec = &model.specs[head];
    let whole = head_spec.params.iter().filter(|param| trained_whole(head_spec, param));
    let whole: Vec<_> = whole.cloned().collect();
    source.check(&adapters.specs, &whole)?;
    for block in &mut model.blocks[own..] {
        for slot in &block.layout.slots.clone() {
            write(block, slot, rank, |first, count| Ok(source.slice(&slot.name, first, count)?))?;
        }
    }
    for slot in model.blocks[head].layout.slots.clone() {
        if whole.iter().any(|param| param.name == slot.name) {
            let name = whole_name(&slot.name);
            let read = |first, count| Ok(source.slice(&name, first, count)?);
            write(&mut model.blocks[head], &slot, rank, read)?;
        }
    }
    Ok(())
}

/// A folder's adapter must be the one that was asked for; its dropout is only a training setting.
fn check_same(folder: &Path, found: &LoraConfig, asked: &LoraConfig) -> Result<()> {
    let same = found.rank == asked.rank
        && found.alpha.to_bits() == asked.alpha.to_bits()
        && found.targets == asked.targets;
    if same {
        return Ok(());
    }
    let describe = |config: &LoraConfig| {
        let targets: Vec<_> = config.targets.iter().map(|target| target.as_str()).collect();
        format!("rank {}, alpha {}, targets {}", config.rank, config.alpha, targets.join(", "))
    };
    Err(EngineError::Unsuited(format!(
        "adapter folder {} has {}; asked for were {}",
        folder.display(),
        describe(found),
        describe(asked)
    )))
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
