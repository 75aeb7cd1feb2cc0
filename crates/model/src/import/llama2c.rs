//! A llama2.c checkpoint (the headerless "version 0" layout) and its tokenizer file as an HF folder.

use std::collections::BTreeMap;
use std::path::Path;

use serde_json::json;

use super::ImportReport;
use super::byte_level::added_token;
use super::error::{ImportError, Result};
use super::folder::{Announced, Staging};
use super::rotary::pairs_to_halves;
use super::sentencepiece::{self, Piece, Whitespace};
use super::source::Source;
use crate::tokenizer::Tokenizer;

/// First word of the later layouts, "ak42".
const VERSIONED_MAGIC: u32 = 0x616b_3432;
const HEADER_BYTES: u64 = 28;
const BOS_ID: u64 = 1;
const EOS_ID: u64 = 2;
/// Id of the first byte piece.
const FIRST_BYTE_ID: usize = 3;
/// Score that llama2.c's exporter gives to pieces of spaces and line ends so that its own encoder
/// never joins them. Sentencepiece's score of a piece is minus its place among the joined pieces.
const SUPPRESSED_SCORE: f64 = -1e9;

/// The header.
#[derive(Debug, Clone, Copy)]
struct Sizes {
    hidden: u64,
    intermediate: u64,
    layers: u64,
    heads: u64,
    kv_heads: u64,
    vocab: u64,
    context: u64,
    tied: bool,
}

/// A tensor of one layer, or of the whole model, as it follows in the file.
struct Part {
    hf: &'static str,
    shape: Vec<u64>,
    per_layer: bool,
    rotated_heads: Option<u64>,
}

pub(super) fn import(
    mut file: Source,
    tokenizer: Option<&Path>,
    destination: &Path,
) -> Result<ImportReport> {
    let sizes = read_sizes(&mut file)?;
    let Layout { tensors, places, end } = layout(&sizes);
    if end > file.bytes() {
        return Err(file.truncated(
            0,
            end,
            &format!("checkpoint of {} layers of width {}", sizes.layers, sizes.hidden),
        ));
    }
    let pieces = read_pieces(&mut file, tokenizer, end, sizes.vocab)?;

    let staging = Staging::new(destination)?;
    write_configs(&staging, &sizes, &pieces)?;
    staging.safetensors(&tensors, |i| {
        let (start, rotated) = places[i];
        let bytes = file.read_at(
            start,
            tensors[i].elements() * 4,
            &format!("tensor `{}`", tensors[i].name),
        )?;
        let values: Vec<f32> =
            bytes.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect();
        Ok(match rotated {
            Some(heads) => pairs_to_halves(&values, heads as usize, sizes.hidden as usize),
            None => values,
        })
    })?;
    Tokenizer::from_folder(staging.path())?;
    staging.commit()?;
    Ok(ImportReport {
        folder: destination.to_owned(),
        format: "llama2.c",
        architecture: "LlamaForCausalLM".to_owned(),
        tensors: tensors.len(),
        parameters: tensors.iter().map(Announced::elements).sum(),
        vocab_size: pieces.len(),
        chat_template: false,
        number_formats: BTreeMap::from([("F32".to_owned(), tensors.len())]),
    })
}

fn read_sizes(file: &mut Source) -> Result<Sizes> {
    let header = file.read_at(0, HEADER_BYTES, "llama2.c header")?;
    let words: Vec<i32> =
        header.chunks_exact(4).map(|b| i32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect();
    if words[0].cast_unsigned() == VERSIONED_MAGIC {
        return Err(ImportError::Unsupported {
            path: file.path.clone(),
            what: "llama2.c checkpoint version",
            name: words[1].to_string(),
            supported: "0 (the layout without a version)",
        });
    }
    let names =
        ["width", "hidden width", "layers", "heads", "key/value heads", "vocabulary", "context"];
    for (i, (name, &word)) in names.iter().zip(&words).enumerate() {
        // A negative vocabulary says that the output matrix is not the embedding.
        let size = if i == 5 { word.unsigned_abs() } else { u32::try_from(word).unwrap_or(0) };
        if size == 0 || size > 1 << 24 {
            let reason =
                format!("{name} is {word}; this is neither a GGUF file nor a llama2.c checkpoint");
            return Err(file.format(i as u64 * 4, reason));
        }
    }
    let size = |i: usize| u64::from(words[i].unsigned_abs());
    let sizes = Sizes {
        hidden: size(0),
        intermediate: size(1),
        layers: size(2),
        heads: size(3),
        kv_heads: size(4),
        vocab: size(5),
        context: size(6),
        tied: words[5] > 0,
    };
    if !sizes.hidden.is_multiple_of(2 * sizes.heads) || !sizes.heads.is_multiple_of(sizes.kv_heads)
    {
        let reason = format!(
            "width {}, {} heads and {} key/value heads do not divide; this is neither a GGUF file nor a llama2.c checkpoint",
            sizes.hidden, sizes.heads, sizes.kv_heads
        );
        return Err(file.format(0, reason));
    }
    Ok(sizes)
}

/// What the file holds, and where.
struct Layout {
    tensors: Vec<Announced>,
    /// Of each tensor: its first byte, and the heads whose rows are to be reordered.
    places: Vec<(u64, Option<u64>)>,
    /// First byte behind the checkpoint.
    end: u64,
}

/// The tensors, each with its place in the file and its rotated heads, and where the file ends.
fn layout(sizes: &Sizes) -> Layout {
    let (hidden, head_dim) = (sizes.hidden, sizes.hidden / sizes.heads);
    let kv = sizes.kv_heads * head_dim;
    let layer = |hf, shape: &[u64], rotated_heads| Part {
        hf,
        shape: shape.to_vec(),
        per_layer: true,
        rotated_heads,
    };
    let whole = |hf, shape: &[u64]| Part {
        hf,
        shape: shape.to_vec(),
        per_layer: false,
        rotated_heads: None,
    };
    let mut parts = vec![
        whole("model.embed_tokens.weight", &[sizes.vocab, hidden]),
        layer("input_layernorm.weight", &[hidden], None),
        layer("self_attn.q_proj.weight", &[hidden, hidden], Some(sizes.heads)),
        layer("self_attn.k_proj.weight", &[kv, hidden], Some(sizes.kv_heads)),
        layer("self_attn.v_proj.weight", &[kv, hidden], None),
        layer("self_attn.o_proj.weight", &[hidden, hidden], None),
        layer("post_attention_layernorm.weight", &[hidden], None),
        layer("mlp.gate_proj.weight", &[sizes.intermediate, hidden], None),
        layer("mlp.down_proj.weight", &[hidden, sizes.intermediate], None),
        layer("mlp.up_proj.weight", &[sizes.intermediate, hidden], None),
        whole("model.norm.weight", &[hidden]),
        // Tables of cosines and sines, which HF computes.
        whole("", &[2, sizes.context, head_dim / 2]),
    ];
    if !sizes.tied {
        parts.push(whole("lm_head.weight", &[sizes.vocab, hidden]));
    }
    let (mut tensors, mut places, mut at) = (Vec::new(), Vec::new(), HEADER_BYTES);
    for part in parts {
        for i in 0..if part.per_layer { sizes.layers } else { 1 } {
            let prefix = if part.per_layer { format!("model.layers.{i}.") } else { String::new() };
            let tensor =
                Announced { name: format!("{prefix}{}", part.hf), shape: part.shape.clone() };
            let bytes = tensor.elements() * 4;
            if !part.hf.is_empty() {
                tensors.push(tensor);
                places.push((at, part.rotated_heads));
            }
            at += bytes;
        }
    }
    Layout { tensors, places, end: at }
}

fn read_pieces(
    file: &mut Source,
    tokenizer: Option<&Path>,
    end: u64,
    vocab: u64,
) -> Result<Vec<Piece>> {
    if let Some(path) = tokenizer {
        return pieces(&mut Source::open(path)?, vocab);
    }
    if file.bytes() > end {
        file.seek(end);
        return pieces(file, vocab);
    }
    let beside = file.path.with_file_name("tokenizer.bin");
    if beside.is_file() {
        return pieces(&mut Source::open(&beside)?, vocab);
    }
    Err(ImportError::Argument {
        reason: format!(
            "{} is a llama2.c checkpoint without a tokenizer; name its tokenizer file (tried {})",
            file.path.display(),
            beside.display()
        ),
    })
}

fn pieces(file: &mut Source, vocab: u64) -> Result<Vec<Piece>> {
    let longest = u64::from(file.u32("longest piece")?);
    let mut pieces = Vec::new();
    for id in 0..vocab as usize {
        let what = format!("piece {id} of {vocab}");
        let score = f32::from_le_bytes(file.array(&what)?);
        let length = u64::from(file.u32(&what)?);
        let at = file.offset();
        // The longest piece is counted before line ends are put around <s> and </s>.
        if length > longest + 2 {
            return Err(file.format(
                at,
                format!("{what} has {length} bytes; the longest is said to have {longest}"),
            ));
        }
        let text = String::from_utf8(file.take(length, &what)?)
            .map_err(|e| file.format(at, format!("{what} is not valid UTF-8: {e}")))?;
        pieces.push(piece(id, &text, f64::from(score)));
    }
    Ok(pieces)
}

/// A piece as sentencepiece wrote it: llama2.c's exporter replaced the visible space by a space,
/// put line ends round the control pieces, and (in older files) byte pieces by characters.
fn piece(id: usize, text: &str, score: f64) -> Piece {
    let byte = id.checked_sub(FIRST_BYTE_ID).and_then(|b| u8::try_from(b).ok());
    let text = match (id as u64, byte) {
        (BOS_ID | EOS_ID, _) => text.trim_matches('\n').to_owned(),
        (_, Some(byte)) if text.chars().eq([char::from(byte)]) => format!("<0x{byte:02X}>"),
        _ => text.replace(' ', "\u{2581}"),
    };
    let first_joined = FIRST_BYTE_ID + 256;
    let suppressed = score <= SUPPRESSED_SCORE && id >= first_joined;
    let score = if suppressed { -((id - first_joined) as f64) } else { score };
    Piece { text, score }
}

fn write_configs(staging: &Staging, sizes: &Sizes, pieces: &[Piece]) -> Result<()> {
    // Sentencepiece learns no piece with two spaces when it was told to drop extra ones.
    let collapse = !pieces.iter().any(|p| p.text.contains("\u{2581}\u{2581}"));
    let special = |id: u64| pieces.get(id as usize).map_or("", |p| p.text.as_str());
    let added = (0..=EOS_ID).map(|id| added_token(id as usize, special(id), true)).collect();
    let whitespace = Whitespace { prefix: true, collapse };
    staging.json(
        "tokenizer.json",
        &sentencepiece::tokenizer_json(pieces, added, Some(BOS_ID), whitespace),
    )?;
    staging.json(
        "tokenizer_config.json",
        &json!({
            "tokenizer_class": "PreTrainedTokenizerFast",
            "bos_token": special(BOS_ID), "eos_token": special(EOS_ID),
            "unk_token": special(0), "pad_token": special(0),
            "model_max_length": sizes.context, "clean_up_tokenization_spaces": false,
        }),
    )?;
    staging.json(
        "generation_config.json",
        &json!({"bos_token_id": BOS_ID, "eos_token_id": EOS_ID, "pad_token_id": 0}),
    )?;
    staging.json(
        "config.json",
        &json!({
            "architectures": ["LlamaForCausalLM"], "model_type": "llama",
            "vocab_size": sizes.vocab, "hidden_size": sizes.hidden, "intermediate_size": sizes.intermediate,
            "num_hidden_layers": sizes.layers, "num_attention_heads": sizes.heads,
            "num_key_value_heads": sizes.kv_heads, "head_dim": sizes.hidden / sizes.heads,
            "hidden_act": "silu", "max_position_embeddings": sizes.context, "rms_norm_eps": 1e-5,
            "rope_theta": 10000.0, "tie_word_embeddings": sizes.tied, "attention_bias": false,
            "mlp_bias": false, "attention_dropout": 0.0, "initializer_range": 0.02, "use_cache": true,
            "torch_dtype": "float32", "bos_token_id": BOS_ID, "eos_token_id": EOS_ID, "pad_token_id": 0,
        }),
    )
}
