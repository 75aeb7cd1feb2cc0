//! The tokenizer in a GGUF file's metadata.

use serde_json::{Value as Json, json};

use super::byte_level;
use super::error::{ImportError, Result};
use super::folder::Staging;
use super::gguf_file::{GgufFile, Value};
use super::sentencepiece::{self, Piece, Whitespace};

/// llama.cpp's token types.
const TYPE_UNKNOWN: u64 = 2;
const TYPE_CONTROL: u64 = 3;
const TYPE_USER_DEFINED: u64 = 4;

/// A tokenizer ready to be written.
#[derive(Debug)]
pub(super) struct Vocabulary {
    tokenizer: Json,
    names: Vec<String>,
    pub(super) tokens: usize,
    pub(super) bos_id: Option<u64>,
    pub(super) eos_id: Option<u64>,
    pub(super) pad_id: Option<u64>,
    unknown_id: Option<u64>,
    /// Ends a turn, where that is another token than the end of the sequence.
    end_of_turn_id: Option<u64>,
    context_tokens: Option<u64>,
    pub(super) chat_template: Option<String>,
}

pub(super) fn read(file: &GgufFile) -> Result<Vocabulary> {
    let key = "tokenizer.ggml.model";
    let model = file.text(key)?.ok_or_else(|| file.bad_key(key, "a text"))?.to_owned();
    let names = texts(file, "tokenizer.ggml.tokens")?;
    let types = numbers(file, "tokenizer.ggml.token_type", names.len())?;
    let id = |name: &str| token_id(file, &format!("tokenizer.ggml.{name}_token_id"), names.len());
    let bos_id = id("bos")?;
    let adds_bos = file.flag("tokenizer.ggml.add_bos_token")?;
    let tokenizer = match model.as_str() {
        "gpt2" => {
            byte_level_tokenizer(file, &names, &types, bos_id.filter(|_| adds_bos == Some(true)))?
        }
        "llama" => sentencepiece_tokenizer(
            file,
            &names,
            &types,
            bos_id.filter(|_| adds_bos != Some(false)),
        )?,
        other => {
            return Err(ImportError::Unsupported {
                path: file.path().to_owned(),
                what: "tokenizer model",
                name: other.to_owned(),
                supported: "gpt2, llama",
            });
        }
    };
    let family = file.text("general.architecture")?.unwrap_or_default();
    Ok(Vocabulary {
        tokenizer,
        tokens: names.len(),
        bos_id,
        eos_id: id("eos")?,
        pad_id: id("padding")?,
        unknown_id: id("unknown")?,
        end_of_turn_id: id("eot")?,
        context_tokens: file.count(&format!("{family}.context_length"))?,
        chat_template: file.text("tokenizer.chat_template")?.map(str::to_owned),
        names,
    })
}

impl Vocabulary {
    pub(super) fn write(&self, staging: &Staging) -> Result<()> {
        staging.json("tokenizer.json", &self.tokenizer)?;
        let name = |id: Option<u64>| {
            id.and_then(|id| self.names.get(id as usize)).map_or(Json::Null, |n| json!(n))
        };
        let mut config = json!({
            "tokenizer_class": "PreTrainedTokenizerFast",
            "bos_token": name(self.bos_id),
            "eos_token": name(self.eos_id),
            "pad_token": name(self.pad_id),
            "unk_token": name(self.unknown_id),
            "clean_up_tokenization_spaces": false,
        });
        if let Some(tokens) = self.context_tokens {
            config["model_max_length"] = json!(tokens);
        }
        if let Some(template) = &self.chat_template {
            config["chat_template"] = json!(template);
        }
        staging.json("tokenizer_config.json", &config)?;
        let mut ends: Vec<u64> = self.eos_id.into_iter().chain(self.end_of_turn_id).collect();
        ends.dedup();
        let eos = if ends.len() == 1 { json!(ends[0]) } else { json!(ends) };
        staging.json(
            "generation_config.json",
            &json!({"bos_token_id": self.bos_id, "eos_token_id": eos, "pad_token_id": self.pad_id}),
        )
    }
}

fn byte_level_tokenizer(
    file: &GgufFile,
    names: &[String],
    types: &[u64],
    bos: Option<u64>,
) -> Result<Json> {
    let pre = file.text("tokenizer.ggml.pre")?.unwrap_or("default");
    let key = "tokenizer.ggml.merges";
    let merges = texts(file, key)?
        .iter()
        .map(|merge| match merge.split_once(' ') {
            Some((left, right)) => Ok([left.to_owned(), right.to_owned()]),
            None => Err(file.bad_key(key, "pairs of tokens, each with one space between")),
        })
        .collect::<Result<Vec<_>>>()?;
    let added = added_tokens(names, types);
    let post = bos.and_then(|id| Some(byte_level::prepend(names.get(id as usize)?, id)));
    byte_level::tokenizer_json(pre, names, &merges, added, post).ok_or_else(|| {
        ImportError::Unsupported {
            path: file.path().to_owned(),
            what: "pre-tokenizer",
            name: pre.to_owned(),
            supported: byte_level::SUPPORTED,
        }
    })
}

fn sentencepiece_tokenizer(
    file: &GgufFile,
    names: &[String],
    types: &[u64],
    bos: Option<u64>,
) -> Result<Json> {
    let key = "tokenizer.ggml.scores";
    let scores = file.list(key)?.ok_or_else(|| file.bad_key(key, "a list of numbers"))?;
    let pieces = names
        .iter()
        .zip(scores)
        .map(|(text, score)| match score {
            Value::Float(score) => Ok(Piece { text: text.clone(), score: *score }),
            _ => Err(file.bad_key(key, "a list of numbers")),
        })
        .collect::<Result<Vec<_>>>()?;
    if pieces.len() != names.len() {
        return Err(file.bad_key(key, "as many numbers as tokens"));
    }
    let prefix = file.flag("tokenizer.ggml.add_space_prefix")?.unwrap_or(true);
    let whitespace = Whitespace { prefix, collapse: false };
    Ok(sentencepiece::tokenizer_json(&pieces, added_tokens(names, types), bos, whitespace))
}

fn added_tokens(names: &[String], types: &[u64]) -> Vec<Json> {
    let tokens = names.iter().zip(types).enumerate();
    tokens
        .filter(|(_, (_, kind))| matches!(**kind, TYPE_CONTROL | TYPE_USER_DEFINED | TYPE_UNKNOWN))
        .map(|(id, (name, kind))| byte_level::added_token(id, name, *kind != TYPE_USER_DEFINED))
        .collect()
}

fn texts(file: &GgufFile, key: &str) -> Result<Vec<String>> {
    let expected = "a list of texts";
    let items = file.list(key)?.ok_or_else(|| file.bad_key(key, expected))?;
    items
        .iter()
        .map(|item| match item {
            Value::Text(text) => Ok(text.clone()),
            _ => Err(file.bad_key(key, expected)),
        })
        .collect()
}

fn numbers(file: &GgufFile, key: &str, count: usize) -> Result<Vec<u64>> {
    let items = file.list(key)?.ok_or_else(|| file.bad_key(key, "a list of token types"))?;
    let numbers: Vec<u64> = items
        .iter()
        .filter_map(|item| match item {
            Value::Unsigned(n) => Some(*n),
            Value::Signed(n) => u64::try_from(*n).ok(),
            _ => None,
        })
        .collect();
    if numbers.len() != count {
        return Err(file.bad_key(key, &format!("a list of {count} token types")));
    }
    Ok(numbers)
}

fn token_id(file: &GgufFile, key: &str, tokens: usize) -> Result<Option<u64>> {
    match file.count(key)? {
        Some(id) if id >= tokens as u64 => Err(file.bad_key(key, &format!("an id below {tokens}"))),
        id => Ok(id),
    }
}
