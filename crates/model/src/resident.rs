//! Weights kept in memory for generation and scoring.

use std::ops::Range;
use std::path::Path;

use tch::{Device, Kind, Tensor};

use crate::block::{BlockKind, BlockSpec};
use crate::config::ModelConfig;
use crate::decoder::{Decoder, check_compute_kind};
use crate::error::{ModelError, Result};
use crate::init;
use crate::layer::LayerParams;
use crate::score_head::{HeadSpec, ScoreHead};
use crate::tensor_source::TensorSource;

/// What to do about a score head that the folder does not have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MissingHead {
    /// An error that names the missing tensor.
    Refuse,
    /// Initialise it from this seed (see [`crate::new_score_head`]).
    Init {
        /// Seed of the initial values.
        seed: u64,
    },
}

/// All blocks of a model in compute dtype, without gradients.
///
/// Each block is one flat tensor, the concatenation of its parameters in block order;
/// parameters and the fused query-key-value projection are views of it. Replacing a block
/// swaps the flat tensor.
#[derive(Debug)]
pub struct Weights {
    specs: Vec<BlockSpec>,
    head: HeadSpec,
    flats: Vec<Tensor>,
    /// Parameters of each block, as views of its flat tensor.
    pub blocks: Vec<Vec<Tensor>>,
    layers: Vec<LayerParams>,
    config: ModelConfig,
}

impl Weights {
    /// Loads a folder, refusing a missing head.
    ///
    /// # Errors
    /// If a file or tensor is missing, truncated, unexpected or of the wrong shape (named in
    /// the message), or `kind` is neither f32 nor bf16.
    pub fn load(
        decoder: &Decoder,
        folder: &Path,
        head: &HeadSpec,
        kind: Kind,
        device: Device,
    ) -> Result<Self> {
        let source = TensorSource::open(folder)?;
        Self::load_from(decoder, &source, head, kind, device, MissingHead::Refuse)
    }

    /// Loads from an opened source; `missing_head` says what to do when the score head's
    /// tensors are not there.
    ///
    /// # Errors
    /// As [`Weights::load`].
    pub fn load_from(
        decoder: &Decoder,
        source: &TensorSource,
        head: &HeadSpec,
        kind: Kind,
        device: Device,
        missing_head: MissingHead,
    ) -> Result<Self> {
        check_compute_kind(kind)?;
        let specs = decoder.blocks(head);
        let init_seed = match (head, missing_head) {
            (HeadSpec::Score(score), MissingHead::Init { seed }) if !source.has_score_head() => {
                Some((score, seed))
            }
            _ => None,
        };
        source.check(&specs, init_seed.is_some())?;
        let flats = specs
            .iter()
            .map(|spec| {
                let params = match (spec.kind, init_seed) {
                    (BlockKind::Head, Some((score, seed))) => {
                        head_with_new_score(decoder, source, spec, score, seed)?
                    }
                    _ => read_params(source, spec)?,
                };
                flatten(&params, kind, device)
            })
            .collect::<Result<Vec<_>>>()?;
        Self::from_flats(decoder, head, flats)
    }

    /// Builds resident weights from one flat tensor per block, without copying.
    ///
    /// # Errors
    /// If the number or a length of the tensors does not fit the model.
    pub fn from_flats(decoder: &Decoder, head: &HeadSpec, flats: Vec<Tensor>) -> Result<Self> {
        let specs = decoder.blocks(head);
        if flats.len() != specs.len() {
            return Err(ModelError::input(format!(
                "a model of {} blocks from {} flat tensors",
                specs.len(),
                flats.len()
            )));
        }
        let config = decoder.config().clone();
        let mut weights = Self {
            blocks: Vec::with_capacity(specs.len()),
            layers: Vec::with_capacity(config.num_hidden_layers),
            head: head.clone(),
            flats,
            config,
            specs,
        };
        for (spec, flat) in weights.specs.iter().zip(&weights.flats) {
            let (params, layer) = views(&weights.config, spec, flat)?;
            weights.blocks.push(params);
            weights.layers.extend(layer);
        }
        Ok(weights)
    }

    /// Swaps block `index` for `flat`, the concatenation of its parameters in block order.
    /// A tensor of the same dtype and device is adopted without a copy.
    ///
    /// # Errors
    /// If the index or the length does not fit.
    pub fn replace_block(&mut self, index: usize, flat: Tensor) -> Result<()> {
        let spec = self.specs.get(index).ok_or_else(|| {
            ModelError::input(format!("block {index} of a model with {} blocks", self.specs.len()))
        })?;
        let _no_grad = tch::no_grad_guard();
        let flat =
            flat.f_detach()?.f_to_device(self.device())?.f_to_kind(self.kind())?.f_contiguous()?;
        let (params, layer) = views(&self.config, spec, &flat)?;
        if let (BlockKind::Layer(i), Some(layer)) = (spec.kind, layer) {
            self.layers[i] = layer;
        }
        self.blocks[index] = params;
        self.flats[index] = flat;
        Ok(())
    }

    /// Swaps block `index` for these parameters (in block order; they are copied).
    ///
    /// # Errors
    /// If their number or sizes do not fit.
    pub fn replace_block_params(&mut self, index: usize, params: &[Tensor]) -> Result<()> {
        let flat = flatten(params, self.kind(), self.device())?;
        self.replace_block(index, flat)
    }

    /// The flat tensor of block `index`.
    pub fn flat(&self, index: usize) -> Option<&Tensor> {
        self.flats.get(index)
    }

    /// The blocks' names and shapes.
    pub fn specs(&self) -> &[BlockSpec] {
        &self.specs
    }

    /// The head these weights were built for.
    pub fn head(&self) -> &HeadSpec {
        &self.head
    }

    /// Compute dtype.
    pub fn kind(&self) -> Kind {
        self.flats.first().map_or(Kind::Float, Tensor::kind)
    }

    /// Device the weights are on.
    pub fn device(&self) -> Device {
        self.flats.first().map_or(Device::Cpu, Tensor::device)
    }

    /// Memory held, in bytes.
    pub fn bytes(&self) -> usize {
        self.flats.iter().map(|t| t.numel() * t.kind().elt_size_in_bytes()).sum()
    }

    /// Parameters of the head block: final norm first.
    pub fn head_params(&self) -> &[Tensor] {
        self.blocks.last().map_or(&[], Vec::as_slice)
    }

    /// The output weight `[V, H]` of a language model, tied or not.
    ///
    /// # Errors
    /// If these weights have a score head.
    pub fn output_weight(&self) -> Result<&Tensor> {
        if self.head != HeadSpec::CausalLm {
            return Err(ModelError::input("weights with a score head have no output weight"));
        }
        let tied = self.config.tie_word_embeddings;
        let weight = if tied { self.blocks.first() } else { self.blocks.last() };
        weight
            .and_then(|params| params.get(usize::from(!tied)))
            .ok_or_else(|| ModelError::input("weights without an output weight"))
    }

    /// The score head, or an error for a language model.
    pub(crate) fn score_head(&self) -> Result<&ScoreHead> {
        match &self.head {
            HeadSpec::Score(head) => Ok(head),
            HeadSpec::CausalLm => Err(ModelError::input("a language model has no score head")),
        }
    }

    pub(crate) fn layers(&self) -> &[LayerParams] {
        &self.layers
    }
}

fn read_params(source: &TensorSource, spec: &BlockSpec) -> Result<Vec<Tensor>> {
    spec.params.iter().map(|param| source.tensor(&param.name)).collect()
}

/// The head block of a folder without a score head: its final norm, and a new head.
fn head_with_new_score(
    decoder: &Decoder,
    source: &TensorSource,
    spec: &BlockSpec,
    score: &ScoreHead,
    seed: u64,
) -> Result<Vec<Tensor>> {
    let norm = spec.params.first().map(|param| source.tensor(&param.name)).transpose()?;
    let new = init::score_head(score, decoder.config().hidden_size, seed)?;
    Ok(norm.into_iter().chain(new).collect())
}

fn flatten(params: &[Tensor], kind: Kind, device: Device) -> Result<Tensor> {
    let _no_grad = tch::no_grad_guard();
    let flat = params
        .iter()
        .map(|p| Ok(p.f_to_device(device)?.f_to_kind(kind)?.f_reshape([-1])?))
        .collect::<Result<Vec<_>>>()?;
    Ok(Tensor::f_cat(&flat, 0)?)
}

/// Views of a flat block: its parameters, and for a layer the fused projection.
fn views(
    config: &ModelConfig,
    spec: &BlockSpec,
    flat: &Tensor,
) -> Result<(Vec<Tensor>, Option<LayerParams>)> {
    if flat.size() != [spec.numel()] {
        return Err(ModelError::input(format!(
            "block {:?} takes a flat tensor of {} elements, got shape {:?}",
            spec.kind,
            spec.numel(),
            flat.size()
        )));
    }
    let mut starts = Vec::with_capacity(spec.params.len() + 1);
    let mut params = Vec::with_capacity(spec.params.len());
    let mut start = 0;
    for param in &spec.params {
        starts.push(start);
        params.push(flat.f_narrow(0, start, param.numel())?.f_view(param.shape.as_slice())?);
        start += param.numel();
    }
    starts.push(start);
    let BlockKind::Layer(_) = spec.kind else { return Ok((params, None)) };
    // Neighbours along the first dimension are one view of the flat tensor.
    let fuse = |range: Range<usize>| {
        let members = &spec.params[range.clone()];
        let mut shape = members[0].shape.clone();
        shape[0] = members.iter().map(|p| p.shape[0]).sum();
        let length = starts[range.end] - starts[range.start];
        Ok(flat.f_narrow(0, starts[range.start], length)?.f_view(shape.as_slice())?)
    };
    let layer = LayerParams::new(config, &params, fuse)?;
    Ok((params, Some(layer)))
}
