//! Commands on model folders that need no cluster.

use std::path::{Path, PathBuf};

use anyhow::Context;
use plumb_model::{Decoder, HeadSpec, ModelConfig, TensorSource};
use serde_json::json;

/// Turns a model file into a Hugging Face folder.
///
/// # Errors
/// A file that is not understood, a folder that is there already.
pub(crate) fn import(
    source: &Path,
    tokenizer: Option<&Path>,
    destination: &Path,
) -> anyhow::Result<()> {
    let report = plumb_model::import::import(source, tokenizer, destination)
        .with_context(|| format!("importing {}", source.display()))?;
    print(&serde_json::to_string(&report)?);
    Ok(())
}

/// Fetches a model from the hub and prints its folder.
///
/// # Errors
/// A hub that cannot be reached, an id that it does not have.
pub(crate) fn fetch(id: &str, cache: Option<PathBuf>) -> anyhow::Result<()> {
    let cache = cache.or_else(default_cache).context("neither --cache, HF_HOME nor HOME is set")?;
    print(&plumb_model::hub::fetch(id, &cache)?.display().to_string());
    Ok(())
}

/// Where Hugging Face's own programs keep models.
fn default_cache() -> Option<PathBuf> {
    let variable = |name| std::env::var_os(name).map(PathBuf::from);
    let home = variable("HF_HOME");
    let home = home.or_else(|| Some(variable("HOME")?.join(".cache").join("huggingface")));
    Some(home?.join("hub"))
}

/// Prints architecture, parameters, vocabulary and element type of a folder, after checking that
/// every tensor is there in its shape.
///
/// # Errors
/// What is wrong with the folder.
pub(crate) fn inspect(folder: &Path) -> anyhow::Result<()> {
    let facts = facts(folder).with_context(|| format!("inspecting {}", folder.display()))?;
    print(&facts.to_string());
    Ok(())
}

/// One line on stdout: a command's result.
#[allow(clippy::print_stdout)]
pub(crate) fn print(line: &str) {
    println!("{line}");
}

fn facts(folder: &Path) -> anyhow::Result<serde_json::Value> {
    let config = ModelConfig::from_folder(folder)?;
    let head = match &config.score_head {
        None => HeadSpec::CausalLm,
        Some(head) => HeadSpec::Score(head.clone()),
    };
    let decoder = Decoder::new(config)?;
    let specs = decoder.blocks(&head);
    let source = TensorSource::open(folder)?;
    source.check(&specs, false)?;
    if head == HeadSpec::CausalLm {
        // A model that generates needs a tokenizer that knows where answers end.
        plumb_model::Tokenizer::from_folder(folder)?;
    }
    let first = specs.first().and_then(|spec| spec.params.first());
    let kind = first.and_then(|param| source.kind(&param.name));
    let dtype = match kind {
        Some(tch::Kind::BFloat16) => "bf16",
        Some(tch::Kind::Half) => "fp16",
        _ => "fp32",
    };
    let config = decoder.config();
    Ok(json!({
        "architecture": config.architecture.family(),
        "head": if head == HeadSpec::CausalLm { "language model" } else { "score" },
        "parameters": specs.iter().map(|spec| spec.numel()).sum::<i64>(),
        "layers": config.num_hidden_layers,
        "hidden_size": config.hidden_size,
        "vocabulary": config.vocab_size,
        "max_positions": config.max_positions,
        "tied_embeddings": config.tie_word_embeddings,
        "dtype": dtype,
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_without_config_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let error = format!("{:#}", inspect(folder.path()).unwrap_err());
        assert!(error.contains("inspecting") && error.contains("config.json"), "{error}");
    }
}
