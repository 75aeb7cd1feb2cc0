//! Batches of sequences without padding.

use tch::{Device, Kind, Tensor};

use crate::error::{ModelError, Result};

/// Several token sequences laid end to end: no padding, no compute on padding.
#[derive(Debug)]
pub struct Packed {
    /// Token ids, `[N]` i64.
    pub input_ids: Tensor,
    /// Position of each token in its own sequence, `[N]` i64, starting at 0.
    pub position_ids: Tensor,
    /// Where each sequence starts, and N at the end: `B + 1` entries, `0` first.
    pub cu_seqlens: Vec<i64>,
    /// The largest token id, kept so that it can be checked without touching the device.
    max_id: u32,
}

impl Packed {
    /// Packs `sequences` on the CPU.
    ///
    /// # Errors
    /// If there is no sequence, or one of them is empty.
    pub fn new(sequences: &[&[u32]]) -> Result<Self> {
        if sequences.is_empty() {
            return Err(ModelError::input("a packed batch needs at least one sequence, got none"));
        }
        let tokens: usize = sequences.iter().map(|s| s.len()).sum();
        let mut ids: Vec<i64> = Vec::with_capacity(tokens);
        let mut positions: Vec<i64> = Vec::with_capacity(tokens);
        let mut cu_seqlens: Vec<i64> = Vec::with_capacity(sequences.len() + 1);
        cu_seqlens.push(0);
        for (index, sequence) in sequences.iter().enumerate() {
            if sequence.is_empty() {
                return Err(ModelError::input(format!(
                    "sequence {index} of {} in a packed batch is empty",
                    sequences.len()
                )));
            }
            ids.extend(sequence.iter().map(|&id| i64::from(id)));
            positions.extend(0..sequence.len() as i64);
            cu_seqlens.push(ids.len() as i64);
        }
        let max_id = sequences.iter().flat_map(|s| s.iter().copied()).max().unwrap_or(0);
        Ok(Self {
            input_ids: Tensor::from_slice(&ids),
            position_ids: Tensor::from_slice(&positions),
            cu_seqlens,
            max_id,
        })
    }

    /// The same batch with its tensors on `device`.
    pub fn to_device(&self, device: Device) -> Self {
        Self {
            input_ids: self.input_ids.to_device(device),
            position_ids: self.position_ids.to_device(device),
            cu_seqlens: self.cu_seqlens.clone(),
            max_id: self.max_id,
        }
    }

    /// Number of tokens, N.
    pub fn tokens(&self) -> i64 {
        self.cu_seqlens.last().copied().unwrap_or(0)
    }

    /// Number of sequences, B.
    pub fn sequences(&self) -> usize {
        self.cu_seqlens.len().saturating_sub(1)
    }

    /// Length of each sequence in tokens.
    pub fn lengths(&self) -> Vec<i64> {
        self.cu_seqlens.windows(2).map(|w| w[1] - w[0]).collect()
    }

    /// Index in `0..N` of each sequence's last token, `[B]` i64, on the batch's device.
    pub fn last_indices(&self) -> Tensor {
        let last: Vec<i64> = self.cu_seqlens.iter().skip(1).map(|end| end - 1).collect();
        Tensor::from_slice(&last).to_device(self.input_ids.device())
    }

    /// The largest token id in the batch.
    pub fn max_id(&self) -> u32 {
        self.max_id
    }
}

/// What every layer needs to know about one packed batch, computed once:
/// rotary tables, sequence lengths and attention masks.
#[derive(Debug)]
pub struct Layout {
    /// Sequence lengths in tokens.
    pub(crate) lengths: Vec<i64>,
    /// Rotary cosines `[N, 1, D]` in the compute dtype.
    pub(crate) cos_n1d: Tensor,
    /// Rotary sines `[N, 1, D]`, first half negated, in the compute dtype.
    pub(crate) sin_n1d: Tensor,
    /// Additive causal mask `[L, L]` for the longest sequence, where the attention needs one.
    pub(crate) causal_ll: Option<Tensor>,
    /// Additive causal mask with the sliding window, when a sequence is longer than the window.
    pub(crate) window_ll: Option<Tensor>,
    /// Compute dtype.
    pub(crate) kind: Kind,
}

impl Layout {
    /// Compute dtype of the tables and masks; the hidden states must have the same.
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// Number of tokens, N.
    pub fn tokens(&self) -> i64 {
        self.lengths.iter().sum()
    }
}
