//! Activations: what one layer and the head compute with.

use super::DecoderShape;

/// The CPU holds all attention scores of a bf16 sequence up to this length (`crates/model`).
const MAX_PLAIN_TOKENS: u64 = 512;
/// Bytes of a chunk of logits in the compute type (`crates/engine`, `head`).
const LOGITS_CHUNK_BYTES: u64 = 96 << 20;
/// fp32 elements of a slice of logits.
const SLICE_ELEMENTS: u64 = 4 << 20;
/// fp32 copies of a slice at once: log-probs, probabilities, their product.
const SLICE_COPIES: u64 = 3;

/// What activations are computed with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Batch {
    /// N, tokens packed together.
    pub tokens: u64,
    /// Tokens of the longest sequence.
    pub longest_tokens: u64,
    /// c, bytes of a number.
    pub compute_bytes: u64,
    /// Whether libtorch's kernels are the CPU's.
    pub cpu: bool,
}

impl Batch {
    /// One hidden state for each token, `c N H`.
    #[must_use]
    pub fn hidden(&self, model: &DecoderShape) -> u64 {
        self.compute_bytes * self.tokens * model.hidden
    }

    /// What autograd keeps of one layer: two norms (an fp32 copy of the input in bf16, the
    /// normalised and the scaled state), the projection, rotated queries and keys, the attention's
    /// input and output, gate, up, activated gate and product of the MLP, and the layer's output.
    #[must_use]
    pub fn saved_by_layer(&self, model: &DecoderShape) -> u64 {
        let c = self.compute_bytes;
        let (h, q, k) = (model.hidden, model.q_width(), model.kv_width());
        let upcast = if c < 4 { 4 * h } else { c * h };
        let norms = 2 * (upcast + 2 * c * h);
        let attention = c * ((q + 2 * k) + (q + k) + 2 * q);
        let mlp = 4 * c * model.intermediate;
        let output = c * h;
        self.tokens * (norms + attention + mlp + output) + self.scores(model)
    }

    /// Attention weights, where the kernel holds them: `c N heads L`.
    fn scores(&self, model: &DecoderShape) -> u64 {
        let plain = self.cpu && self.compute_bytes < 4 && self.longest_tokens <= MAX_PLAIN_TOKENS;
        let longest = if plain { self.longest_tokens } else { 0 };
        self.compute_bytes * self.tokens * model.heads * longest
    }

    /// What a layer's backward pass holds beside what was saved: gradients of two of the MLP's
    /// states and of two hidden states.
    #[must_use]
    pub fn backward_of_layer(&self, model: &DecoderShape) -> u64 {
        2 * self.compute_bytes * self.tokens * (model.intermediate + model.hidden)
    }

    /// What a layer holds at once without gradients: four of the MLP's states, and its input,
    /// middle and output.
    #[must_use]
    pub fn layer_without_gradients(&self, model: &DecoderShape) -> u64 {
        self.compute_bytes * self.tokens * (4 * model.intermediate + 3 * model.hidden)
    }

    /// Rotary tables, `2 c N D`, twice in fp32 while they are made.
    #[must_use]
    pub fn tables(&self, model: &DecoderShape) -> u64 {
        (2 * self.compute_bytes + 8) * self.tokens * model.head_width
    }

    /// One chunk of logits in the compute type and the slices of it in fp32.
    #[must_use]
    pub fn logits(&self, model: &DecoderShape) -> u64 {
        let row = self.compute_bytes * model.vocabulary;
        let chunks = self.tokens.div_ceil((LOGITS_CHUNK_BYTES / row.max(1)).max(1)).max(1);
        let rows = self.tokens.div_ceil(chunks);
        let slice_rows = (SLICE_ELEMENTS / model.vocabulary.max(1)).clamp(1, rows.max(1));
        rows * row + SLICE_COPIES * 4 * slice_rows * model.vocabulary
    }

    /// Chunks that the logits come in.
    #[must_use]
    pub fn logits_chunks(&self, model: &DecoderShape) -> u64 {
        let row = self.compute_bytes * model.vocabulary;
        self.tokens.div_ceil((LOGITS_CHUNK_BYTES / row.max(1)).max(1)).max(1)
    }

    /// The final norm under gradients and the hidden states and gradients around it.
    #[must_use]
    pub fn head_states(&self, model: &DecoderShape) -> u64 {
        let c = self.compute_bytes;
        let upcast = if c < 4 { 4 } else { c };
        self.tokens * model.hidden * (upcast + 5 * c)
    }
}

#[cfg(test)]
mod tests {
    use super::super::shape::tests::qwen2_53m;
    use super::*;

    const BATCH: Batch = Batch { tokens: 2048, longest_tokens: 256, compute_bytes: 2, cpu: true };

    #[test]
    fn a_layer_by_hand() {
        let model = qwen2_53m();
        // A token in bytes: norms 2 x (2048 + 2048), attention 2 x (768 + 640 + 1024), weights
        // 2 x 8 x 256, MLP 4 x 2 x 1408, output 1024.
        let token = 8192 + 4864 + 4096 + 11_264 + 1024;
        assert_eq!(BATCH.saved_by_layer(&model), 2048 * token);
        // Longer sequences go through the fused kernel, which keeps no weights.
        let long = Batch { longest_tokens: 513, ..BATCH };
        assert_eq!(long.saved_by_layer(&model), 2048 * (token - 4096));
        assert_eq!(BATCH.backward_of_layer(&model), 2048 * 2 * 2 * (1408 + 512));
        assert_eq!(BATCH.layer_without_gradients(&model), 2048 * 2 * (5632 + 1536));
        assert_eq!(BATCH.hidden(&model), 2 << 20);
    }

    #[test]
    fn logits_come_in_chunks() {
        let model = qwen2_53m();
        // 2,048 rows of 32 KiB are one chunk of 64 MiB; slices of 256 rows in fp32 are 16 MiB.
        assert_eq!(BATCH.logits_chunks(&model), 1);
        assert_eq!(BATCH.logits(&model), (64 << 20) + 3 * (16 << 20));
        // Twice the rows are two chunks of the same size.
        let two = Batch { tokens: 4096, ..BATCH };
        assert_eq!((two.logits_chunks(&model), two.logits(&model)), (2, BATCH.logits(&model)));
        // A few rows are less than a slice.
        let few = Batch { tokens: 8, ..BATCH };
        assert_eq!(few.logits(&model), 8 * 32_768 + 3 * 8 * 65_536);
    }
}
