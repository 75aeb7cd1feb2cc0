//! `tokenizer.json` of a byte-level BPE.

use serde_json::{Value, json};

/// How text is cut before BPE, by llama.cpp's name of the pre-tokenizer.
pub(super) fn pre_tokenizer(name: &str) -> Option<Value> {
    let byte_level = |use_regex: bool| json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": use_regex});
    let split = |pattern: &str| json!({"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": false});
    let sequence = |parts: [Value; 2]| json!({"type": "Sequence", "pretokenizers": parts});
    match name {
        "default" | "gpt-2" => Some(byte_level(true)),
        "smollm" | "starcoder" | "refact" => {
            Some(sequence([json!({"type": "Digits", "individual_digits": true}), byte_level(true)]))
        }
        "qwen2" => Some(sequence([split(&cl100k_pattern("\\p{N}")), byte_level(false)])),
        "llama-bpe" | "llama3" => {
            Some(sequence([split(&cl100k_pattern("\\p{N}{1,3}")), byte_level(false)]))
        }
        _ => None,
    }
}

/// The names that [`pre_tokenizer`] knows.
pub(super) const SUPPORTED: &str = "default, gpt-2, smollm, starcoder, refact, qwen2, llama-bpe";

/// The cutting rule of OpenAI's cl100k family, which differs between models in how many digits
/// stay together.
fn cl100k_pattern(digits: &str) -> String {
    format!(
        "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{{L}}\\p{{N}}]?\\p{{L}}+|{digits}| ?[^\\s\\p{{L}}\\p{{N}}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+"
    )
}

/// An added token as tokenizer.json lists it.
pub(super) fn added_token(id: usize, content: &str, special: bool) -> Value {
    json!({
        "id": id, "content": content, "single_word": false, "lstrip": false, "rstrip": false,
        "normalized": false, "special": special,
    })
}

/// A post-processor that puts `token` before each text.
pub(super) fn prepend(token: &str, id: u64) -> Value {
    let special = json!({"SpecialToken": {"id": token, "type_id": 0}});
    let sequence = |id: &str| json!({"Sequence": {"id": id, "type_id": 0}});
    json!({
        "type": "TemplateProcessing",
        "single": [special, sequence("A")],
        "pair": [special, sequence("A"), special, sequence("B")],
        "special_tokens": {token: {"id": token, "ids": [id], "tokens": [token]}},
    })
}

/// A byte-level BPE as `tokenizer.json`.
pub(super) fn tokenizer_json(
    pre: &str,
    vocab: &[String],
    merges: &[[String; 2]],
    added: Vec<Value>,
    post_processor: Option<Value>,
) -> Option<Value> {
    let vocab: serde_json::Map<String, Value> =
        vocab.iter().enumerate().map(|(id, token)| (token.clone(), json!(id))).collect();
    let whole_words_first = matches!(pre, "llama-bpe" | "llama3");
    Some(json!({
        "version": "1.0",
        "truncation": null,
        "padding": null,
        "added_tokens": added,
        "normalizer": if pre == "qwen2" { json!({"type": "NFC"}) } else { Value::Null },
        "pre_tokenizer": pre_tokenizer(pre)?,
        "post_processor": post_processor,
        "decoder": {"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true},
        "model": {
            "type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false,
            "ignore_merges": whole_words_first, "vocab": vocab, "merges": merges,
        },
    }))
}
