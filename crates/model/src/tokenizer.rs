//! Text to token ids and back, from an HF folder's `tokenizer.json`.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::json_file::read_json_if_present;

/// Why a tokenizer could not be read or used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TokenizerError {
    /// A file of the folder could not be read.
    #[error("cannot read {}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// The system's reason.
        source: std::io::Error,
    },
    /// A file of the folder is not what its name promises.
    #[error("{}: {reason}", path.display())]
    Format {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// No file names an end-of-sequence token, so that generation would never stop.
    #[error(
        "{}: the tokenizer has no end-of-sequence token; set `eos_token_id` in generation_config.json \
         or config.json, or `eos_token` in tokenizer_config.json",
        path.display()
    )]
    NoEos {
        /// The folder.
        path: PathBuf,
    },
    /// An end-of-sequence id lies outside the vocabulary.
    #[error("{}: eos id {id} is outside the vocabulary of {vocab_size} tokens", path.display())]
    EosOutOfRange {
        /// The folder.
        path: PathBuf,
        /// The id found.
        id: u64,
        /// Tokens in the vocabulary.
        vocab_size: usize,
    },
    /// The text could not be encoded.
    #[error("cannot encode a text of {chars} characters: {reason}")]
    Encode {
        /// Length of the text.
        chars: usize,
        /// The library's reason.
        reason: String,
    },
    /// The ids could not be decoded.
    #[error("cannot decode {ids} token ids: {reason}")]
    Decode {
        /// Number of ids.
        ids: usize,
        /// The library's reason.
        reason: String,
    },
}

/// A tokenizer and the special tokens that its folder declares. Cheap to clone.
#[derive(Clone)]
pub struct Tokenizer {
    inner: Arc<tokenizers::Tokenizer>,
    eos_ids: Vec<u32>,
    bos_token: Option<String>,
    eos_token: Option<String>,
    pad_token: Option<String>,
}

impl std::fmt::Debug for Tokenizer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tokenizer")
            .field("vocab_size", &self.vocab_size())
            .field("eos_ids", &self.eos_ids)
            .finish_non_exhaustive()
    }
}

impl Tokenizer {
    /// Reads `tokenizer.json` and the special tokens of an HF folder.
    ///
    /// The end-of-sequence ids are those of `generation_config.json`, else of `config.json`, else
    /// the `eos_token` of `tokenizer_config.json`.
    ///
    /// # Errors
    /// [`TokenizerError`]: a missing or malformed file, no end-of-sequence token, or one outside
    /// the vocabulary.
    pub fn from_folder(folder: &Path) -> Result<Self, TokenizerError> {
        let path = folder.join("tokenizer.json");
        let bytes = std::fs::read(&path)
            .map_err(|source| TokenizerError::Io { path: path.clone(), source })?;
        let inner = tokenizers::Tokenizer::from_bytes(&bytes).map_err(|e| {
            TokenizerError::Format { path, reason: format!("not a tokenizer: {e}") }
        })?;
        let config_path = folder.join("tokenizer_config.json");
        let config = read_json_if_present(&config_path)?.unwrap_or_default();
        let named = |key| special_token(&config, key);
        let mut tokenizer = Self {
            inner: Arc::new(inner),
            eos_ids: Vec::new(),
            bos_token: named("bos_token"),
            eos_token: named("eos_token"),
            pad_token: named("pad_token"),
        };
        tokenizer.eos_ids = tokenizer.find_eos_ids(folder)?;
        if tokenizer.eos_token.is_none() {
            tokenizer.eos_token =
                tokenizer.eos_ids.first().and_then(|&id| tokenizer.inner.id_to_token(id));
        }
        Ok(tokenizer)
    }

    fn find_eos_ids(&self, folder: &Path) -> Result<Vec<u32>, TokenizerError> {
        for file in ["generation_config.json", "config.json"] {
            let path = folder.join(file);
            let Some(config) = read_json_if_present(&path)? else { continue };
            let ids = match config.get("eos_token_id") {
                None | Some(serde_json::Value::Null) => continue,
                Some(serde_json::Value::Array(ids)) => ids.clone(),
                Some(id) => vec![id.clone()],
            };
            let ids = ids
                .iter()
                .map(|id| self.checked_eos(folder, &path, id))
                .collect::<Result<BTreeSet<_>, _>>()?;
            if !ids.is_empty() {
                return Ok(ids.into_iter().collect());
            }
        }
        let from_token = self.eos_token.as_ref().and_then(|token| self.inner.token_to_id(token));
        from_token
            .map(|id| vec![id])
            .ok_or_else(|| TokenizerError::NoEos { path: folder.to_owned() })
    }

    fn checked_eos(
        &self,
        folder: &Path,
        file: &Path,
        id: &serde_json::Value,
    ) -> Result<u32, TokenizerError> {
        let id = id.as_u64().ok_or_else(|| TokenizerError::Format {
            path: file.to_owned(),
            reason: format!("`eos_token_id` is {id}; expected a token id or a list of them"),
        })?;
        let vocab_size = self.vocab_size();
        match u32::try_from(id) {
            Ok(small) if self.inner.id_to_token(small).is_some() => Ok(small),
            _ => Err(TokenizerError::EosOutOfRange { path: folder.to_owned(), id, vocab_size }),
        }
    }

    /// Token ids of `text`. `add_special_tokens` adds what the tokenizer's post-processor adds
    /// (such as a beginning-of-sequence token); text rendered by a chat template already has them.
    ///
    /// # Errors
    /// [`TokenizerError::Encode`].
    pub fn encode(&self, text: &str, add_special_tokens: bool) -> Result<Vec<u32>, TokenizerError> {
        let encoding = self.inner.encode_fast(text, add_special_tokens).map_err(|e| {
            TokenizerError::Encode { chars: text.chars().count(), reason: e.to_string() }
        })?;
        Ok(encoding.get_ids().to_vec())
    }

    /// Text of `ids`; bytes that are not valid UTF-8 become U+FFFD.
    ///
    /// # Errors
    /// [`TokenizerError::Decode`].
    pub fn decode(&self, ids: &[u32], skip_special_tokens: bool) -> Result<String, TokenizerError> {
        self.inner
            .decode(ids, skip_special_tokens)
            .map_err(|e| TokenizerError::Decode { ids: ids.len(), reason: e.to_string() })
    }

    /// A decoder that gives text as tokens arrive.
    #[must_use]
    pub fn incremental(&self, skip_special_tokens: bool) -> IncrementalDecoder {
        IncrementalDecoder {
            tokenizer: self.clone(),
            skip_special_tokens,
            ids: Vec::new(),
            prefix: String::new(),
            prefix_index: 0,
        }
    }

    /// Ids that end a sequence, ascending; never empty.
    #[must_use]
    pub fn eos_ids(&self) -> &[u32] {
        &self.eos_ids
    }

    /// The end-of-sequence token as text.
    #[must_use]
    pub fn eos_token(&self) -> Option<&str> {
        self.eos_token.as_deref()
    }

    /// The beginning-of-sequence token as text, where there is one.
    #[must_use]
    pub fn bos_token(&self) -> Option<&str> {
        self.bos_token.as_deref()
    }

    /// The padding token as text, where there is one.
    #[must_use]
    pub fn pad_token(&self) -> Option<&str> {
        self.pad_token.as_deref()
    }

    /// Number of tokens, added ones included.
    #[must_use]
    pub fn vocab_size(&self) -> usize {
        self.inner.get_vocab_size(true)
    }

    /// Id of a token given by its text in the vocabulary.
    #[must_use]
    pub fn token_id(&self, token: &str) -> Option<u32> {
        self.inner.token_to_id(token)
    }

    /// A token's text in the vocabulary.
    #[must_use]
    pub fn token(&self, id: u32) -> Option<String> {
        self.inner.id_to_token(id)
    }
}

/// A special token is written as a string or as an object with `content`.
fn special_token(config: &serde_json::Value, key: &str) -> Option<String> {
    let value = config.get(key)?;
    value.as_str().or_else(|| value.get("content")?.as_str()).map(str::to_owned)
}

/// Decodes a growing sequence: gives text as soon as it is certain, holding back the bytes of a
/// character that is split over tokens.
#[derive(Debug, Clone)]
pub struct IncrementalDecoder {
    tokenizer: Tokenizer,
    skip_special_tokens: bool,
    /// Ids whose text is still needed: those of the last piece given out, then the pending ones.
    ids: Vec<u32>,
    /// The piece given out last, as `ids` decodes to it. Neighbours matter: some decoders strip a
    /// leading space at the start of a sequence.
    prefix: String,
    prefix_index: usize,
}

impl IncrementalDecoder {
    /// Adds a token; returns the new text, which is empty while a character is incomplete.
    ///
    /// # Errors
    /// [`TokenizerError::Decode`].
    pub fn push(&mut self, id: u32) -> Result<String, TokenizerError> {
        self.ids.push(id);
        let whole = self.tokenizer.decode(&self.ids, self.skip_special_tokens)?;
        if whole.ends_with('\u{FFFD}') {
            return Ok(String::new());
        }
        Ok(self.give_out(&whole))
    }

    /// The text held back at the end of the sequence (replacement characters for a character that
    /// never became whole).
    ///
    /// # Errors
    /// [`TokenizerError::Decode`].
    pub fn finish(mut self) -> Result<String, TokenizerError> {
        let whole = self.tokenizer.decode(&self.ids, self.skip_special_tokens)?;
        Ok(self.give_out(&whole))
    }

    fn give_out(&mut self, whole: &str) -> String {
        let piece = whole.strip_prefix(self.prefix.as_str()).unwrap_or(whole).to_owned();
        if piece.is_empty() {
            return piece;
        }
        self.ids.drain(..self.prefix_index);
        self.prefix_index = self.ids.len();
        self.prefix =
            self.tokenizer.decode(&self.ids, self.skip_special_tokens).unwrap_or_default();
        piece
    }
}

#[cfg(test)]
#[path = "tokenizer_tests.rs"]
mod tests;
