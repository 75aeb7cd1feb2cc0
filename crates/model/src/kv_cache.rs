//! Keys and values of generated sequences, in blocks.

use plumb_torch::paged::{self, BLOCK_TOKENS, PagedLayer, PagedRows};
use tch::{Device, Kind, Tensor};

use crate::attention;
use crate::config::ModelConfig;
use crate::decoder::check_compute_kind;
use crate::error::{ModelError, Result};

/// A cache of `blocks` blocks of [`BLOCK_TOKENS`] tokens; per layer the keys `[B, K, D, 16]` and
/// the values `[B, K, 16, D]`.
///
/// A sequence is a list of blocks that its owner keeps; who shares a block must not write it.
#[derive(Debug)]
pub struct KvCache {
    layers: Vec<(Tensor, Tensor)>,
    blocks: usize,
}

impl KvCache {
    /// Allocates a cache for a model of this shape.
    ///
    /// # Errors
    /// If there is to be no block, `kind` is neither f32 nor bf16, or memory is short.
    pub fn new(config: &ModelConfig, blocks: usize, kind: Kind, device: Device) -> Result<Self> {
        check_compute_kind(kind)?;
        if blocks == 0 || i32::try_from(blocks).is_err() {
            return Err(ModelError::input(format!("a KV cache of {blocks} blocks")));
        }
        let (heads, dim, tokens) =
            (config.num_key_value_heads, config.head_dim, BLOCK_TOKENS as i64);
        // Not zeroed: on the CPU the memory of a block is taken when the block is first written, and
        // nothing reads what was not written.
        let memory = |shape: [i64; 4]| Tensor::f_empty(shape, (kind, device));
        let count = blocks as i64;
        let layers = (0..config.num_hidden_layers)
            .map(|_| {
                Ok((memory([count, heads, dim, tokens])?, memory([count, heads, tokens, dim])?))
            })
            .collect::<Result<Vec<_>>>()?;
        Ok(Self { layers, blocks })
    }

    /// Number of blocks.
    pub fn blocks(&self) -> usize {
        self.blocks
    }

    /// Memory held, in bytes.
    pub fn bytes(&self) -> usize {
        let bytes = |t: &Tensor| t.numel() * t.kind().elt_size_in_bytes();
        self.layers.iter().map(|(k, v)| bytes(k) + bytes(v)).sum()
    }

    /// Copies whole blocks, `(from, to)`, in order.
    ///
    /// # Errors
    /// If a block is out of range.
    pub fn copy_blocks(&mut self, copies: &[(u32, u32)]) -> Result<()> {
        let _no_grad = tch::no_grad_guard();
        for block in copies.iter().flat_map(|(from, to)| [*from, *to]) {
            self.check_block(block)?;
        }
        for tensor in self.layers.iter().flat_map(|(k, v)| [k, v]) {
            for (from, to) in copies {
                let source = tensor.f_select(0, i64::from(*from))?;
                tensor.f_select(0, i64::from(*to))?.f_copy_(&source)?;
            }
        }
        Ok(())
    }

    pub(crate) fn check_block(&self, block: u32) -> Result<()> {
        if (block as usize) < self.blocks {
            return Ok(());
        }
        Err(ModelError::input(format!("block {block} of a KV cache of {} blocks", self.blocks)))
    }

    /// Stores keys and values `[N, K, D]` of layer `index` where the rows stand.
    pub(crate) fn write(
        &mut self,
        index: usize,
        rows: &PagedRows,
        k_nkd: &Tensor,
        v_nkd: &Tensor,
    ) -> Result<()> {
        let (keys, values) = self.layer(index)?;
        if keys.device() == Device::Cpu {
            return Ok(paged::write(PagedLayer { keys, values }, rows, k_nkd, v_nkd)?);
        }
        attention::write_blocks(keys, values, rows, k_nkd, v_nkd)
    }

    /// Attention of the rows' queries `[N, Q, D]` to layer `index` up to each row's position;
    /// `[N, Q * D]`.
    pub(crate) fn attend(
        &self,
        index: usize,
        rows: &PagedRows,
        q_nqd: &Tensor,
        window: Option<i64>,
    ) -> Result<Tensor> {
        let (keys, values) = self.layer(index)?;
        if keys.device() == Device::Cpu {
            let scale = (keys.size()[2] as f64).powf(-0.5);
            return Ok(paged::attend(PagedLayer { keys, values }, rows, q_nqd, window, scale)?);
        }
        attention::over_blocks(keys, values, rows, q_nqd, window)
    }

    /// Keys and values of layer `index`.
    pub(crate) fn layer(&self, index: usize) -> Result<(&Tensor, &Tensor)> {
        let (k, v) = self.layers.get(index).ok_or_else(|| {
            ModelError::input(format!(
                "layer {index} of a KV cache of {} layers",
                self.layers.len()
            ))
        })?;
        Ok((k, v))
    }

    /// Compute dtype and device.
    pub(crate) fn options(&self) -> (Kind, Device) {
        self.layers.first().map_or((Kind::Float, Device::Cpu), |(k, _)| (k.kind(), k.device()))
    }
}
