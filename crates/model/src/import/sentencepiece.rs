//! `tokenizer.json` of a sentencepiece BPE with byte fallback, from its pieces and scores.

use std::collections::HashMap;

use serde_json::{Value, json};

use super::byte_level::prepend;

/// Sentencepiece's visible space.
const SPACE: &str = "\u{2581}";

/// A piece of the vocabulary; its id is its place in the list.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Piece {
    pub(super) text: String,
    /// Higher merges earlier.
    pub(super) score: f64,
}

/// How spaces are treated before the pieces are matched.
#[derive(Debug, Clone, Copy)]
pub(super) struct Whitespace {
    /// A space is put before the text.
    pub(super) prefix: bool,
    /// Runs of spaces become one; spaces at the ends go.
    pub(super) collapse: bool,
}

/// A sentencepiece BPE as `tokenizer.json`; `bos` is put before each text.
pub(super) fn tokenizer_json(
    pieces: &[Piece],
    added: Vec<Value>,
    bos: Option<u64>,
    whitespace: Whitespace,
) -> Value {
    let vocab: serde_json::Map<String, Value> =
        pieces.iter().enumerate().map(|(id, piece)| (piece.text.clone(), json!(id))).collect();
    let unknown = pieces.first().map(|p| p.text.clone());
    let replace = |pattern: Value, content: &str| json!({"type": "Replace", "pattern": pattern, "content": content});
    let mut normalizers = Vec::new();
    if whitespace.collapse {
        normalizers.push(replace(json!({"Regex": "\\A +| +\\z"}), ""));
        normalizers.push(replace(json!({"Regex": " {2,}"}), " "));
    }
    if whitespace.prefix {
        normalizers.push(json!({"type": "Prepend", "prepend": SPACE}));
    }
    normalizers.push(replace(json!({"String": " "}), SPACE));
    let mut decoders = vec![
        replace(json!({"String": SPACE}), " "),
        json!({"type": "ByteFallback"}),
        json!({"type": "Fuse"}),
    ];
    if whitespace.prefix {
        decoders.push(json!({"type": "Strip", "content": " ", "start": 1, "stop": 0}));
    }
    json!({
        "version": "1.0",
        "truncation": null,
        "padding": null,
        "added_tokens": added,
        "normalizer": {"type": "Sequence", "normalizers": normalizers},
        "pre_tokenizer": null,
        "post_processor": bos.and_then(|id| Some(prepend(&pieces.get(id as usize)?.text, id))),
        "decoder": {"type": "Sequence", "decoders": decoders},
        "model": {
            "type": "BPE", "dropout": null, "unk_token": unknown, "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": true, "byte_fallback": true,
            "ignore_merges": false, "vocab": vocab, "merges": merges(pieces),
        },
    })
}

/// Every way to join two pieces into a third, best score first; ways to the same piece in the
/// order of their parts' ids. This is the order in which sentencepiece's greedy search joins.
fn merges(pieces: &[Piece]) -> Vec<[&str; 2]> {
    let ids: HashMap<&str, usize> =
        pieces.iter().enumerate().map(|(id, p)| (p.text.as_str(), id)).collect();
    let mut order: Vec<&Piece> = pieces.iter().collect();
    order.sort_by(|a, b| b.score.total_cmp(&a.score));
    let mut merges = Vec::new();
    for piece in order {
        let text = piece.text.as_str();
        let cuts = text.char_indices().skip(1).map(|(at, _)| text.split_at(at));
        let mut ways: Vec<(usize, usize, [&str; 2])> = cuts
            .filter_map(|(left, right)| Some((*ids.get(left)?, *ids.get(right)?, [left, right])))
            .collect();
        ways.sort_unstable();
        merges.extend(ways.into_iter().map(|(_, _, way)| way));
    }
    merges
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn merges_are_ordered_by_score_then_by_parts() {
        let piece = |text: &str, score| Piece { text: text.into(), score };
        let pieces = [
            piece("a", -9.0),
            piece("b", -9.0),
            piece("c", -9.0),
            piece("bc", -2.0),
            piece("ab", -3.0),
            piece("abc", -1.0),
        ];
        assert_eq!(merges(&pieces), [["a", "bc"], ["ab", "c"], ["b", "c"], ["a", "b"]]);
    }
}
