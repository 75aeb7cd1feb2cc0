//! Checkpoints: one shard file per rank and a manifest, in one folder.
//!
//! CKPT-1: a folder under its final name is whole. Ranks write into `<folder>.partial`; the
//! manifest comes last, then the folder gets its name.
//! CKPT-2: nothing is changed in the model before every file has been verified.
//! CKPT-3: a checkpoint resumes at any world size.
//!
//! All ranks must see the same file system.

use std::fs;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use tch::Tensor;

use crate::flat::FlatBlock;
use crate::shard_file::{self, FileDigest, ShardFile};
use crate::sharded_model::ShardedModel;
use crate::stored_moments::{Stored, StoredMoments};
use crate::{AdamW, EngineError, MomentState, Result};

/// Name of the manifest within the folder.
pub const MANIFEST: &str = "manifest.json";
const FORMAT: &str = "plumbline-checkpoint-1";

/// Describes a checkpoint completely.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// Which layout this is.
    pub format: String,
    /// Number of shard files, in rank order in `files`.
    pub ranks: usize,
    /// Optimiser steps taken.
    pub optimizer_step: u64,
    /// What the stored adapters are; absent where the whole model is stored.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub adapter: Option<AdapterEntry>,
    /// Whether a moving average is stored beside the parameters.
    #[serde(default)]
    pub ema: bool,
    /// How the moments are stored.
    #[serde(default)]
    pub moments: MomentState,
    /// The stored blocks, embedding first; with adapters, only what is trained.
    pub blocks: Vec<BlockEntry>,
    /// The shard files.
    pub files: Vec<FileDigest>,
}

/// Adapters in a manifest; rank and targets follow from the shapes of their parameters.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AdapterEntry {
    /// Scale of the product of B and A, `alpha / rank`.
    pub scale: f64,
    /// The folder of the model that they belong to.
    pub base_model: String,
}

/// One block in a manifest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BlockEntry {
    /// Whether moments are stored beside the parameters.
    pub trainable: bool,
    /// Elements per shard.
    pub shard: i64,
    /// Names and shapes, end to end.
    pub parameters: Vec<(String, Vec<i64>)>,
}

impl ShardedModel {
    /// Writes a checkpoint. Every rank calls this with the same folder. Returns the files of
    /// this rank; on rank 0 the manifest too.
    ///
    /// # Errors
    /// A file that could not be written, for example for lack of space: every rank then returns
    /// an error and nothing is left behind.
    pub fn save_checkpoint(&self, folder: &Path) -> Result<Vec<FileDigest>> {
        let partial = with_suffix(folder, ".partial");
        let outcome = self.write_all(folder, &partial);
        if outcome.is_err() && self.rank() == 0 && partial.exists() {
            // The error that brought us here is the one to report.
            if let Err(error) = fs::remove_dir_all(&partial) {
                tracing::warn!(folder = %partial.display(), %error, "cannot remove a partial checkpoint");
            }
        }
        outcome
    }

    fn write_all(&self, folder: &Path, partial: &Path) -> Result<Vec<FileDigest>> {
        let prepared = if self.rank() == 0 { create_empty(partial) } else { Ok(()) };
        self.agree("checkpoint", prepared)?;
        let path = partial.join(shard_name(self.rank(), self.world_size()));
        let written = shard_file::write(&path, &self.state());
        let mine = self.agree("checkpoint", written)?;
        let files = self.gather_digests(&mine)?;
        let mut own = vec![mine];
        let finished = if self.rank() == 0 {
            finish(folder, partial, &self.manifest(files)).map(|manifest| own.push(manifest))
        } else {
            Ok(())
        };
        self.agree("checkpoint", finished)?;
        Ok(own)
    }

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

    /// This rank's vectors, named by block.
    fn state(&self) -> Vec<(String, &Tensor)> {
        let mut tensors = Vec::new();
        for (entry, index) in self.stored_blocks().into_iter().enumerate() {
            tensors.push((vector_name(entry, "master"), self.blocks[index].master()));
            if let Some(moments) = self.optimizer.as_ref().and_then(|adamw| adamw.moments(index)) {
                for (what, vector) in moments.vectors() {
                    tensors.push((vector_name(entry, what), vector));
                }
            }
            if let Some(ema_s) = self.ema.as_ref().and_then(|ema| ema.shard(index)) {
                tensors.push((vector_name(entry, "ema"), ema_s));
            }
        }
        tensors
    }

    fn manifest(&self, files: Vec<FileDigest>) -> Manifest {
        Manifest {
            format: FORMAT.to_owned(),
            ranks: self.world_size(),
            optimizer_step: self.optimizer_step(),
            adapter: self.lora().map(|config| AdapterEntry {
                scale: config.scale(),
                base_model: self.source_folder.display().to_string(),
            }),
            ema: self.has_average(),
            moments: self.optimizer.as_ref().map_or(MomentState::Fp32, AdamW::state),
            blocks: self.stored_blocks().iter().map(|&index| entry(&self.blocks[index])).collect(),
            files,
        }
    }

    /// Size and digest of every rank's file, as five int64 per rank.
    fn gather_digests(&self, mine: &FileDigest) -> Result<Vec<FileDigest>> {
        let digest = hex::decode(&mine.digest).unwrap_or_default();
        let mut words = vec![mine.bytes as i64];
        words.extend(
            digest.chunks_exact(8).map(|chunk| {
                chunk.iter().rev().fold(0, |word, &byte| (word << 8) | i64::from(byte))
            }),
        );
        let width = words.len() as i64;
        let ranks = self.world_size();
        let device = self.settings.device;
        let words = Tensor::from_slice(&words).to_device(device);
        let mut all = Tensor::zeros([width * ranks as i64], (tch::Kind::Int64, device));
        self.comm.all_gather(&mut all, &words)?.wait()?;
        let all: Vec<i64> = Vec::try_from(all.to_device(tch::Device::Cpu))?;
        let files = all.chunks_exact(width as usize).enumerate().map(|(rank, words)| {
            let bytes: Vec<u8> = words[1..].iter().flat_map(|word| word.to_le_bytes()).collect();
            FileDigest {
                name: shard_name(rank, ranks),
                bytes: words[0] as u64,
                digest: hex::encode(bytes),
            }
        });
        Ok(files.collect())
    }

    /// Restores parameters, moments and step count. Every rank calls this with the same folder;
    /// the checkpoint may come from another number of ranks.
    ///
    /// # Errors
    /// A file that is missing, truncated or altered, or a checkpoint of another model; the model
    /// is then as before on every rank.
    pub fn load_checkpoint(&mut self, folder: &Path) -> Result<Manifest> {
        let _guard = tch::no_grad_guard();
        let read = self.read_state(folder);
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
            optimizer.set_step_count(manifest.optimizer_step);
        }
        Ok(manifest)
    }

    fn read_state(&self, folder: &Path) -> Result<(Manifest, Vec<BlockVectors>)> {
        let manifest = read_manifest(folder)?;
        self.check_fits(folder, &manifest)?;
        let mut files = OpenFiles::new(folder, &manifest);
        let rank = self.rank() as i64;
        let read = |(at, index): (usize, usize)| {
            let (block, stored) = (&self.blocks[index], &manifest.blocks[at]);
            let mut part = |what| files.part(at, what, stored.shard, block, rank);
            let master_s = part("master")?;
            let averaged = block.trainable && self.has_average();
            let ema_s = if averaged { Some(part("ema")?) } else { None };
            let moments = self.optimizer.as_ref().and_then(|adamw| adamw.moments(index));
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

    fn check_fits(&self, folder: &Path, manifest: &Manifest) -> Result<()> {
        let refuse =
            |problem: String| Err(EngineError::Checkpoint { path: folder.join(MANIFEST), problem });
        match (&manifest.adapter, self.lora().map(plumb_model::LoraConfig::scale)) {
            (None, None) => {}
            (Some(stored), Some(scale)) if stored.scale.to_bits() == scale.to_bits() => {}
            (Some(stored), Some(scale)) => {
                let stored = stored.scale;
                return refuse(format!(
                    "holds adapters of scale alpha / rank = {stored}, the model's have {scale}"
                ));
            }
            (Some(_), None) => {
                return refuse("holds adapters alone, the model has none".to_owned());
            }
            (None, Some(_)) => return refuse("holds no adapters, the model has some".to_owned()),
        }
        if self.has_average() && !manifest.ema {
            return refuse("holds no moving average, the model keeps one".to_owned());
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
            if block.trainable && !stored.trainable {
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

/// Reads and checks a manifest.
///
/// # Errors
/// A folder that is not a whole checkpoint.
pub fn read_manifest(folder: &Path) -> Result<Manifest> {
    let path = folder.join(MANIFEST);
    let refuse = |problem: String| EngineError::Checkpoint { path: path.clone(), problem };
    let text = fs::read(&path).map_err(|error| refuse(format!("cannot be read: {error}")))?;
    let manifest: Manifest = serde_json::from_slice(&text)
        .map_err(|error| refuse(format!("is not a valid manifest: {error}")))?;
    if manifest.format != FORMAT {
        return Err(refuse(format!("has format {:?}, expected {FORMAT:?}", manifest.format)));
    }
    if manifest.files.len() != manifest.ranks || manifest.blocks.iter().any(|block| block.shard < 1)
    {
        return Err(refuse("contradicts itself".to_owned()));
    }
    Ok(manifest)
}

fn entry(block: &FlatBlock) -> BlockEntry {
    let slots = block.layout.slots.iter();
    BlockEntry {
        trainable: block.trainable,
        shard: block.layout.shard,
        parameters: slots.map(|slot| (slot.name.clone(), slot.shape.clone())).collect(),
    }
}

fn shard_name(rank: usize, ranks: usize) -> String {
    format!("shard-{rank:05}-of-{ranks:05}.safetensors")
}

fn vector_name(block: usize, what: &str) -> String {
    format!("block-{block:04}.{what}")
}

fn with_suffix(folder: &Path, suffix: &str) -> PathBuf {
    let mut name = folder.as_os_str().to_owned();
    name.push(suffix);
    PathBuf::from(name)
}

fn create_empty(folder: &Path) -> Result<()> {
    let fail = |source| EngineError::File { action: "create", path: folder.to_path_buf(), source };
    if folder.exists() {
        fs::remove_dir_all(folder).map_err(fail)?;
    }
    fs::create_dir_all(folder).map_err(fail)
}

/// Writes the manifest and gives the folder its name, replacing an older checkpoint there.
fn finish(folder: &Path, partial: &Path, manifest: &Manifest) -> Result<FileDigest> {
    let path = partial.join(MANIFEST);
    let fail = |action, path: &Path| {
        let path = path.to_path_buf();
        move |source| EngineError::File { action, path, source }
    };
    let text = serde_json::to_vec_pretty(manifest)
        .map_err(|error| fail("write", &path)(std::io::Error::other(error)))?;
    fs::write(&path, &text).map_err(fail("write", &path))?;
    for synced in [path.as_path(), partial] {
        let file = fs::File::open(synced).map_err(fail("open", synced))?;
        file.sync_all().map_err(fail("sync", synced))?;
    }
    let older = with_suffix(folder, ".older");
    if folder.exists() {
        fs::rename(folder, &older).map_err(fail("rename", folder))?;
    }
    fs::rename(partial, folder).map_err(fail("rename", partial))?;
    if older.exists() {
        fs::remove_dir_all(&older).map_err(fail("remove", &older))?;
    }
    let digest = blake3::hash(&text).to_hex().to_string();
    Ok(FileDigest { name: MANIFEST.to_owned(), bytes: text.len() as u64, digest })
}
