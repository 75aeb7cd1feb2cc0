//! The resident model behind the engine.

use std::path::Path;

use plumb_model::{
    BlockSpec, Decoder, HeadSpec, KvCache, ModelConfig, ModelError, Packed, Weights,
};
use tch::{Device, Kind, Tensor};

use super::{Forward, ForwardError, Row};

/// A decoder with its weights and, once work has come, its KV cache.
#[derive(Debug)]
pub struct Native {
    decoder: Decoder,
    weights: Weights,
    cache: Option<KvCache>,
}

impl Native {
    /// Loads a language model's folder in `kind` (f32 or bf16).
    ///
    /// # Errors
    /// What is missing, truncated or unsupported in the folder, by name.
    pub fn load(folder: &Path, kind: Kind, device: Device) -> Result<Self, ModelError> {
        let decoder = Decoder::new(ModelConfig::from_folder(folder)?)?;
        let weights = Weights::load(&decoder, folder, &HeadSpec::CausalLm, kind, device)?;
        Ok(Self::new(decoder, weights))
    }

    /// A model that is in memory already.
    #[must_use]
    pub fn new(decoder: Decoder, weights: Weights) -> Self {
        Self { decoder, weights, cache: None }
    }

    /// The model's blocks: what a version of its weights consists of.
    #[must_use]
    pub fn blocks(&self) -> &[BlockSpec] {
        self.weights.specs()
    }

    /// Number of parameters.
    #[must_use]
    pub fn parameters(&self) -> u64 {
        self.blocks().iter().map(|block| block.numel() as u64).sum()
    }

    /// Number format of the weights.
    #[must_use]
    pub fn kind(&self) -> Kind {
        self.weights.kind()
    }

    /// Weights for this model from one flat tensor per block, ready to be swapped in.
    ///
    /// # Errors
    /// When number or lengths of the tensors do not fit the model.
    pub fn weights_from(&self, flats: Vec<Tensor>) -> Result<Weights, ModelError> {
        Weights::from_flats(&self.decoder, &HeadSpec::CausalLm, flats)
    }

    /// Swaps the weights. The cache stays: running sequences go on from the keys and values that
    /// the old weights wrote.
    pub fn replace(&mut self, weights: Weights) {
        self.weights = weights;
    }

    /// Memory of weights and cache.
    #[must_use]
    pub fn resident_bytes(&self) -> usize {
        self.weights.bytes() + self.cache.as_ref().map_or(0, KvCache::bytes)
    }

    fn cache(cache: &mut Option<KvCache>) -> Result<&mut KvCache, ForwardError> {
        cache.as_mut().ok_or_else(|| "the KV cache is not set up".into())
    }
}

impl Forward for Native {
    fn context_tokens(&self) -> usize {
        usize::try_from(self.decoder.config().max_positions).unwrap_or(0)
    }

    fn kv_bytes_per_token(&self) -> u64 {
        let config = self.decoder.config();
        let width = (config.num_key_value_heads * config.head_dim) as u64;
        2 * width * config.num_hidden_layers as u64 * self.weights.kind().elt_size_in_bytes() as u64
    }

    fn allocate(&mut self, slots: usize, tokens: usize) -> Result<(), ForwardError> {
        // The old cache goes first, or both would be held at once.
        self.cache = None;
        let (kind, device) = (self.weights.kind(), self.weights.device());
        self.cache = Some(KvCache::new(self.decoder.config(), slots, tokens, kind, device)?);
        Ok(())
    }

    fn prefill(&mut self, prompts: &[(usize, &[u32])]) -> Result<Tensor, ForwardError> {
        let _no_grad = tch::no_grad_guard();
        let (slots, sequences): (Vec<usize>, Vec<&[u32]>) = prompts.iter().copied().unzip();
        let packed = Packed::new(&sequences)?;
        let cache = Self::cache(&mut self.cache)?;
        let hidden_nh = self.decoder.prefill(&self.weights, &packed, cache, &slots)?;
        let last_b = packed.last_indices().to_device(hidden_nh.device());
        Ok(self.decoder.output(&self.weights, &hidden_nh.f_index_select(0, &last_b)?)?)
    }

    fn copy_prefix(
        &mut self,
        from: usize,
        to: &[usize],
        tokens: usize,
    ) -> Result<(), ForwardError> {
        Ok(Self::cache(&mut self.cache)?.copy_prefix(from, to, tokens)?)
    }

    fn decode(&mut self, rows: &[Row]) -> Result<Tensor, ForwardError> {
        let _no_grad = tch::no_grad_guard();
        let ids: Vec<u32> = rows.iter().map(|row| row.token).collect();
        let positions: Vec<usize> = rows.iter().map(|row| row.position).collect();
        let slots: Vec<usize> = rows.iter().map(|row| row.slot).collect();
        let cache = Self::cache(&mut self.cache)?;
        let hidden_bh = self.decoder.decode(&self.weights, &ids, &positions, &slots, cache)?;
        Ok(self.decoder.output(&self.weights, &hidden_bh)?)
    }
}

#[cfg(test)]
#[path = "native_tests.rs"]
mod tests;
