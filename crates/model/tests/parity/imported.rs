//! Models too large to commit: imported from `.assets` where it has them.

use std::path::{Path, PathBuf};

use tch::Kind;

use crate::vectors::{check_log_probs, language_model, vectors};

/// The first file below the project's `.assets` folder whose name ends so.
fn asset(ending: &str) -> Option<PathBuf> {
    fn search(folder: &Path, ending: &str) -> Option<PathBuf> {
        let mut paths: Vec<PathBuf> =
            std::fs::read_dir(folder).ok()?.flatten().map(|entry| entry.path()).collect();
        paths.sort();
        let file = paths.iter().find(|p| p.is_file() && p.to_string_lossy().ends_with(ending));
        file.cloned()
            .or_else(|| paths.iter().filter(|p| p.is_dir()).find_map(|p| search(p, ending)))
    }
    search(&Path::new(env!("CARGO_MANIFEST_DIR")).join("../../.assets"), ending)
}

fn check_import(name: &str, ending: &str, tokenizer: Option<&str>) {
    let (Some(path), tokenizer) = (asset(ending), tokenizer.and_then(asset)) else {
        println!(
            "SKIPPED {name}: no *{ending} below .assets (`make quickstart` fetches it; scripts/fetch_models.py)"
        );
        return;
    };
    let folder = tempfile::tempdir().unwrap();
    let target = folder.path().join(name);
    plumb_model::import::import(&path, tokenizer.as_deref(), &target).unwrap();
    let (decoder, weights) = language_model(&target, Kind::Float);
    check_log_probs(name, &vectors()[name], &decoder, &weights);
}

#[test]
fn stories15m_from_llama2c_agrees_with_transformers() {
    check_import("stories15m", "stories15M.bin", Some("llama2c-tokenizer.bin"));
}

#[test]
fn smollm2_from_gguf_agrees_with_transformers() {
    check_import("smollm2-135m-instruct", "SmolLM2-135M-Instruct.Q4_1.gguf", None);
}
