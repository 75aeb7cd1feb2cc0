//! `plumb explain`.

use std::path::Path;

use anyhow::Context as _;
use plumb_config::{Recipe, derive};

use super::Ended;
use super::args::RecipeArgs;

pub(super) fn run(args: &RecipeArgs) -> anyhow::Result<Ended> {
    let recipe = Recipe::read(&args.recipe, &args.set)?;
    let base = args.recipe.parent().unwrap_or(Path::new("."));
    let folder = base.join(&recipe.model.path);
    let shape = if folder.join("config.json").is_file() {
        Some(shape(&folder)?)
    } else {
        eprintln!("{} is not there; memory is left out", folder.join("config.json").display());
        None
    };
    print!("{}", derive::explain(&recipe, shape));
    Ok(Ended::Well)
}

/// Sizes of a decoder from its `config.json`.
fn shape(folder: &Path) -> anyhow::Result<derive::ModelShape> {
    let path = folder.join("config.json");
    let text =
        std::fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
    let config: serde_json::Value =
        serde_json::from_str(&text).with_context(|| format!("{} is not JSON", path.display()))?;
    let number = |key: &str| {
        config[key].as_u64().with_context(|| format!("{} has no number {key:?}", path.display()))
    };
    let (hidden, layers) = (number("hidden_size")?, number("num_hidden_layers")?);
    let (heads, vocabulary) = (number("num_attention_heads")?, number("vocab_size")?);
    let intermediate = number("intermediate_size")?;
    let kv_heads = config["num_key_value_heads"].as_u64().unwrap_or(heads);
    let head_width = config["head_dim"].as_u64().unwrap_or(hidden / heads.max(1));
    let kv_width = kv_heads * head_width;
    let attention = hidden * heads * head_width * 2 + hidden * kv_width * 2;
    let layer = attention + 3 * hidden * intermediate + 2 * hidden;
    let tied = config["tie_word_embeddings"].as_bool().unwrap_or(false);
    let tables = if tied { 1 } else { 2 };
    let parameters = layers * layer + tables * vocabulary * hidden + hidden;
    Ok(derive::ModelShape { parameters, hidden, layers, kv_width, vocabulary })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parameters_of_a_known_model_are_counted() {
        // SmolLM2-135M: 134,515,008 parameters.
        let folder = std::env::temp_dir().join(format!("plumb-explain-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        std::fs::write(
            folder.join("config.json"),
            r#"{"hidden_size":576,"num_hidden_layers":30,"num_attention_heads":9,
                "num_key_value_heads":3,"intermediate_size":1536,"vocab_size":49152,
                "tie_word_embeddings":true}"#,
        )
        .unwrap();
        let shape = shape(&folder);
        std::fs::remove_dir_all(&folder).unwrap();
        assert_eq!(shape.unwrap().parameters, 134_515_008);
    }
}
