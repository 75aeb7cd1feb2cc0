//! Sizes of a decoder, as far as memory depends on them.

/// Shape of a Llama or Qwen decoder. Widths and counts are those of `config.json`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DecoderShape {
    /// H, width of the residual stream.
    pub hidden: u64,
    /// I, width of the gated MLP.
    pub intermediate: u64,
    /// Layers.
    pub layers: u64,
    /// Query heads.
    pub heads: u64,
    /// Key/value heads.
    pub kv_heads: u64,
    /// D, width of a head.
    pub head_width: u64,
    /// V, tokens of the vocabulary.
    pub vocabulary: u64,
    /// Whether the output matrix of a language model is the embedding.
    pub tied: bool,
    /// Whether query, key and value have biases.
    pub qkv_bias: bool,
    /// Whether the attention's output has a bias.
    pub o_bias: bool,
    /// Whether the MLP's matrices have biases.
    pub mlp_bias: bool,
    /// Whether query and key heads are normalised.
    pub qk_norm: bool,
}

impl DecoderShape {
    /// Q, width of all query heads.
    #[must_use]
    pub fn q_width(&self) -> u64 {
        self.heads * self.head_width
    }

    /// K, width of all key heads, and of all value heads.
    #[must_use]
    pub fn kv_width(&self) -> u64 {
        self.kv_heads * self.head_width
    }

    /// Elements of the embedding, `V H`.
    #[must_use]
    pub fn embedding(&self) -> u64 {
        self.vocabulary * self.hidden
    }

    /// Elements of the fused query, key and value projection of a layer, `(Q + 2 K) (H + 1)`
    /// with biases.
    #[must_use]
    pub fn fused_projection(&self) -> u64 {
        (self.q_width() + 2 * self.kv_width()) * (self.hidden + u64::from(self.qkv_bias))
    }

    /// Elements of one layer: two norms, the attention's four matrices, the MLP's three, and the
    /// biases and head norms that there are.
    #[must_use]
    pub fn layer(&self) -> u64 {
        let (h, i) = (self.hidden, self.intermediate);
        let attention = self.fused_projection() + h * (self.q_width() + u64::from(self.o_bias));
        let head_norms = if self.qk_norm { 2 * self.head_width } else { 0 };
        let mlp_bias = if self.mlp_bias { 2 * i + h } else { 0 };
        2 * h + attention + head_norms + 3 * h * i + mlp_bias
    }

    /// Elements of the head block: the final norm, and what makes logits or scores of it.
    #[must_use]
    pub fn head(&self, head: &Head) -> u64 {
        let own = match head {
            Head::LanguageModel if self.tied => 0,
            Head::LanguageModel => self.embedding(),
            Head::Score { hidden_widths } => {
                let mut width = self.hidden;
                let mut elements = 0;
                for &next in hidden_widths {
                    elements += next * (width + 1);
                    width = next;
                }
                elements + width + u64::from(!hidden_widths.is_empty())
            }
        };
        self.hidden + own
    }

    /// Parameters of the whole model with this head.
    #[must_use]
    pub fn parameters(&self, head: &Head) -> u64 {
        self.embedding() + self.layers * self.layer() + self.head(head)
    }
}

/// What stands on top of the layers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Head {
    /// Logits.
    LanguageModel,
    /// One number per text, linear, or through hidden layers of these widths.
    Score {
        /// Empty for a linear head.
        hidden_widths: Vec<u64>,
    },
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// The ~53M-parameter Qwen2 of `bench/memory`.
    pub(crate) fn qwen2_53m() -> DecoderShape {
        DecoderShape {
            hidden: 512,
            intermediate: 1408,
            layers: 16,
            heads: 8,
            kv_heads: 2,
            head_width: 64,
            vocabulary: 16384,
            tied: true,
            qkv_bias: true,
            o_bias: false,
            mlp_bias: false,
            qk_norm: false,
        }
    }

    #[test]
    fn parameters_of_known_models_are_counted() {
        // SmolLM2-135M has 134,515,008 parameters.
        let smollm2 = DecoderShape {
            hidden: 576,
            intermediate: 1536,
            layers: 30,
            heads: 9,
            kv_heads: 3,
            head_width: 64,
            vocabulary: 49152,
            qkv_bias: false,
            ..qwen2_53m()
        };
        assert_eq!(smollm2.parameters(&Head::LanguageModel), 134_515_008);
        // By hand: 768 x 513 fused, 512 x 512 output, 3 x 512 x 1408, two norms.
        assert_eq!(qwen2_53m().layer(), 393_984 + 262_144 + 2_162_688 + 1024);
        assert_eq!(qwen2_53m().embedding(), 8_388_608);
    }

    #[test]
    fn heads_have_their_own_parameters() {
        let shape = qwen2_53m();
        assert_eq!(shape.head(&Head::LanguageModel), 512);
        let untied = DecoderShape { tied: false, ..shape };
        assert_eq!(untied.head(&Head::LanguageModel), 512 + 8_388_608);
        assert_eq!(shape.head(&Head::Score { hidden_widths: vec![] }), 512 + 512);
        // 512 -> 8 with biases, 8 -> 1 with a bias.
        let mlp = Head::Score { hidden_widths: vec![8] };
        assert_eq!(shape.head(&mlp), 512 + 8 * 513 + 8 + 1);
    }
}
