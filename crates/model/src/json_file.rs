//! Reading the small JSON files beside a tokenizer.

use std::path::Path;

use crate::tokenizer::TokenizerError;

/// The file's JSON, or `None` where there is no such file.
pub(crate) fn read_json_if_present(
    path: &Path,
) -> Result<Option<serde_json::Value>, TokenizerError> {
    let text = match std::fs::read_to_string(path) {
        Ok(text) => text,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(source) => return Err(TokenizerError::Io { path: path.to_owned(), source }),
    };
    serde_json::from_str(&text).map(Some).map_err(|e| TokenizerError::Format {
        path: path.to_owned(),
        reason: format!("not valid JSON: {e}"),
    })
}
