//! `config.json` of Llama, Qwen2 and Qwen3 folders, in the forms of transformers 4 and 5.

use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use crate::config_fields::Fields;
use crate::error::{ModelError, Result};
use crate::rope::Rope;
use crate::score_head::ScoreHead;

const SUPPORTED: &str = "LlamaForCausalLM, Qwen2ForCausalLM, Qwen3ForCausalLM, and the same \
                         families with ForSequenceClassification (linear score head) or \
                         ForMlpScore (UPS-RM head)";

/// Model family.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Architecture {
    /// Llama 2, 3 and models of that shape (SmolLM2, TinyLlama, llama2.c).
    Llama,
    /// Qwen2 and Qwen2.5: biases on query, key and value.
    Qwen2,
    /// Qwen3 dense: per-head norms of query and key, explicit head dimension.
    Qwen3,
}

impl Architecture {
    /// Prefix of the class names in transformers.
    pub fn family(self) -> &'static str {
        match self {
            Self::Llama => "Llama",
            Self::Qwen2 => "Qwen2",
            Self::Qwen3 => "Qwen3",
        }
    }

    fn from_model_type(model_type: &str) -> Option<Self> {
        match model_type {
            "llama" => Some(Self::Llama),
            "qwen2" => Some(Self::Qwen2),
            "qwen3" => Some(Self::Qwen3),
            _ => None,
        }
    }
}

/// What the model code needs to know about a checkpoint; the rest of `config.json` is kept
/// in [`ModelConfig::raw`] and written back on export.
#[derive(Debug, Clone)]
pub struct ModelConfig {
    /// Family.
    pub architecture: Architecture,
    /// The score head that the folder's `architectures` names; `None` for a language model.
    pub score_head: Option<ScoreHead>,
    /// V.
    pub vocab_size: i64,
    /// H.
    pub hidden_size: i64,
    /// I, width of the gated MLP.
    pub intermediate_size: i64,
    /// Number of decoder layers.
    pub num_hidden_layers: usize,
    /// Q, query heads.
    pub num_attention_heads: i64,
    /// K, key/value heads; divides Q.
    pub num_key_value_heads: i64,
    /// D, even.
    pub head_dim: i64,
    /// Longest context in tokens, rope scaling included.
    pub max_positions: i64,
    /// Epsilon of every RMS norm.
    pub rms_norm_eps: f64,
    /// Rotary embedding.
    pub rope: Rope,
    /// The output weight of a language model is the embedding weight.
    pub tie_word_embeddings: bool,
    /// Query, key and value projections have biases.
    pub qkv_bias: bool,
    /// The attention output projection has a bias.
    pub o_bias: bool,
    /// Gate, up and down projections have biases.
    pub mlp_bias: bool,
    /// RMS norm of each query and key head before rotation (Qwen3).
    pub qk_norm: bool,
    /// Sliding window in tokens (a token sees itself and `window - 1` before it) of each
    /// layer; `None` for full attention. One entry per layer.
    pub windows: Vec<Option<i64>>,
    /// All of `config.json`.
    pub raw: Map<String, Value>,
    path: PathBuf,
}

impl ModelConfig {
    /// Reads `config.json` in `folder`.
    ///
    /// # Errors
    /// If the file is missing, is not JSON, lacks a key, or asks for an architecture, activation,
    /// rope type or quantisation that is not supported; the message names it.
    pub fn from_folder(folder: &Path) -> Result<Self> {
        let path = folder.join("config.json");
        let text = std::fs::read_to_string(&path).map_err(|source| ModelError::Io {
            action: "read",
            path: path.clone(),
            source,
        })?;
        Self::from_json(&text, &path)
    }

    /// Reads a config from JSON text; `path` stands in for the file in error messages.
    ///
    /// # Errors
    /// As [`ModelConfig::from_folder`].
    pub fn from_json(text: &str, path: &Path) -> Result<Self> {
        let raw: Map<String, Value> = serde_json::from_str(text)
            .map_err(|source| ModelError::Json { path: path.to_owned(), source })?;
        let fields = Fields::new(path, "", &raw);
        let (architecture, score_head) = architecture(fields)?;
        refuse_unsupported(fields)?;
        let hidden_size = fields.required_size("hidden_size")?;
        let num_attention_heads = fields.required_size("num_attention_heads")?;
        let num_key_value_heads =
            fields.size("num_key_value_heads")?.unwrap_or(num_attention_heads);
        if num_attention_heads % num_key_value_heads != 0 {
            return Err(fields.wrong(
                "num_key_value_heads",
                format!("a divisor of num_attention_heads, {num_attention_heads}"),
            ));
        }
        let head_dim = head_dim(fields, architecture, hidden_size, num_attention_heads)?;
        let num_hidden_layers = layers(fields)?;
        let rope = Rope::from_config(fields)?;
        let max_positions = fields.required_size("max_position_embeddings")?;
        let attention_bias = fields.flag("attention_bias", false)?;
        let is_llama = architecture == Architecture::Llama;
        let mlp_bias = is_llama && fields.flag("mlp_bias", false)?;
        let windows = match architecture {
            Architecture::Llama => vec![None; num_hidden_layers],
            Architecture::Qwen2 | Architecture::Qwen3 => windows(fields, num_hidden_layers)?,
        };
        Ok(Self {
            architecture,
            score_head,
            vocab_size: fields.required_size("vocab_size")?,
            hidden_size,
            intermediate_size: fields.required_size("intermediate_size")?,
            num_hidden_layers,
            num_attention_heads,
            num_key_value_heads,
            head_dim,
            max_positions: (max_positions as f64 * rope.context_factor()) as i64,
            rms_norm_eps: fields.positive_number("rms_norm_eps")?.unwrap_or(1e-6),
            rope,
            tie_word_embeddings: fields.flag("tie_word_embeddings", false)?,
            qkv_bias: architecture == Architecture::Qwen2 || attention_bias,
            o_bias: architecture != Architecture::Qwen2 && attention_bias,
            mlp_bias,
            qk_norm: architecture == Architecture::Qwen3,
            windows,
            path: path.to_owned(),
            raw,
        })
    }

    /// The file this was read from, for messages.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Width of the query projection, `Q * D`.
    pub fn q_width(&self) -> i64 {
        self.num_attention_heads * self.head_dim
    }

    /// Width of the key projection and of the value projection, `K * D`.
    pub fn kv_width(&self) -> i64 {
        self.num_key_value_heads * self.head_dim
    }
}

/// Family and score head from `architectures` (checked against `model_type`), or from
/// `model_type` alone.
fn architecture(fields: Fields<'_>) -> Result<(Architecture, Option<ScoreHead>)> {
    let model_type = fields.text("model_type")?;
    let by_type = match model_type {
        None => None,
        Some(name) => Some(
            Architecture::from_model_type(name)
                .ok_or_else(|| fields.unsupported("model type", name, "llama, qwen2, qwen3"))?,
        ),
    };
    let class = match fields.value("architectures") {
        None => None,
        Some(value) => Some(
            value
                .as_array()
                .filter(|names| names.len() == 1)
                .and_then(|names| names[0].as_str())
                .ok_or_else(|| fields.wrong("architectures", "a list of one class name"))?,
        ),
    };
    let Some(class) = class else {
        let family = by_type.ok_or_else(|| fields.wrong("model_type", "llama, qwen2 or qwen3"))?;
        return Ok((family, None));
    };
    let refused = || fields.unsupported("architecture", class, SUPPORTED);
    let family = [Architecture::Llama, Architecture::Qwen2, Architecture::Qwen3]
        .into_iter()
        .find(|a| class.strip_prefix(a.family()).is_some_and(|rest| rest.starts_with("For")))
        .ok_or_else(refused)?;
    if by_type.is_some_and(|t| t != family) {
        return Err(fields.wrong("model_type", format!("the type of {class}")));
    }
    let head = match class.strip_prefix(family.family()) {
        Some("ForCausalLM") => None,
        Some("ForSequenceClassification") => {
            check_one_label(fields)?;
            Some(ScoreHead::Linear)
        }
        Some("ForMlpScore") => {
            let dims = fields.text("hidden_dim_str")?.ok_or_else(|| {
                fields.wrong("hidden_dim_str", "hidden widths such as \"512,64\"")
            })?;
            let expected = "hidden widths such as \"512,64\"";
            let head = ScoreHead::from_hidden_dim_str(dims);
            Some(head.map_err(|_| fields.wrong("hidden_dim_str", expected))?)
        }
        _ => return Err(refused()),
    };
    Ok((family, head))
}

/// A sequence classifier must have one output. transformers stores the number as the size of
/// `id2label`, and leaves both keys out for its default, two.
fn check_one_label(fields: Fields<'_>) -> Result<()> {
    let labels = match (fields.object("id2label")?, fields.size("num_labels")?) {
        (Some(map), _) => map.len() as i64,
        (None, Some(n)) => n,
        (None, None) => return Err(fields.wrong("id2label", "one label (a single score)")),
    };
    if labels != 1 {
        let key = if fields.value("id2label").is_some() { "id2label" } else { "num_labels" };
        return Err(fields.wrong(key, "one label (a single score)"));
    }
    Ok(())
}

fn refuse_unsupported(fields: Fields<'_>) -> Result<()> {
    let activation = fields.text("hidden_act")?.unwrap_or("silu");
    if !matches!(activation, "silu" | "swish") {
        return Err(fields.unsupported("activation", activation, "silu"));
    }
    if let Some(quantisation) = fields.object("quantization_config")? {
        let method = quantisation.get("quant_method").and_then(Value::as_str).unwrap_or("unnamed");
        return Err(fields.unsupported(
            "quantisation",
            method,
            "unquantised f32, bf16 and f16 checkpoints",
        ));
    }
    Ok(())
}

fn head_dim(
    fields: Fields<'_>,
    architecture: Architecture,
    hidden_size: i64,
    num_attention_heads: i64,
) -> Result<i64> {
    let head_dim = match fields.size("head_dim")? {
        Some(dim) => dim,
        // transformers' Qwen3Config has this default; the others divide.
        None if architecture == Architecture::Qwen3 => 128,
        None if hidden_size % num_attention_heads == 0 => hidden_size / num_attention_heads,
        None => {
            return Err(fields.wrong(
                "num_attention_heads",
                format!("a divisor of hidden_size, {hidden_size}, or an explicit head_dim"),
            ));
        }
    };
    if head_dim % 2 != 0 || head_dim > 1024 {
        return Err(ModelError::Config {
            path: fields.path().to_owned(),
            key: "head_dim".into(),
            found: head_dim.to_string(),
            expected: "an even number up to 1024".into(),
        });
    }
    Ok(head_dim)
}

fn layers(fields: Fields<'_>) -> Result<usize> {
    let layers = fields.required_size("num_hidden_layers")?;
    if layers > 4096 {
        return Err(fields.wrong("num_hidden_layers", "at most 4096 layers"));
    }
    Ok(layers as usize)
}

/// Sliding windows as transformers' Qwen2 and Qwen3 configs derive them.
fn windows(fields: Fields<'_>, layers: usize) -> Result<Vec<Option<i64>>> {
    let window = if fields.flag("use_sliding_window", false)? {
        Some(fields.size("sliding_window")?.unwrap_or(4096))
    } else {
        None
    };
    let Some(types) = fields.value("layer_types") else {
        // Layers from this index on use the window; transformers' default is 28, and 0 is legal.
        let first = match fields.value("max_window_layers") {
            None => 28,
            Some(v) => v
                .as_u64()
                .ok_or_else(|| fields.wrong("max_window_layers", "a whole number from 0"))?,
        };
        return Ok((0..layers as u64).map(|i| window.filter(|_| i >= first)).collect());
    };
    let types = types
        .as_array()
        .filter(|types| types.len() == layers)
        .ok_or_else(|| fields.wrong("layer_types", format!("a list of {layers} names")))?;
    types
        .iter()
        .map(|name| match (name.as_str(), window) {
            (Some("full_attention"), _) => Ok(None),
            (Some("sliding_attention"), Some(window)) => Ok(Some(window)),
            (Some("sliding_attention"), None) => Err(fields
                .wrong("use_sliding_window", "true, because layer_types has sliding_attention")),
            _ => Err(fields.unsupported(
                "layer type",
                name.to_string(),
                "full_attention, sliding_attention",
            )),
        })
        .collect()
}
