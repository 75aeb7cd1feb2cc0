//! The model as the scheduler sees it.

use tch::Tensor;

pub use plumb_model::Span;

/// Why a forward pass failed.
pub type ForwardError = Box<dyn std::error::Error + Send + Sync>;

/// A causal language model with a KV cache in blocks of
/// [`plumb_torch::paged::BLOCK_TOKENS`] tokens. V vocabulary.
pub trait Forward {
    /// Most tokens of a sequence.
    fn context_tokens(&self) -> usize;

    /// Number of tokens that there are.
    fn vocabulary(&self) -> usize;

    /// Bytes of KV cache that one token takes over all layers.
    fn kv_bytes_per_token(&self) -> u64;

    /// Sets up a cache of `blocks` blocks; the contents of an older one are lost.
    ///
    /// # Errors
    /// When the memory cannot be had.
    fn allocate(&mut self, blocks: usize) -> Result<(), ForwardError>;

    /// Copies whole blocks, `(from, to)`, in order.
    ///
    /// # Errors
    /// What the cache reports.
    fn copy_blocks(&mut self, copies: &[(u32, u32)]) -> Result<(), ForwardError>;

    /// Runs the new tokens of several sequences and stores their keys and values. Returns the
    /// logits after each span that wants them, `[S, V]` in the order of the spans.
    ///
    /// # Errors
    /// What the model reports.
    fn step(&mut self, spans: &[Span<'_>]) -> Result<Option<Tensor>, ForwardError>;

    /// The log-probs of a finished response, `[T]`, as the trainer will compute them: where they
    /// have to be equal to the bit. `None` where those recorded while drawing are good enough.
    ///
    /// # Errors
    /// What the model reports.
    fn trainer_logps(
        &mut self,
        prompt_ids: &[u32],
        response_ids: &[u32],
        temperature: f64,
    ) -> Result<Option<Vec<f32>>, ForwardError>;
}
