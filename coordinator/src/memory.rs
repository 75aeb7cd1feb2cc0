//! What a recipe's processes will hold, from the `config.json` files that it names, and what this
//! machine has.

use std::path::{Path, PathBuf};

use plumb_config::Recipe;
use plumb_config::memory::{DecoderShape, Head, Machine, ModelShapes};
use serde_json::Value;

/// A model's shape or this machine's memory is not known.
#[derive(Debug, thiserror::Error)]
pub enum MemoryError {
    /// A file that is there but cannot be read.
    #[error("cannot read {}", .path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// A file that is no `config.json` of a decoder.
    #[error("{}: {problem}", .path.display())]
    Config {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        problem: String,
    },
    /// The system does not say what it has.
    #[error(transparent)]
    Node(#[from] crate::agent::node::NodeError),
}

/// Shapes of the models that a recipe names; `None` where the policy's folder is not there (yet).
///
/// # Errors
/// A `config.json` that is there but is none of a decoder.
pub fn model_shapes(recipe: &Recipe, base_dir: &Path) -> Result<Option<ModelShapes>, MemoryError> {
    let Some((policy, _)) = read_shape(&base_dir.join(&recipe.model.path))? else {
        return Ok(None);
    };
    let mut components = std::collections::BTreeMap::new();
    for name in recipe.reward.component.iter().filter_map(|c| c.model.as_ref()) {
        if let Some(found) = read_shape(&base_dir.join(name))? {
            components.insert(name.clone(), found);
        }
    }
    Ok(Some(ModelShapes { policy, components }))
}

/// This machine, or one of `memory_gib` of main memory.
///
/// # Errors
/// The system does not say.
pub fn machine(memory_gib: Option<f64>) -> Result<Machine, MemoryError> {
    let resources = crate::agent::node::resources(None)?;
    let gib = f64::from(1u32 << 30);
    Ok(Machine {
        memory_bytes: memory_gib.map_or(resources.memory_bytes, |gibs| (gibs * gib) as u64),
        gpu_bytes: resources.gpus.iter().map(|gpu| gpu.memory_bytes).collect(),
    })
}

fn read_shape(folder: &Path) -> Result<Option<(DecoderShape, Head)>, MemoryError> {
    let path = folder.join("config.json");
    if !path.is_file() {
        return Ok(None);
    }
    let text = std::fs::read_to_string(&path)
        .map_err(|source| MemoryError::Read { path: path.clone(), source })?;
    shape(&text).map(Some).map_err(|problem| MemoryError::Config { path, problem })
}

/// Shape and head that a `config.json` describes.
fn shape(text: &str) -> Result<(DecoderShape, Head), String> {
    let config: Value = serde_json::from_str(text).map_err(|e| format!("is not JSON: {e}"))?;
    let number = |key: &str| match config[key].as_u64() {
        Some(number) if number > 0 => Ok(number),
        _ => Err(format!("has no number above 0 under {key:?}")),
    };
    let flag = |key: &str| config[key].as_bool().unwrap_or(false);
    let (hidden, heads) = (number("hidden_size")?, number("num_attention_heads")?);
    let family = config["model_type"].as_str().unwrap_or_default();
    let (qwen2, qwen3) = (family == "qwen2", family == "qwen3");
    let bias = flag("attention_bias");
    let shape = DecoderShape {
        hidden,
        intermediate: number("intermediate_size")?,
        layers: number("num_hidden_layers")?,
        heads,
        kv_heads: config["num_key_value_heads"].as_u64().unwrap_or(heads),
        head_width: config["head_dim"].as_u64().unwrap_or(hidden / heads),
        vocabulary: number("vocab_size")?,
        tied: flag("tie_word_embeddings"),
        qkv_bias: qwen2 || bias,
        o_bias: !qwen2 && bias,
        mlp_bias: family == "llama" && flag("mlp_bias"),
        qk_norm: qwen3,
    };
    Ok((shape, head(&config)))
}

/// The head that `architectures` names; the widths of an MLP's layers stand beside it.
fn head(config: &Value) -> Head {
    let architecture = config["architectures"][0].as_str().unwrap_or_default();
    let scores = ["ForSequenceClassification", "ForMlpScore"];
    if !scores.iter().any(|suffix| architecture.ends_with(suffix)) {
        return Head::LanguageModel;
    }
    let widths = config["hidden_dim_str"].as_str().unwrap_or_default().split(',');
    Head::Score { hidden_widths: widths.filter_map(|width| width.trim().parse().ok()).collect() }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SMOLLM2: &str = r#"{"model_type":"llama","hidden_size":576,"num_hidden_layers":30,
        "num_attention_heads":9,"num_key_value_heads":3,"intermediate_size":1536,
        "vocab_size":49152,"tie_word_embeddings":true}"#;

    #[test]
    fn parameters_of_known_models_are_counted() {
        let (found, head) = shape(SMOLLM2).unwrap();
        assert_eq!(found.parameters(&head), 134_515_008);
        // Qwen2 has biases on query, key and value: 30 x (576 + 2 x 192) more.
        let (found, head) = shape(&SMOLLM2.replace("llama", "qwen2")).unwrap();
        assert_eq!(found.parameters(&head), 134_515_008 + 30 * 960);
        let score = r#""architectures":["LlamaForSequenceClassification"],"model_type""#;
        let (found, head) = shape(&SMOLLM2.replace("\"model_type\"", score)).unwrap();
        assert_eq!(found.parameters(&head), 134_515_008 + 576);
        let mlp = r#""architectures":["LlamaForMlpScore"],"hidden_dim_str":"8, 4","model_type""#;
        let (_, head) = shape(&SMOLLM2.replace("\"model_type\"", mlp)).unwrap();
        assert_eq!(head, Head::Score { hidden_widths: vec![8, 4] });
    }

    #[test]
    fn a_config_that_is_none_is_named() {
        let problem = shape(&SMOLLM2.replace("576", "0")).unwrap_err();
        assert!(problem.contains("hidden_size"), "{problem}");
        assert!(shape("[").unwrap_err().contains("not JSON"));
        let folder = tempfile::tempdir().unwrap();
        assert!(read_shape(folder.path()).unwrap().is_none());
        std::fs::write(folder.path().join("config.json"), "{}").unwrap();
        let error = read_shape(folder.path()).unwrap_err().to_string();
        assert!(error.contains("config.json") && error.contains("hidden_size"), "{error}");
    }

    #[test]
    fn a_machine_may_be_given() {
        assert_eq!(machine(Some(1.5)).unwrap().memory_bytes, 3 << 29);
        assert!(machine(None).unwrap().memory_bytes > 1 << 28);
    }
}
