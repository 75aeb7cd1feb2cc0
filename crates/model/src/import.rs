//! Other projects' model files as Hugging Face folders.
//!
//! [`import`] reads a GGUF file or a llama2.c checkpoint and writes `config.json`,
//! `model.safetensors` (fp32), `tokenizer.json`, `tokenizer_config.json` and
//! `generation_config.json`. The folder appears whole or not at all.

mod byte_level;
mod dequantise;
mod error;
mod folder;
mod gguf;
mod gguf_file;
mod gguf_tokenizer;
mod llama2c;
mod rotary;
mod sentencepiece;
mod source;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

pub use error::ImportError;

/// What was imported.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct ImportReport {
    /// The folder written.
    pub folder: PathBuf,
    /// Format of the source: `gguf` or `llama2.c`.
    pub format: &'static str,
    /// HF class name of the model.
    pub architecture: String,
    /// Tensors written.
    pub tensors: usize,
    /// Parameters written.
    pub parameters: u64,
    /// Tokens in the vocabulary.
    pub vocab_size: usize,
    /// Whether a chat template came along.
    pub chat_template: bool,
    /// Tensors of the source by the format of their numbers.
    pub number_formats: BTreeMap<String, usize>,
}

/// Imports `source` into the new folder `destination`. The format is told from the file's first
/// bytes. `tokenizer` is llama2.c's tokenizer file; without it the tokenizer is taken from the
/// bytes behind the checkpoint (some packages join the two files), or from a `tokenizer.bin`
/// beside it.
///
/// # Errors
/// [`ImportError`]: a destination that exists, a truncated file (with the offset), a number
/// format, architecture or tokenizer that is not supported (by name). Nothing is left behind.
pub fn import(
    source: &Path,
    tokenizer: Option<&Path>,
    destination: &Path,
) -> Result<ImportReport, ImportError> {
    folder::check_vacant(destination)?;
    let mut file = source::Source::open(source)?;
    if file.starts_with(gguf_file::MAGIC)? {
        if let Some(path) = tokenizer {
            return Err(ImportError::Argument {
                reason: format!(
                    "{} is a GGUF file, which holds its own tokenizer; leave out {}",
                    source.display(),
                    path.display()
                ),
            });
        }
        return gguf::import(file, destination);
    }
    llama2c::import(file, tokenizer, destination)
}

#[cfg(test)]
mod tests;
