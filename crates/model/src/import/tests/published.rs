//! Published models, where `make models` (scripts/fetch_models.py) has fetched them. Expected
//! values were written by transformers, tokenizers and gguf in Python.

use std::path::{Path, PathBuf};

use super::fixture::safetensors;
use crate::import::import;
use crate::tokenizer::Tokenizer;

/// The file, or `None` (said aloud) where it was not fetched.
fn asset(name: &str) -> Option<PathBuf> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../.assets").join(name);
    if path.is_file() {
        return Some(path);
    }
    println!("SKIPPED: {} is absent; scripts/fetch_models.py fetches it", path.display());
    None
}

#[test]
fn smollm2_has_the_tokens_and_weights_that_python_reads() {
    let Some(source) = asset("SmolLM2-135M-Instruct.Q4_1.gguf") else { return };
    let work = tempfile::tempdir().unwrap();
    let folder = work.path().join("smollm2");
    let report = import(&source, None, &folder).unwrap();
    assert_eq!((report.tensors, report.parameters, report.vocab_size), (272, 134_515_008, 49152));
    assert!(report.chat_template);
    let expected: serde_json::Value =
        serde_json::from_str(include_str!("../../testdata/smollm2.json")).unwrap();
    let tokenizer = Tokenizer::from_folder(&folder).unwrap();
    for case in expected["tokens"].as_array().unwrap() {
        let text = case["text"].as_str().unwrap();
        let ids: Vec<u32> = serde_json::from_value(case["ids"].clone()).unwrap();
        assert_eq!(tokenizer.encode(text, false).unwrap(), ids, "{text:?}");
        assert_eq!(tokenizer.decode(&ids, false).unwrap(), text);
    }
    let tensors = safetensors(&folder);
    for (name, case) in expected["tensors"].as_object().unwrap() {
        let (shape, values) = &tensors[name];
        assert_eq!(serde_json::json!(shape), case["shape"], "{name}");
        for (at, value) in
            case["at"].as_array().unwrap().iter().zip(case["values"].as_array().unwrap())
        {
            assert_eq!(
                f64::from(values[at.as_u64().unwrap() as usize]),
                value.as_f64().unwrap(),
                "{name}[{at}]"
            );
        }
        let sum: f64 = values.iter().map(|v| f64::from(v.abs())).sum();
        assert!((sum / case["abs_sum"].as_f64().unwrap() - 1.0).abs() < 1e-9, "{name}");
    }
}

#[test]
fn stories15m_reads_back_its_own_stories() {
    let (Some(source), Some(vocabulary)) =
        (asset("stories15M.bin"), asset("llama2c-tokenizer.bin"))
    else {
        return;
    };
    let work = tempfile::tempdir().unwrap();
    let folder = work.path().join("stories15m");
    let report = import(&source, Some(&vocabulary), &folder).unwrap();
    assert_eq!((report.tensors, report.vocab_size), (6 * 9 + 2, 32000));
    let tokenizer = Tokenizer::from_folder(&folder).unwrap();
    // Llama 2's ids of this opening, as its tokenizer is documented to give them.
    let ids = tokenizer.encode("Once upon a time", true).unwrap();
    assert_eq!(ids, [1, 9038, 2501, 263, 931]);
    assert_eq!(tokenizer.decode(&ids, true).unwrap(), "Once upon a time");
}
