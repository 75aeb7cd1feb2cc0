//! Models with random weights, as folders that both sides load.

use std::path::Path;

use anyhow::Result;
use plumb_model::export::{DEFAULT_SHARD_BYTES, Writer};
use plumb_model::{Decoder, HeadSpec, ModelConfig, random_blocks};
use tch::Kind;

use crate::case::Size;

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
    let (hidden, intermediate, layers, heads, kv_heads) = match size {
        Size::M10 => (320, 864, 8, 5, 1),
        Size::M50 => (512, 1408, 16, 8, 2),
    };
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
