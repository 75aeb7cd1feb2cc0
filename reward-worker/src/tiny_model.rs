//! Random score models of two layers and 32 words, as folders, for tests.

use std::path::Path;

use plumb_model::{Decoder, HeadSpec, ModelConfig, ScoreHead, export, random_blocks};
use plumb_proto::object::Sample;
use serde_json::json;
use tch::{Kind, Tensor};

/// Id of the end-of-sequence token; the other ids are the words `w0` to `w30`.
pub(crate) const EOS: u32 = 31;

fn config_json(architecture: &str, hidden_dims: Option<String>) -> String {
    let mut config = json!({
        "architectures": [architecture],
        "model_type": "llama",
        "vocab_size": 32,
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 4,
        "max_position_embeddings": 32,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "hidden_act": "silu",
        "tie_word_embeddings": false,
        "attention_bias": false,
        "mlp_bias": false,
        "num_labels": 1,
        "eos_token_id": EOS,
    });
    if let Some(dims) = hidden_dims {
        config["hidden_dim_str"] = json!(dims);
    }
    config.to_string()
}

/// Writes a model folder with this head; `None` is a language model.
pub(crate) fn write_folder(folder: &Path, head: Option<ScoreHead>, seed: u64) {
    let (architecture, dims) = match &head {
        None => ("LlamaForCausalLM", None),
        Some(ScoreHead::Linear) => ("LlamaForSequenceClassification", None),
        Some(mlp) => ("LlamaForMlpScore", mlp.hidden_dim_str()),
    };
    let head = head.map_or(HeadSpec::CausalLm, HeadSpec::Score);
    let config =
        ModelConfig::from_json(&config_json(architecture, dims), Path::new("config.json")).unwrap();
    let decoder = Decoder::new(config).unwrap();
    let specs = decoder.blocks(&head);
    let names = specs.iter().flat_map(|block| block.params.iter().map(|p| p.name.clone()));
    // Matrices are larger than the usual initial ones, so that scores differ; norms are not.
    let scaled = |t: Tensor| if t.dim() > 1 { t * 8.0 } else { t };
    let tensors = random_blocks(&specs, seed).unwrap().into_iter().flatten().map(scaled);
    export::write_folder(
        folder,
        decoder.config(),
        &head,
        &specs,
        None,
        Kind::Float,
        names.zip(tensors),
    )
    .unwrap();
    write_texts(folder, "w");
}

/// Writes tokenizer and chat template; words start with `letter`.
pub(crate) fn write_texts(folder: &Path, letter: &str) {
    let vocabulary: serde_json::Map<String, serde_json::Value> = (0..EOS)
        .map(|id| (format!("{letter}{id}"), json!(id)))
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
        "model": { "type": "WordLevel", "vocab": vocabulary, "unk_token": format!("{letter}0") },
    });
    std::fs::write(folder.join("tokenizer.json"), tokenizer.to_string()).unwrap();
    let settings = json!({
        "eos_token": "<|im_end|>",
        "chat_template": "{% for m in messages %}{{ m.content }}<|im_end|>{% endfor %}",
    });
    std::fs::write(folder.join("tokenizer_config.json"), settings.to_string()).unwrap();
}

/// A sample that the tiny tokenizer wrote; the response ends with the end-of-sequence token.
pub(crate) fn sample(id: &str, prompt: &[u32], response: &[u32]) -> Sample {
    let text = |ids: &[u32]| ids.iter().map(|id| format!("w{id}")).collect::<Vec<_>>().join(" ");
    Sample {
        id: id.into(),
        label: "safety".into(),
        prompt_ids: [prompt, &[EOS]].concat(),
        response_ids: [response, &[EOS]].concat(),
        question: text(prompt),
        response: text(response),
        ..Sample::default()
    }
}
