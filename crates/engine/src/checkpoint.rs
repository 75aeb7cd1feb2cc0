//! Checkpoints: one shard file per rank and a manifest, in one folder.
//!
//! CKPT-1: a folder under its final name is whole. Ranks write into `<folder>.partial`; the
//! manifest comes last, then the folder gets its name.
//! CKPT-2: nothing is changed in the model before every file has been verified.
//! CKPT-3: a checkpoint resumes at any world size.
//! CKPT-4: a checkpoint holds the state at the moment it was begun, whatever the model does while
//! it is written.
//!
//! What is in it: parameters, moments, moving average, the number of optimiser steps and how many
//! were skipped since the last. What
//! need not be in it, because it is a function of that number: the learning rate (the caller's
//! schedule), the rows of a step (the caller's order), and the masks of dropout, which are drawn
//! from seed, step, pass and rank. With dropout a run is therefore repeated bit for bit at the
//! same world size only.
//!
//! All ranks must see the same file system.

mod manifest;
mod open;
mod write;

use std::path::{Path, PathBuf};

use tch::Tensor;

use crate::flat::FlatBlock;
use crate::shard_file::ShardFile;
use crate::sharded_model::ShardedModel;
use crate::stored_moments::{Stored, StoredMoments};
use crate::{EngineError, Result};

pub use manifest::{AdapterEntry, BlockEntry, HeadEntry, MANIFEST, Manifest, read_manifest};
pub(crate) use write::PendingCheckpoint;

use manifest::entry;

/// How much of a checkpoint is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Scope {
    /// All that training needs.
    Everything,
    /// The parameters alone.
    Parameters,
    /// The moving average in place of the parameters.
    Average,
}

/// What a model was restored from.
#[derive(Debug, Clone, PartialEq)]
pub struct Restored {
    /// The checkpoint.
    pub folder: PathBuf,
    /// What it holds.
    pub manifest: Manifest,
    /// Those that were asked for before it, and why each was refused.
    pub refused: Vec<Refused>,
}

/// A checkpoint that was not used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refused {
    /// Its folder.
    pub folder: PathBuf,
    /// Which file is wrong and how; empty where only other ranks have found it.
    pub problem: String,
}

impl ShardedModel {
    /// The blocks that a checkpoint holds: all, or with adapters what is trained, since the rest
    /// is as in the model's folder.
    fn stored_blocks(&self) -> Vec<usize> {
        let all = 0..self.blocks.len();
        match self.lora() {
            None => all.collect(),
            Some(_) => all.filter(|&index| self.is_stored_with_adapters(index)).collect(),
        }
    }

    fn is_stored_with_adapters(&self, index: usize) -> bool {
        index >= self.specs.len() || self.blocks[index].trainable
    }

    /// This rank's vectors, named by block, and whether training changes them.
    pub(crate) fn state(&self) -> Vec<(String, &Tensor, bool)> {
        let mut tensors = Vec::new();
        for (entry, index) in self.stored_blocks().into_iter().enumerate() {
            let block = &self.blocks[index];
            tensors.push((vector_name(entry, "master"), block.master(), block.trainable));
            if let Some(moments) = self.optimizer.as_ref().and_then(|adamw| adamw.moments(index)) {
                for (what, vector) in moments.vectors() {
                    tensors.push((vector_name(entry, what), vector, true));
                }
            }
            if let Some(ema_s) = self.ema.as_ref().and_then(|ema| ema.shard(index)) {
                tensors.push((vector_name(entry, "ema"), ema_s, true));
            }
        }
        tensors
    }

    /// Restores parameters, moments and step count. Every rank calls this with the same folder;
    /// the checkpoint may come from another number of ranks. A checkpoint that was begun and not
    /// finished is given up.
    ///
    /// # Errors
    /// A file that is missing, truncated or altered, or a checkpoint of another model; the model
    /// is then as before on every rank.
    pub fn load_checkpoint(&mut self, folder: &Path) -> Result<Manifest> {
        self.load_scope(folder, Scope::Everything)
    }

    fn load_scope(&mut self, folder: &Path, scope: Scope) -> Result<Manifest> {
        let _guard = tch::no_grad_guard();
        // Its writer shares the frozen blocks with the model.
        self.pending_checkpoint = None;
        let read = self.read_state(folder, scope);
        let (manifest, vectors) = self.agree("loading a checkpoint", read)?;
        for (index, vectors) in self.stored_blocks().into_iter().zip(vectors) {
            self.blocks[index].master_mut().copy_(&vectors.master_s);
            let moments = self.optimizer.as_mut().and_then(|adamw| adamw.moments_mut(index));
            if let (Some(moments), Some(stored)) = (moments, vectors.moments) {
                stored.restore(moments);
            }
            let ema = self.ema.as_ref().and_then(|ema| ema.shard(index));
            if let (Some(ema_s), Some(stored_s)) = (ema, vectors.ema_s) {
                ema_s.shallow_clone().copy_(&stored_s);
            }
        }
        if let Some(optimizer) = &mut self.optimizer {
            optimizer.set_counts(manifest.optimizer_step, manifest.skipped_in_a_row);
        }
        Ok(manifest)
    }

    /// Restores from the first of some checkpoints, newest first, that every rank finds sound.
    /// Every rank calls this with the same folders, and all use the same one.
    ///
    /// # Errors
    /// [`EngineError::NoCheckpoint`] when none is sound, with what is wrong with each; a failed
    /// collective. The model is then as before.
    pub fn load_newest_checkpoint(&mut self, folders: &[PathBuf]) -> Result<Restored> {
        let mut refused = Vec::new();
        for folder in folders {
            match self.load_checkpoint(folder) {
                Ok(manifest) => return Ok(Restored { folder: folder.clone(), manifest, refused }),
                Err(EngineError::OtherRank { .. }) => {
                    refused.push(Refused { folder: folder.clone(), problem: String::new() });
                }
                Err(error @ (EngineError::Checkpoint { .. } | EngineError::File { .. })) => {
                    let problem = error.to_string();
                    tracing::warn!(folder = %folder.display(), problem, "checkpoint refused");
                    refused.push(Refused { folder: folder.clone(), problem });
                }
                Err(other) => return Err(other),
            }
        }
        Err(EngineError::NoCheckpoint { refused })
    }

    fn read_state(&self, folder: &Path, scope: Scope) -> Result<(Manifest, Vec<BlockVectors>)> {
        let manifest = read_manifest(folder)?;
        self.check_fits(folder, &manifest, scope)?;
        let mut files = OpenFiles::new(folder, &manifest);
        let rank = self.rank() as i64;
        let read = |(at, index): (usize, usize)| {
            let (block, stored) = (&self.blocks[index], &manifest.blocks[at]);
            let mut part = |what| files.part(at, what, stored.shard, block, rank);
            let average = scope == Scope::Average && stored.trainable;
            let master_s = part(if average { "ema" } else { "master" })?;
            let resumed = block.trainable && scope == Scope::Everything;
            let averaged = resumed && self.has_average();
            let ema_s = if averaged { Some(part("ema")?) } else { None };
            let optimizer = self.optimizer.as_ref().filter(|_| resumed);
            let moments = optimizer.and_then(|adamw| adamw.moments(index));
            let cut = Stored {
                state: manifest.moments,
                shard: stored.shard,
                ranks: manifest.ranks as i64,
            };
            let read = |moments| {
                let slice =
                    |file, what: &str, first, count| files.slice(at, file, what, first, count);
                StoredMoments::read(cut, (moments, &block.layout, rank), slice)
            };
            let moments = moments.map(read).transpose()?;
            Ok(BlockVectors { master_s, moments, ema_s })
        };
        let stored = self.stored_blocks().into_iter().enumerate();
        let vectors = stored.map(read).collect::<Result<_>>()?;
        Ok((manifest, vectors))
    }

    fn check_fits(&self, folder: &Path, manifest: &Manifest, scope: Scope) -> Result<()> {
        let refuse =
            |problem: String| Err(EngineError::Checkpoint { path: folder.join(MANIFEST), problem });
        match (&manifest.adapter, self.lora().map(plumb_model::LoraConfig::scale)) {
            (None, None) => {}
            (Some(stored), Some(scale)) if stored.scale().to_bits() == scale.to_bits() => {}
            (Some(stored), Some(scale)) => {
                let stored = stored.scale();
                return refuse(format!(
                    "holds adapters of scale alpha / rank = {stored}, the model's have {scale}"
                ));
            }
            (Some(_), None) => {
                return refuse("holds adapters alone, the model has none".to_owned());
            }
            (None, Some(_)) => return refuse("holds no adapters, the model has some".to_owned()),
        }
        let averages = self.has_average() || scope == Scope::Average;
        if averages && !manifest.ema {
            return refuse("holds no moving average, and one is asked for".to_owned());
        }
        let stored_blocks = self.stored_blocks();
        let (stored, own) = (manifest.blocks.len(), stored_blocks.len());
        if stored != own {
            return refuse(format!("holds {stored} blocks, the model has {own}"));
        }
        for (stored, index) in manifest.blocks.iter().zip(stored_blocks) {
            let block = &self.blocks[index];
            let own = entry(block);
            for (theirs, ours) in stored.parameters.iter().zip(&own.parameters) {
                if theirs != ours {
                    return refuse(format!("holds {theirs:?} where the model has {ours:?}"));
                }
            }
            if stored.parameters.len() != own.parameters.len() {
                return refuse("holds other parameters than the model".to_owned());
            }
            if block.trainable && !stored.trainable && scope == Scope::Everything {
                let name = &own.parameters[0].0;
                return refuse(format!("has no optimiser state for the block of {name}"));
            }
        }
        Ok(())
    }
}

struct BlockVectors {
    master_s: Tensor,
    moments: Option<StoredMoments>,
    ema_s: Option<Tensor>,
}

/// Shard files, verified when first needed.
struct OpenFiles<'a> {
    folder: &'a Path,
    manifest: &'a Manifest,
    files: Vec<Option<ShardFile>>,
}

impl<'a> OpenFiles<'a> {
    fn new(folder: &'a Path, manifest: &'a Manifest) -> Self {
        Self { folder, manifest, files: manifest.files.iter().map(|_| None).collect() }
    }

    /// This rank's shard of a vector that was cut into shards of `stored` elements, `[S]`.
    fn part(
        &mut self,
        index: usize,
        what: &str,
        stored: i64,
        block: &FlatBlock,
        rank: i64,
    ) -> Result<Tensor> {
        let layout = &block.layout;
        let (begin, end) = (rank * layout.shard, ((rank + 1) * layout.shard).min(layout.elements));
        let name = vector_name(index, what);
        let mut parts = Vec::new();
        let mut at = begin;
        while at < end {
            let file = at / stored;
            let count = end.min((file + 1) * stored) - at;
            parts.push(self.file(file as usize)?.slice(&name, at - file * stored, count)?);
            at += count;
        }
        let padding = layout.shard - (at - begin).max(0);
        let kind = parts.first().map_or(block.master().kind(), Tensor::kind);
        parts.push(Tensor::zeros([padding], (kind, tch::Device::Cpu)));
        Ok(Tensor::cat(&parts, 0))
    }

    /// Elements of one file's vector.
    fn slice(
        &mut self,
        index: usize,
        file: i64,
        what: &str,
        first: i64,
        count: i64,
    ) -> Result<Tensor> {
        self.file(file as usize)?.slice(&vector_name(index, what), first, count)
    }

    fn file(&mut self, index: usize) -> Result<&ShardFile> {
        let Some((slot, expected)) = self.files.get_mut(index).zip(self.manifest.files.get(index))
        else {
            let problem =
                format!("names {} files, shard {index} is needed", self.manifest.files.len());
            return Err(EngineError::Checkpoint { path: self.folder.join(MANIFEST), problem });
        };
        match slot {
            Some(file) => Ok(file),
            None => Ok(slot.insert(ShardFile::open(self.folder, expected)?)),
        }
    }
}

fn vector_name(block: usize, what: &str) -> String {
    format!("block-{block:04}.{what}")
}
