//! Models with random weights, as folders that both sides load.

use std::path::Path;

use anyhow::Result;
use plumb_model::export::{DEFAULT_SHARD_BYTES, Writer};
use plumb_model::{Decoder, HeadSpec, ModelConfig, random_blocks};
use tch::Kind;

/// Which model.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Size {
    /// About 11 million parameters.
    M10,
    /// About 53 million.
    M50,
}

/// Its widths and counts.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Widths {
    pub(crate) hidden: u64,
    pub(crate) intermediate: u64,
    pub(crate) layers: u64,
    pub(crate) heads: u64,
    pub(crate) kv_heads: u64,
}

/// Writes a Qwen2 of the given size.
pub(crate) fn write(size: Size, folder: &Path) -> Result<()> {
    let config = ModelConfig::from_json(&config(size), Path::new("config.json"))?;
    let decoder = Decoder::new(config)?;
    let specs = decoder.blocks(&HeadSpec::CausalLm);
    let config = decoder.config();
    let mut writer = Writer::create(
        folder,
        config,
        &HeadSpec::CausalLm,
        &specs,
        None,
        Kind::Float,
        DEFAULT_SHARD_BYTES,
    )?;
    for (spec, params) in specs.iter().zip(random_blocks(&specs, 17)?) {
        for (param, tensor) in spec.params.iter().zip(params) {
            writer.tensor(&param.name, &tensor)?;
        }
    }
    writer.finish()?;
    Ok(())
}

fn config(size: Size) -> String {
    let Widths { hidden, intermediate, layers, heads, kv_heads } = size.widths();
    let vocabulary = size.vocabulary();
    format!(
        r#"{{"architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2",
            "vocab_size": {vocabulary}, "hidden_size": {hidden},
            "intermediate_size": {intermediate}, "num_hidden_layers": {layers},
            "num_attention_heads": {heads}, "num_key_value_heads": {kv_heads},
            "hidden_act": "silu", "max_position_embeddings": 512, "rms_norm_eps": 1e-6,
            "rope_theta": 10000.0, "tie_word_embeddings": true, "bos_token_id": 1,
            "eos_token_id": 2, "use_sliding_window": false}}"#
    )
}

impl Size {
    /// Widths and counts.
    pub(crate) fn widths(self) -> Widths {
        let (hidden, intermediate, layers, heads, kv_heads) = match self {
            Self::M10 => (320, 864, 8, 5, 1),
            Self::M50 => (512, 1408, 16, 8, 2),
        };
        Widths { hidden, intermediate, layers, heads, kv_heads }
    }

    /// Number of tokens in the vocabulary.
    pub(crate) fn vocabulary(self) -> u64 {
        match self {
            Self::M10 => 8192,
            Self::M50 => 16384,
        }
    }
}
