//! The forward pass as pure functions over parameter slices.

use plumb_torch::VarlenAttention;
use tch::{Kind, Tensor};

use crate::attention::{self, TreeMasks};
use crate::block::{self, BlockSpec};
use crate::config::ModelConfig;
use crate::error::{ModelError, Result};
use crate::layer::{LayerParams, rms_norm};
use crate::lora::LayerAdapter;
use crate::packed::{Layout, Packed};
use crate::rope;
use crate::score_head::{HeadSpec, ScoreHead};

/// A decoder without weights: the architecture, applied to parameters passed in.
///
/// All functions are differentiable in parameters and hidden states (grad mode permitting) and
/// keep no state. Parameters must have the compute dtype (f32 or bf16) of the hidden states.
#[derive(Debug, Clone)]
pub struct Decoder {
    config: ModelConfig,
    inv_freq: Vec<f32>,
}

impl Decoder {
    /// Prepares a decoder of this shape.
    ///
    /// # Errors
    /// If libtorch fails.
    pub fn new(config: ModelConfig) -> Result<Self> {
        let inv_freq = Vec::<f32>::try_from(config.rope.inverse_frequencies(config.head_dim)?)?;
        Ok(Self { config, inv_freq })
    }

    /// The configuration.
    pub fn config(&self) -> &ModelConfig {
        &self.config
    }

    /// Blocks of this model with `head`, in forward order: embedding, layers, head.
    pub fn blocks(&self, head: &HeadSpec) -> Vec<BlockSpec> {
        block::blocks(&self.config, head)
    }

    /// Computes what all layers share for one batch, in compute dtype `kind`, on the batch's
    /// device.
    ///
    /// # Errors
    /// If a token id is not in the vocabulary, a sequence is longer than the context, or `kind`
    /// is neither f32 nor bf16.
    pub fn layout(&self, packed: &Packed, kind: Kind) -> Result<Layout> {
        check_compute_kind(kind)?;
        self.check_id(packed.max_id())?;
        let lengths = packed.lengths();
        let plain = lengths.iter().zip(&packed.shapes).filter(|(_, tree)| tree.is_none());
        let plain: Vec<i64> = plain.map(|(&length, _)| length).collect();
        let longest = plain.iter().copied().max().unwrap_or(0);
        self.check_position(packed.max_position())?;
        let (cos_n1d, sin_n1d) = self.rope_tables(&packed.position_ids, kind)?;
        let window = self.config.windows.iter().flatten().next().copied();
        let device = packed.input_ids.device();
        let flash =
            !packed.has_branches() && VarlenAttention::takes(device, kind, self.config.head_dim);
        let trees = packed.shapes.iter().map(|shape| {
            let masks = |shape| TreeMasks::new(shape, window, kind, device);
            shape.as_ref().map(masks).transpose()
        });
        Ok(Layout {
            trees: trees.collect::<Result<_>>()?,
            causal_ll: attention::causal_mask(&plain, kind, device)?,
            window_ll: attention::window_mask(longest, window, kind, device)?,
            flash: flash.then(|| VarlenAttention::new(&lengths, device)),
            lengths,
            cos_n1d,
            sin_n1d,
            kind,
        })
    }

    /// Embeds `[N]` i64 token ids to `[N, H]`. `params`: those of the embedding block.
    ///
    /// # Errors
    /// If the parameter list does not fit, or libtorch fails.
    pub fn embed(&self, params: &[Tensor], input_ids: &Tensor) -> Result<Tensor> {
        let weight = params.first().ok_or_else(|| {
            ModelError::input("the embedding block takes 1 parameter, got none".to_owned())
        })?;
        Ok(Tensor::f_embedding(weight, input_ids, -1, false, false)?)
    }

    /// Decoder layer `index` on `[N, H]` hidden states. `params`: those of that layer's block.
    ///
    /// # Errors
    /// If the parameter list does not fit the layer, or libtorch fails.
    pub fn layer(
        &self,
        index: usize,
        params: &[Tensor],
        hidden_nh: &Tensor,
        layout: &Layout,
    ) -> Result<Tensor> {
        self.adapted_layer(index, params, None, hidden_nh, layout)
    }

    /// [`Decoder::layer`] with a low-rank adapter beside its matrices.
    ///
    /// # Errors
    /// As [`Decoder::layer`], or an adapter that does not fit the layer.
    pub fn adapted_layer(
        &self,
        index: usize,
        params: &[Tensor],
        adapter: Option<&LayerAdapter<'_>>,
        hidden_nh: &Tensor,
        layout: &Layout,
    ) -> Result<Tensor> {
        let layer = LayerParams::from_params(&self.config, params)?;
        self.packed_layer(index, &layer, adapter, hidden_nh, layout)
    }

    /// One layer over a packed batch.
    pub(crate) fn packed_layer(
        &self,
        index: usize,
        layer: &LayerParams,
        adapter: Option<&LayerAdapter<'_>>,
        hidden_nh: &Tensor,
        layout: &Layout,
    ) -> Result<Tensor> {
        let window = *self.config.windows.get(index).ok_or_else(|| {
            ModelError::input(format!(
                "layer {index} asked of a model with {} layers",
                self.config.num_hidden_layers
            ))
        })?;
        let (cos_n1d, sin_n1d) = (&layout.cos_n1d, &layout.sin_n1d);
        let (q, k, v) = layer.qkv(&self.config, hidden_nh, cos_n1d, sin_n1d, adapter)?;
        let attended = attention::packed(&q, &k, &v, layout, window)?;
        layer.finish(&self.config, hidden_nh, &attended, adapter)
    }

    /// The norm before the head. `head_params`: those of the head block.
    ///
    /// # Errors
    /// If the parameter list is empty, or libtorch fails.
    pub fn final_norm(&self, head_params: &[Tensor], hidden_nh: &Tensor) -> Result<Tensor> {
        let weight = head_params.first().ok_or_else(|| {
            ModelError::input("the head block takes at least the final norm, got no parameter")
        })?;
        rms_norm(hidden_nh, weight, self.config.rms_norm_eps)
    }

    /// Logits `[N, V]` in the compute dtype from normalised hidden states. `weight_vh` is the
    /// head block's second parameter, or the embedding weight where the block is `tied`.
    ///
    /// # Errors
    /// If shapes do not fit.
    pub fn logits(&self, weight_vh: &Tensor, hidden_nh: &Tensor) -> Result<Tensor> {
        Ok(hidden_nh.f_linear(weight_vh, None::<&Tensor>)?)
    }

    /// Scores `[B]` f32 from the normalised hidden state of each sequence's last token
    /// (`hidden.index_select(0, &packed.last_indices())`). `head_params`: those of the head block.
    ///
    /// # Errors
    /// If the parameter list does not fit the head.
    pub fn score(
        &self,
        head: &ScoreHead,
        head_params: &[Tensor],
        hidden_bh: &Tensor,
    ) -> Result<Tensor> {
        head.score(head_params.get(1..).unwrap_or_default(), hidden_bh)
    }

    pub(crate) fn rope_tables(
        &self,
        position_ids: &Tensor,
        kind: Kind,
    ) -> Result<(Tensor, Tensor)> {
        rope::tables(&Tensor::f_from_slice(&self.inv_freq)?, position_ids, kind)
    }

    pub(crate) fn check_id(&self, id: u32) -> Result<()> {
        if i64::from(id) < self.config.vocab_size {
            return Ok(());
        }
        Err(ModelError::input(format!(
            "token id {id} is not in the vocabulary of {} ids",
            self.config.vocab_size
        )))
    }

    pub(crate) fn check_position(&self, position: i64) -> Result<()> {
        if position < self.config.max_positions {
            return Ok(());
        }
        Err(ModelError::input(format!(
            "position {position} is beyond the model's context of {} tokens",
            self.config.max_positions
        )))
    }
}

/// Refuses compute dtypes other than f32 and bf16.
pub(crate) fn check_compute_kind(kind: Kind) -> Result<()> {
    match kind {
        Kind::Float | Kind::BFloat16 => Ok(()),
        other => Err(ModelError::input(format!("compute dtype {other:?}; expected f32 or bf16"))),
    }
}
