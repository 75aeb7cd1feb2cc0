//! Keys and values of generated sequences.

use tch::{Device, Kind, Tensor};

use crate::config::ModelConfig;
use crate::decoder::check_compute_kind;
use crate::error::{ModelError, Result};

/// A cache of `slots` sequences of up to `capacity_tokens` each; per layer one key and one
/// value tensor `[slots, K, capacity, D]`.
///
/// A slot holds one sequence from position 0. Slots are independent; a slot is reused by
/// prefilling it again. [`crate::Decoder::decode`] is fastest when the slots it is given are
/// neighbours in ascending order (a view of the cache instead of a copy), so keep live
/// sequences in low slots, moving them with [`KvCache::copy_prefix`].
#[derive(Debug)]
pub struct KvCache {
    layers: Vec<(Tensor, Tensor)>,
    slots: usize,
    capacity_tokens: usize,
}

impl KvCache {
    /// Allocates a cache for a model of this shape.
    ///
    /// # Errors
    /// If a size is 0, `kind` is neither f32 nor bf16, or memory is short.
    pub fn new(
        config: &ModelConfig,
        slots: usize,
        capacity_tokens: usize,
        kind: Kind,
        device: Device,
    ) -> Result<Self> {
        check_compute_kind(kind)?;
        if slots == 0 || capacity_tokens == 0 {
            return Err(ModelError::input(format!(
                "a KV cache of {slots} slots of {capacity_tokens} tokens; both must be above 0"
            )));
        }
        let (kv_heads, dim) = (config.num_key_value_heads, config.head_dim);
        let shape = [slots as i64, kv_heads, capacity_tokens as i64, dim];
        let zeros = || Tensor::f_zeros(shape, (kind, device));
        let layers = (0..config.num_hidden_layers)
            .map(|_| Ok((zeros()?, zeros()?)))
            .collect::<Result<Vec<_>>>()?;
        Ok(Self { layers, slots, capacity_tokens })
    }

    /// Number of slots.
    pub fn slots(&self) -> usize {
        self.slots
    }

    /// Tokens that fit in a slot.
    pub fn capacity_tokens(&self) -> usize {
        self.capacity_tokens
    }

    /// Memory held, in bytes.
    pub fn bytes(&self) -> usize {
        let bytes = |t: &Tensor| t.numel() * t.kind().elt_size_in_bytes();
        self.layers.iter().map(|(k, v)| bytes(k) + bytes(v)).sum()
    }

    /// Copies the first `tokens` tokens of slot `from` to each slot in `to`: prefix sharing
    /// across the samples of a prompt, or moving a sequence.
    ///
    /// # Errors
    /// If a slot or the token count is out of range.
    pub fn copy_prefix(&mut self, from: usize, to: &[usize], tokens: usize) -> Result<()> {
        let _no_grad = tch::no_grad_guard();
        for &slot in to.iter().chain([&from]) {
            self.check_slot(slot)?;
        }
        if tokens > self.capacity_tokens {
            return Err(ModelError::input(format!(
                "prefix of {tokens} tokens in slots of {} tokens",
                self.capacity_tokens
            )));
        }
        let part =
            |t: &Tensor, slot: usize| t.f_select(0, slot as i64)?.f_narrow(1, 0, tokens as i64);
        for tensor in self.layers.iter().flat_map(|(k, v)| [k, v]) {
            let source = part(tensor, from)?;
            for &slot in to.iter().filter(|&&slot| slot != from) {
                part(tensor, slot)?.f_copy_(&source)?;
            }
        }
        Ok(())
    }

    pub(crate) fn check_slot(&self, slot: usize) -> Result<()> {
        if slot < self.slots {
            return Ok(());
        }
        Err(ModelError::input(format!("slot {slot} of a KV cache of {} slots", self.slots)))
    }

    /// Stores keys and values `[N, K, D]` of layer `index` at `[slot, head, position]` given by
    /// index tensors that broadcast to `[N, K]`.
    pub(crate) fn write(
        &mut self,
        index: usize,
        at: &[Option<Tensor>; 3],
        k_nkd: &Tensor,
        v_nkd: &Tensor,
    ) -> Result<()> {
        let (k, v) = self.layer(index)?;
        let (mut k, mut v) = (k.shallow_clone(), v.shallow_clone());
        let _ = k.f_index_put_(at, k_nkd, false)?;
        let _ = v.f_index_put_(at, v_nkd, false)?;
        Ok(())
    }

    /// Keys and values of layer `index`, `[slots, K, capacity, D]`.
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
