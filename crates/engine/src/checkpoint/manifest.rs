//! What a checkpoint says of itself.

use std::fs;
use std::path::Path;

use plumb_model::{HeadSpec, LoraConfig, LoraTarget, ScoreHead};
use serde::{Deserialize, Serialize};

use crate::flat::FlatBlock;
use crate::shard_file::FileDigest;
use crate::sharded_model::ShardedModel;
use crate::{AdamW, EngineError, MomentState, Precision, Result};

/// Name of the manifest within the folder.
pub const MANIFEST: &str = "manifest.json";
const FORMAT: &str = "plumbline-checkpoint-2";
/// Stands where the manifest's own digest will, while that is computed.
const NO_DIGEST: &str = "0000000000000000000000000000000000000000000000000000000000000000";

/// Describes a checkpoint completely.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// Which layout this is.
    pub format: String,
    /// BLAKE3 of this file with zeros in this place, hex.
    pub digest: String,
    /// Number of shard files, in rank order in `files`.
    pub ranks: usize,
    /// Optimiser steps taken.
    pub optimizer_step: u64,
    /// Steps skipped since, because their gradient was not finite.
    pub skipped_in_a_row: u32,
    /// Folder of the model that was trained.
    pub model: String,
    /// What the model computes.
    pub head: HeadEntry,
    /// Type of the blocks that were not trained.
    pub compute: Precision,
    /// Layers, from the lowest, that were not trained.
    pub frozen_layers: usize,
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

/// The last block of a model in a manifest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum HeadEntry {
    /// Next-token logits.
    CausalLm,
    /// A linear score head.
    Linear,
    /// A score head of several layers, of these widths.
    Mlp(Vec<i64>),
}

impl From<&HeadSpec> for HeadEntry {
    fn from(head: &HeadSpec) -> Self {
        match head {
            HeadSpec::CausalLm => Self::CausalLm,
            HeadSpec::Score(ScoreHead::Linear) => Self::Linear,
            HeadSpec::Score(ScoreHead::Mlp { hidden_dims }) => Self::Mlp(hidden_dims.clone()),
        }
    }
}

impl From<&HeadEntry> for HeadSpec {
    fn from(head: &HeadEntry) -> Self {
        match head {
            HeadEntry::CausalLm => Self::CausalLm,
            HeadEntry::Linear => Self::Score(ScoreHead::Linear),
            HeadEntry::Mlp(dims) => Self::Score(ScoreHead::Mlp { hidden_dims: dims.clone() }),
        }
    }
}

/// Adapters in a manifest.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AdapterEntry {
    /// Rows of A and columns of B.
    pub rank: i64,
    /// The product of B and A is scaled by `alpha / rank`.
    pub alpha: f64,
    /// Names of the adapted matrices.
    pub targets: Vec<String>,
}

impl AdapterEntry {
    /// `alpha / rank`.
    #[must_use]
    pub fn scale(&self) -> f64 {
        self.alpha / self.rank as f64
    }

    /// The adapters without dropout, which only training needs.
    ///
    /// # Errors
    /// Values outside their domain.
    pub fn config(&self) -> Result<LoraConfig> {
        let targets = self.targets.iter().map(|target| target.parse());
        let targets: Vec<LoraTarget> = targets.collect::<std::result::Result<_, _>>()?;
        Ok(LoraConfig::new(self.rank, self.alpha, 0.0, &targets)?)
    }
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

impl Manifest {
    /// The text of the file, with its digest.
    pub(super) fn text(&self) -> serde_json::Result<String> {
        let blank = Self { digest: NO_DIGEST.to_owned(), ..self.clone() };
        let text = serde_json::to_string_pretty(&blank)?;
        let digest = blake3::hash(text.as_bytes()).to_hex();
        Ok(text.replacen(NO_DIGEST, &digest, 1))
    }
}

impl ShardedModel {
    /// The manifest of what the model holds now, without files.
    pub(super) fn manifest(&self) -> Manifest {
        Manifest {
            format: FORMAT.to_owned(),
            digest: NO_DIGEST.to_owned(),
            ranks: self.world_size(),
            optimizer_step: self.optimizer_step(),
            skipped_in_a_row: self.optimizer.as_ref().map_or(0, AdamW::skipped_in_a_row),
            model: self.source_folder.display().to_string(),
            head: HeadEntry::from(&self.head),
            compute: self.settings.compute,
            frozen_layers: self.settings.frozen_layers,
            adapter: self.lora().map(|config| AdapterEntry {
                rank: config.rank,
                alpha: config.alpha,
                targets: config.targets.iter().map(|t| t.as_str().to_owned()).collect(),
            }),
            ema: self.has_average(),
            moments: self.optimizer.as_ref().map_or(MomentState::Fp32, AdamW::state),
            blocks: self.stored_blocks().iter().map(|&index| entry(&self.blocks[index])).collect(),
            files: Vec::new(),
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
    let text =
        fs::read_to_string(&path).map_err(|error| refuse(format!("cannot be read: {error}")))?;
    let manifest: Manifest = serde_json::from_str(&text)
        .map_err(|error| refuse(format!("is not a valid manifest: {error}")))?;
    if manifest.format != FORMAT {
        return Err(refuse(format!("has format {:?}, expected {FORMAT:?}", manifest.format)));
    }
    let found = blake3::hash(text.replacen(&manifest.digest, NO_DIGEST, 1).as_bytes()).to_hex();
    if found.as_str() != manifest.digest {
        let said = &manifest.digest;
        return Err(refuse(format!("was altered: it has BLAKE3 {found} and says {said}")));
    }
    if manifest.files.len() != manifest.ranks || manifest.blocks.iter().any(|block| block.shard < 1)
    {
        return Err(refuse("contradicts itself".to_owned()));
    }
    Ok(manifest)
}

pub(super) fn entry(block: &FlatBlock) -> BlockEntry {
    let slots = block.layout.slots.iter();
    BlockEntry {
        trainable: block.trainable,
        shard: block.layout.shard,
        parameters: slots.map(|slot| (slot.name.clone(), slot.shape.clone())).collect(),
    }
}
