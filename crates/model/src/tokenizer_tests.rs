use serde_json::json;

use super::*;

/// A byte-level tokenizer of five tokens: "é" is two of them, as its bytes C3 and A9 are.
fn folder(files: &[(&str, serde_json::Value)]) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let tokenizer = json!({
        "version": "1.0", "truncation": null, "padding": null,
        "added_tokens": [{"id": 4, "content": "<end>", "single_word": false, "lstrip": false, "rstrip": false, "normalized": false, "special": true}],
        "normalizer": null,
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true},
        "post_processor": null,
        "decoder": {"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true},
        "model": {"type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false, "ignore_merges": false,
            "vocab": {"a": 0, "Ã": 1, "©": 2, "Ġ": 3}, "merges": []},
    });
    for (name, value) in files.iter().chain([&("tokenizer.json", tokenizer)]) {
        std::fs::write(folder.path().join(name), value.to_string()).unwrap();
    }
    folder
}

fn read(files: &[(&str, serde_json::Value)]) -> Result<Tokenizer, TokenizerError> {
    Tokenizer::from_folder(folder(files).path())
}

#[test]
fn eos_ids_come_from_the_first_file_that_has_them() {
    let generation = ("generation_config.json", json!({"eos_token_id": [4, 0, 4]}));
    let config = ("config.json", json!({"eos_token_id": 2}));
    let named =
        ("tokenizer_config.json", json!({"eos_token": {"content": "<end>"}, "bos_token": "a"}));
    assert_eq!(read(&[generation, config.clone(), named.clone()]).unwrap().eos_ids(), [0, 4]);
    assert_eq!(
        read(&[("generation_config.json", json!({"eos_token_id": null})), config])
            .unwrap()
            .eos_ids(),
        [2]
    );
    let tokenizer = read(&[named]).unwrap();
    assert_eq!(
        (tokenizer.eos_ids(), tokenizer.eos_token(), tokenizer.bos_token()),
        ([4].as_slice(), Some("<end>"), Some("a"))
    );
}

#[test]
fn a_tokenizer_without_an_end_is_an_error_that_names_the_fix() {
    let message = read(&[("config.json", json!({}))]).unwrap_err().to_string();
    assert!(message.contains("has no end-of-sequence token; set `eos_token_id`"), "{message}");
    let message = read(&[("config.json", json!({"eos_token_id": 99}))]).unwrap_err().to_string();
    assert!(message.ends_with("eos id 99 is outside the vocabulary of 5 tokens"), "{message}");
    let message = read(&[("config.json", json!({"eos_token_id": "x"}))]).unwrap_err().to_string();
    assert!(message.contains("expected a token id or a list of them"), "{message}");
}

#[test]
fn broken_files_are_named() {
    let work = tempfile::tempdir().unwrap();
    let message = Tokenizer::from_folder(work.path()).unwrap_err().to_string();
    assert!(message.starts_with("cannot read ") && message.contains("tokenizer.json"), "{message}");
    std::fs::write(work.path().join("tokenizer.json"), "{").unwrap();
    let message = Tokenizer::from_folder(work.path()).unwrap_err().to_string();
    assert!(message.contains("tokenizer.json: not a tokenizer: "), "{message}");
}

#[test]
fn a_character_split_over_tokens_is_held_back_until_it_is_whole() {
    let tokenizer = read(&[("config.json", json!({"eos_token_id": 4}))]).unwrap();
    assert_eq!(tokenizer.encode("aé a<end>", false).unwrap(), [0, 1, 2, 3, 0, 4]);
    let mut stream = tokenizer.incremental(true);
    let pieces: Vec<String> =
        [0, 1, 2, 3, 0, 4].iter().map(|&id| stream.push(id).unwrap()).collect();
    assert_eq!(pieces, ["a", "", "é", " ", "a", ""]);
    let mut cut = tokenizer.incremental(true);
    assert_eq!(cut.push(1).unwrap(), "");
    assert_eq!(cut.finish().unwrap(), "\u{FFFD}");
}
