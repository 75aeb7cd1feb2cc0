//! The model as the scheduler sees it.

use tch::Tensor;

/// Why a forward pass failed.
pub type ForwardError = Box<dyn std::error::Error + Send + Sync>;

/// One sequence of a decode batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Row {
    /// The newest token, not yet in the cache.
    pub token: u32,
    /// Its position in the sequence, from 0.
    pub position: usize,
    /// The sequence's slot.
    pub slot: usize,
}

/// A causal language model with a slotted KV cache. B rows, V vocabulary.
pub trait Forward {
    /// Most tokens of a sequence.
    fn context_tokens(&self) -> usize;

    /// Bytes of KV cache that one token takes over all layers.
    fn kv_bytes_per_token(&self) -> u64;

    /// Replaces the cache by one of `slots` slots of `tokens` tokens; the contents are lost.
    ///
    /// # Errors
    /// When the memory cannot be had.
    fn allocate(&mut self, slots: usize, tokens: usize) -> Result<(), ForwardError>;

    /// Runs whole prompts, one per slot, and returns the logits after each prompt's last token,
    /// `[prompts, V]`.
    ///
    /// # Errors
    /// What the model reports.
    fn prefill(&mut self, prompts: &[(usize, &[u32])]) -> Result<Tensor, ForwardError>;

    /// Copies the first `tokens` cache entries of slot `from` to the slots `to`.
    ///
    /// # Errors
    /// What the cache reports.
    fn copy_prefix(&mut self, from: usize, to: &[usize], tokens: usize)
    -> Result<(), ForwardError>;

    /// Feeds one token per row and returns the logits after it, `[B, V]`.
    ///
    /// # Errors
    /// What the model reports.
    fn decode(&mut self, rows: &[Row]) -> Result<Tensor, ForwardError>;
}
