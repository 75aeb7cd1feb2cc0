//! A random Llama of two layers and 32 words, in memory and as a folder, for tests.

use std::path::Path;

use plumb_model::{Decoder, HeadSpec, ModelConfig, Weights, export, random_blocks};
use serde_json::json;
use tch::{Kind, Tensor};

use crate::engine::Native;

/// Words `w0` to `w30` and the end-of-sequence token.
pub(crate) const EOS: u32 = 31;
/// Longest context.
pub(crate) const CONTEXT: usize = 96;

fn config_json() -> String {
    json!({
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": 32,
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 4,
        "max_position_embeddings": CONTEXT,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "hidden_act": "silu",
        "tie_word_embeddings": true,
        "attention_bias": false,
        "mlp_bias": false,
        "eos_token_id": EOS,
    })
    .to_string()
}

/// The architecture.
pub(crate) fn decoder() -> Decoder {
    let config = ModelConfig::from_json(&config_json(), Path::new("config.json")).unwrap();
    Decoder::new(config).unwrap()
}

/// One flat f32 tensor per block. Matrices are larger than the usual initial ones, so that texts
/// differ; norms are not.
pub(crate) fn flats(seed: u64) -> Vec<Tensor> {
    let specs = decoder().blocks(&HeadSpec::CausalLm);
    let blocks = random_blocks(&specs, seed).unwrap();
    let flat = |params: &Vec<Tensor>| {
        let scaled = |p: &Tensor| if p.dim() > 1 { p.view([-1]) * 8.0 } else { p.view([-1]) };
        let parts: Vec<Tensor> = params.iter().map(scaled).collect();
        Tensor::cat(&parts, 0)
    };
    blocks.iter().map(flat).collect()
}

/// Resident weights.
pub(crate) fn weights(seed: u64) -> Weights {
    Weights::from_flats(&decoder(), &HeadSpec::CausalLm, flats(seed)).unwrap()
}

/// The model in memory.
pub(crate) fn native(seed: u64) -> Native {
    Native::new(decoder(), weights(seed))
}

/// The model as a folder with tokenizer and chat template.
pub(crate) fn write_folder(folder: &Path, seed: u64) {
    let decoder = decoder();
    let weights = weights(seed);
    let specs = weights.specs().to_vec();
    let names = specs.iter().flat_map(|block| block.params.iter().map(|p| p.name.clone()));
    let tensors = weights.blocks.iter().flatten().map(Tensor::shallow_clone);
    export::write_folder(
        folder,
        decoder.config(),
        &HeadSpec::CausalLm,
        &specs,
        None,
        Kind::Float,
        names.zip(tensors),
    )
    .unwrap();
    let vocabulary: serde_json::Map<String, serde_json::Value> = (0..EOS)
        .map(|id| (format!("w{id}"), json!(id)))
        .chain([("<|im_end|>".to_owned(), json!(EOS))])
        .collect();
    let tokenizer = json!({
        "version": "1.0",
        "truncation": null,
        "padding": null,
        "added_tokens": [{
            "id": EOS, "content": "<|im_end|>", "single_word": false, "lstrip": false,
            "rstrip": false, "normalized": false, "special": true,
        }],
        "normalizer": null,
        "pre_tokenizer": { "type": "Whitespace" },
        "post_processor": null,
        "decoder": null,
        "model": { "type": "WordLevel", "vocab": vocabulary, "unk_token": "w0" },
    });
    std::fs::write(folder.join("tokenizer.json"), tokenizer.to_string()).unwrap();
    let settings = json!({
        "eos_token": "<|im_end|>",
        "chat_template": "{% for m in messages %}{{ m.content }} {% endfor %}",
    });
    std::fs::write(folder.join("tokenizer_config.json"), settings.to_string()).unwrap();
}
