//! A GGUF file as an HF folder: configuration and tensor names.

use std::collections::BTreeMap;
use std::path::Path;

use serde_json::{Map, Value as Json, json};

use super::ImportReport;
use super::error::{ImportError, Result};
use super::folder::{Announced, Staging};
use super::gguf_file::GgufFile;
use super::gguf_tokenizer;
use super::rotary::pairs_to_halves;
use super::source::Source;
use crate::tokenizer::Tokenizer;

/// A model family that can be imported.
struct Family {
    name: &'static str,
    class: &'static str,
    /// llama.cpp reorders the rows of q and k for this family.
    reordered: bool,
}

const FAMILIES: [Family; 3] = [
    Family { name: "llama", class: "LlamaForCausalLM", reordered: true },
    Family { name: "qwen2", class: "Qwen2ForCausalLM", reordered: false },
    Family { name: "qwen3", class: "Qwen3ForCausalLM", reordered: false },
];

/// Per-layer tensors: GGUF suffix, HF suffix, whether every family has it.
const LAYER_TENSORS: [(&str, &str); 14] = [
    ("attn_norm.weight", "input_layernorm.weight"),
    ("attn_q.weight", "self_attn.q_proj.weight"),
    ("attn_q.bias", "self_attn.q_proj.bias"),
    ("attn_k.weight", "self_attn.k_proj.weight"),
    ("attn_k.bias", "self_attn.k_proj.bias"),
    ("attn_v.weight", "self_attn.v_proj.weight"),
    ("attn_v.bias", "self_attn.v_proj.bias"),
    ("attn_q_norm.weight", "self_attn.q_norm.weight"),
    ("attn_k_norm.weight", "self_attn.k_norm.weight"),
    ("attn_output.weight", "self_attn.o_proj.weight"),
    ("ffn_norm.weight", "post_attention_layernorm.weight"),
    ("ffn_gate.weight", "mlp.gate_proj.weight"),
    ("ffn_up.weight", "mlp.up_proj.weight"),
    ("ffn_down.weight", "mlp.down_proj.weight"),
];

/// The sizes that the tensors and the configuration share.
struct Sizes {
    layers: u64,
    hidden: u64,
    heads: u64,
    kv_heads: u64,
    head_dim: u64,
}

pub(super) fn import(source: Source, destination: &Path) -> Result<ImportReport> {
    let file = GgufFile::read(source)?;
    let family = family(&file)?;
    let sizes = sizes(&file, family.name)?;
    let names = tensor_names(&file, &sizes)?;
    let vocabulary = gguf_tokenizer::read(&file)?;
    let config = config(&file, &family, &sizes, &vocabulary)?;

    let staging = Staging::new(destination)?;
    staging.json("config.json", &config)?;
    vocabulary.write(&staging)?;
    let tensors: Vec<Announced> =
        names.iter().map(|(gguf, hf)| announced(&file, gguf, hf)).collect::<Result<_>>()?;
    staging.safetensors(&tensors, |i| {
        let (gguf, hf) = &names[i];
        let values = file.values(gguf)?;
        Ok(match rotated_heads(hf, &family, &sizes) {
            Some(heads) => pairs_to_halves(
                &values,
                heads as usize,
                values.len() / (heads * sizes.head_dim) as usize,
            ),
            None => values,
        })
    })?;
    Tokenizer::from_folder(staging.path())?;
    staging.commit()?;

    let mut number_formats = BTreeMap::new();
    for info in file.tensors().values() {
        *number_formats.entry(info.format.name().to_owned()).or_insert(0) += 1;
    }
    Ok(ImportReport {
        folder: destination.to_owned(),
        format: "gguf",
        architecture: family.class.to_owned(),
        tensors: tensors.len(),
        parameters: tensors.iter().map(Announced::elements).sum(),
        vocab_size: vocabulary.tokens,
        chat_template: vocabulary.chat_template.is_some(),
        number_formats,
    })
}

fn family(file: &GgufFile) -> Result<Family> {
    let key = "general.architecture";
    let name = file.text(key)?.ok_or_else(|| file.bad_key(key, "a text"))?;
    FAMILIES.into_iter().find(|f| f.name == name).ok_or_else(|| ImportError::Unsupported {
        path: file.path().to_owned(),
        what: "architecture",
        name: name.to_owned(),
        supported: "llama, qwen2, qwen3",
    })
}

fn sizes(file: &GgufFile, family: &str) -> Result<Sizes> {
    let key = |name: &str| format!("{family}.{name}");
    let refuse = |what, name: String, supported| ImportError::Unsupported {
        path: file.path().to_owned(),
        what,
        name,
        supported,
    };
    if let Some(experts) = file.count(&key("expert_count"))?.filter(|&n| n > 0) {
        return Err(refuse("mixture of experts", format!("{experts} experts"), "dense models"));
    }
    if let Some(kind) = file.text(&key("rope.scaling.type"))?.filter(|&kind| kind != "none") {
        return Err(refuse("rope scaling in GGUF", kind.to_owned(), "none"));
    }
    if file.tensor("rope_freqs.weight").is_some() {
        return Err(refuse("rope scaling in GGUF", "rope_freqs.weight".to_owned(), "none"));
    }
    let (hidden, heads) = (
        file.needed_count(&key("embedding_length"))?,
        file.needed_count(&key("attention.head_count"))?,
    );
    let head_dim = match file.count(&key("attention.key_length"))? {
        Some(n) => n,
        None => hidden / heads,
    };
    if let Some(n) = file.count(&key("rope.dimension_count"))?.filter(|&n| n != head_dim) {
        return Err(refuse("partial rotary dimension", n.to_string(), "the whole head dimension"));
    }
    Ok(Sizes {
        layers: file.needed_count(&key("block_count"))?,
        hidden,
        heads,
        kv_heads: file.count(&key("attention.head_count_kv"))?.unwrap_or(heads),
        head_dim,
    })
}

/// GGUF and HF names of the tensors to write, in model order. Refuses tensors it does not know.
fn tensor_names(file: &GgufFile, sizes: &Sizes) -> Result<Vec<(String, String)>> {
    let mut names = vec![("token_embd.weight".to_owned(), "model.embed_tokens.weight".to_owned())];
    for layer in 0..sizes.layers {
        for (gguf, hf) in LAYER_TENSORS {
            let gguf_name = format!("blk.{layer}.{gguf}");
            let optional = gguf.ends_with(".bias")
                || gguf.ends_with("_norm.weight") && gguf.starts_with("attn_q_")
                || gguf.starts_with("attn_k_norm");
            if file.tensor(&gguf_name).is_some() || !optional {
                names.push((gguf_name, format!("model.layers.{layer}.{hf}")));
            }
        }
    }
    names.push(("output_norm.weight".to_owned(), "model.norm.weight".to_owned()));
    if file.tensor("output.weight").is_some() {
        names.push(("output.weight".to_owned(), "lm_head.weight".to_owned()));
    }
    if let Some((missing, _)) = names.iter().find(|(gguf, _)| file.tensor(gguf).is_none()) {
        return Err(file.missing_tensor(missing));
    }
    if let Some(unknown) =
        file.tensors().keys().find(|name| !names.iter().any(|(gguf, _)| gguf == *name))
    {
        return Err(ImportError::Tensor {
            path: file.path().to_owned(),
            tensor: unknown.clone(),
            reason: format!("not a tensor of a dense decoder with {} layers", sizes.layers),
        });
    }
    Ok(names)
}

fn announced(file: &GgufFile, gguf: &str, hf: &str) -> Result<Announced> {
    let info = file.tensor(gguf).ok_or_else(|| file.missing_tensor(gguf))?;
    Ok(Announced { name: hf.to_owned(), shape: info.shape.clone() })
}

fn rotated_heads(hf: &str, family: &Family, sizes: &Sizes) -> Option<u64> {
    match hf {
        _ if !family.reordered => None,
        _ if hf.contains("self_attn.q_proj.") => Some(sizes.heads),
        _ if hf.contains("self_attn.k_proj.") => Some(sizes.kv_heads),
        _ => None,
    }
}

fn config(
    file: &GgufFile,
    family: &Family,
    sizes: &Sizes,
    vocabulary: &gguf_tokenizer::Vocabulary,
) -> Result<Json> {
    let key = |name: &str| format!("{}.{name}", family.name);
    let float = |name: &str, default: f64| {
        Ok::<_, ImportError>(file.number(&key(name))?.unwrap_or(default))
    };
    let embedding =
        file.tensor("token_embd.weight").ok_or_else(|| file.missing_tensor("token_embd.weight"))?;
    let mut config = Map::new();
    let mut put = |name: &str, value: Json| config.insert(name.to_owned(), value);
    put("architectures", json!([family.class]));
    put("model_type", json!(family.name));
    put("vocab_size", json!(embedding.shape.first()));
    put("hidden_size", json!(sizes.hidden));
    put("intermediate_size", json!(file.needed_count(&key("feed_forward_length"))?));
    put("num_hidden_layers", json!(sizes.layers));
    put("num_attention_heads", json!(sizes.heads));
    put("num_key_value_heads", json!(sizes.kv_heads));
    put("head_dim", json!(sizes.head_dim));
    put("hidden_act", json!("silu"));
    put("max_position_embeddings", json!(file.needed_count(&key("context_length"))?));
    // GGUF stores 32-bit floats; as decimal text they are the numbers people write (1e-5, not
    // 9.999999747378752e-06).
    put("rms_norm_eps", short(float("attention.layer_norm_rms_epsilon", 1e-5)?));
    put("rope_theta", short(float("rope.freq_base", 10_000.0)?));
    put("tie_word_embeddings", json!(file.tensor("output.weight").is_none()));
    put("attention_bias", json!(file.tensor("blk.0.attn_q.bias").is_some()));
    put("mlp_bias", json!(false));
    put("attention_dropout", json!(0.0));
    put("initializer_range", json!(0.02));
    put("use_cache", json!(true));
    put("torch_dtype", json!("float32"));
    put("bos_token_id", json!(vocabulary.bos_id));
    put("eos_token_id", json!(vocabulary.eos_id));
    put("pad_token_id", json!(vocabulary.pad_id));
    Ok(Json::Object(config))
}

/// The shortest decimal that is the same 32-bit float.
fn short(value: f64) -> Json {
    let text = (value as f32).to_string();
    text.parse::<f64>().map_or_else(|_| json!(value), |x| json!(x))
}
