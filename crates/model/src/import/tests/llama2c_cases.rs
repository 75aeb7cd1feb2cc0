use std::path::{Path, PathBuf};

use super::fixture::{json, safetensors};
use crate::import::{ImportError, import};
use crate::tokenizer::Tokenizer;

const TOK512: &[u8] = include_bytes!("../../testdata/tok512.bin");

/// Width 8, hidden 12, 2 layers, 2 heads of 4, 1 key/value head, 512 tokens, context 16; the
/// numbers count up through the file.
fn checkpoint() -> Vec<u8> {
    let header = [8i32, 12, 2, 2, 1, 512, 16];
    let layer = 8 + 64 + 32 + 32 + 64 + 8 + 96 * 3;
    let floats = 512 * 8 + 2 * layer + 8 + 2 * 16 * 2;
    header
        .iter()
        .flat_map(|w| w.to_le_bytes())
        .chain((0..floats).flat_map(|i| (i as f32).to_le_bytes()))
        .collect()
}

fn write(folder: &Path, name: &str, bytes: &[u8]) -> PathBuf {
    let path = folder.join(name);
    std::fs::write(&path, bytes).unwrap();
    path
}

#[test]
fn tensors_lie_layer_by_layer_within_each_kind() {
    let work = tempfile::tempdir().unwrap();
    let source = write(work.path(), "model.bin", &checkpoint());
    let vocabulary = write(work.path(), "tok512.bin", TOK512);
    let folder = work.path().join("model");
    let report = import(&source, Some(&vocabulary), &folder).unwrap();
    assert_eq!((report.format, report.tensors, report.vocab_size), ("llama2.c", 2 * 9 + 2, 512));
    let tensors = safetensors(&folder);
    let first = |name: &str| tensors[name].1[0];
    let embedding = 512.0 * 8.0;
    assert_eq!(first("model.layers.1.input_layernorm.weight"), embedding + 8.0);
    // q: behind two norms of 8, the second layer's 64 on; its second row is the third of the file.
    let q = &tensors["model.layers.1.self_attn.q_proj.weight"].1;
    assert_eq!((q[0], q[8]), (embedding + 16.0 + 64.0, embedding + 16.0 + 64.0 + 16.0));
    let k = &tensors["model.layers.0.self_attn.k_proj.weight"];
    assert_eq!((k.0.as_slice(), k.1[8] - k.1[0]), ([4, 8].as_slice(), 16.0));
    // Norms, q, k, v, o, norms, then gate, down, up.
    let gate = embedding + 2.0 * (8.0 + 64.0 + 32.0 + 32.0 + 64.0 + 8.0);
    assert_eq!(first("model.layers.0.mlp.gate_proj.weight"), gate);
    assert_eq!(first("model.layers.0.mlp.down_proj.weight"), gate + 2.0 * 96.0);
    assert_eq!(first("model.layers.0.mlp.up_proj.weight"), gate + 4.0 * 96.0);
    assert_eq!(first("model.norm.weight"), gate + 6.0 * 96.0);
    let config = json(&folder, "config.json");
    assert_eq!(
        (config["num_key_value_heads"].as_u64(), config["tie_word_embeddings"].as_bool()),
        (Some(1), Some(true))
    );
}

/// Ids of texts by the tokenizer.json that agrees with sentencepiece on 1,502 texts.
#[test]
fn the_sentencepiece_tokenizer_agrees_with_its_original() {
    let work = tempfile::tempdir().unwrap();
    let joined = [checkpoint(), TOK512.to_vec()].concat();
    let source = write(work.path(), "joined.bin", &joined);
    let folder = work.path().join("model");
    import(&source, None, &folder).unwrap();
    let tokenizer = Tokenizer::from_folder(&folder).unwrap();
    assert_eq!((tokenizer.eos_ids(), tokenizer.bos_token()), ([2].as_slice(), Some("<s>")));
    let cases: serde_json::Value =
        serde_json::from_str(include_str!("../../testdata/stories260k_tokens.json")).unwrap();
    for case in cases.as_array().unwrap() {
        let text = case["text"].as_str().unwrap();
        let ids: Vec<u32> = serde_json::from_value(case["ids"].clone()).unwrap();
        assert_eq!(tokenizer.encode(text, true).unwrap(), ids, "{text:?}");
        assert_eq!(
            tokenizer.decode(&ids, true).unwrap(),
            case["decoded"].as_str().unwrap(),
            "{text:?}"
        );
        let mut stream = tokenizer.incremental(true);
        let mut pieces: String = ids.iter().map(|&id| stream.push(id).unwrap()).collect();
        pieces += &stream.finish().unwrap();
        assert_eq!(pieces, case["decoded"].as_str().unwrap(), "{text:?} token by token");
    }
}

#[test]
fn truncated_or_foreign_files_are_refused() {
    let work = tempfile::tempdir().unwrap();
    let folder = work.path().join("model");
    let vocabulary = write(work.path(), "tok512.bin", TOK512);
    let whole = checkpoint();
    for length in [0, 3, 27, 28, 1000, whole.len() - 1] {
        let source = write(work.path(), "cut.bin", &whole[..length]);
        let error = import(&source, Some(&vocabulary), &folder).unwrap_err();
        assert!(matches!(error, ImportError::Truncated { .. }), "{length}: {error}");
    }
    let source = write(work.path(), "model.bin", &whole);
    for length in [0, 11, 5000, TOK512.len() - 1] {
        let cut = write(work.path(), "cut512.bin", &TOK512[..length]);
        let message = import(&source, Some(&cut), &folder).unwrap_err().to_string();
        assert!(message.contains("cut512.bin: truncated: "), "{length}: {message}");
    }
    let message = import(&source, None, &folder).unwrap_err().to_string();
    assert!(message.contains("without a tokenizer; name its tokenizer file"), "{message}");
    let text = write(work.path(), "notes.txt", b"Not a model at all, only forty bytes long");
    let message = import(&text, None, &folder).unwrap_err().to_string();
    assert!(message.contains("neither a GGUF file nor a llama2.c checkpoint"), "{message}");
    let versioned = write(
        work.path(),
        "v1.bin",
        &[&0x616b_3432u32.to_le_bytes()[..], &1u32.to_le_bytes(), &[0; 300]].concat(),
    );
    let message = import(&versioned, None, &folder).unwrap_err().to_string();
    assert!(message.contains("llama2.c checkpoint version `1` is not supported"), "{message}");
    assert!(!folder.exists());
}
