//! The resident model behind the engine.

use std::path::Path;

use plumb_model::{
    BatchShape, BlockSpec, Decoder, HeadSpec, KvCache, ModelConfig, ModelError, Weights,
};
use tch::{Device, Kind, Tensor};

use super::{Forward, ForwardError, Span};

/// A decoder with its weights and, once work has come, its KV cache.
#[derive(Debug)]
pub struct Native {
    decoder: Decoder,
    weights: Weights,
    cache: Option<KvCache>,
    shape: BatchShape,
}

/// Rows of a batch in deterministic mode.
const FIXED_ROWS: usize = 32;

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
        Self { decoder, weights, cache: None, shape: BatchShape::default() }
    }

    /// Makes a sample's tokens the same to the bit whatever shares the batch, and its log-probs
    /// those that the trainer computes. Slower: every batch is filled up to a multiple of 32 rows,
    /// and each finished response is scored once more.
    ///
    /// # Errors
    /// Off the CPU: attention there looks at as many tokens as the longest sequence has.
    pub fn make_deterministic(&mut self) -> Result<(), ModelError> {
        let device = self.weights.device();
        if device != Device::Cpu {
            return Err(ModelError::Input(format!(
                "deterministic generation is there on the CPU only, not on {device:?}"
            )));
        }
        self.shape = BatchShape::Fixed(FIXED_ROWS);
        Ok(())
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

    fn vocabulary(&self) -> usize {
        usize::try_from(self.decoder.config().vocab_size).unwrap_or(0)
    }

    fn kv_bytes_per_token(&self) -> u64 {
        let config = self.decoder.config();
        let width = (config.num_key_value_heads * config.head_dim) as u64;
        2 * width * config.num_hidden_layers as u64 * self.weights.kind().elt_size_in_bytes() as u64
    }

    fn allocate(&mut self, blocks: usize) -> Result<(), ForwardError> {
        // The old cache goes first, or both would be held at once.
        self.cache = None;
        let (kind, device) = (self.weights.kind(), self.weights.device());
        self.cache = Some(KvCache::new(self.decoder.config(), blocks, kind, device)?);
        Ok(())
    }

    fn copy_blocks(&mut self, copies: &[(u32, u32)]) -> Result<(), ForwardError> {
        Ok(Self::cache(&mut self.cache)?.copy_blocks(copies)?)
    }

    fn step(&mut self, spans: &[Span<'_>]) -> Result<Option<Tensor>, ForwardError> {
        let cache = Self::cache(&mut self.cache)?;
        Ok(self.decoder.step(&self.weights, spans, cache, self.shape)?)
    }

    fn trainer_logps(
        &mut self,
        prompt_ids: &[u32],
        response_ids: &[u32],
        temperature: f64,
    ) -> Result<Option<Vec<f32>>, ForwardError> {
        if self.shape == BatchShape::Ragged {
            return Ok(None);
        }
        let logps = plumb_engine::response_logps(
            &self.decoder,
            &self.weights,
            prompt_ids,
            response_ids,
            temperature,
        )?;
        Ok(Some(logps))
    }
}

#[cfg(test)]
#[path = "native_tests.rs"]
mod tests;
