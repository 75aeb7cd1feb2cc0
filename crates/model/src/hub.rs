//! Fetching a model from the Hugging Face hub.

use std::path::{Path, PathBuf};

use hf_hub::api::sync::{ApiBuilder, ApiError, ApiRepo};
use hf_hub::{Repo, RepoType};

/// Why a model could not be fetched.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum HubError {
    /// The id is not of the form `owner/name` (or a bare `name`), with an optional `@revision`.
    #[error(
        "`{id}` is not a hub id; expected owner/name or owner/name@revision, or the path of an existing folder"
    )]
    Id {
        /// The text given.
        id: String,
    },
    /// The hub could not be asked.
    #[error(
        "cannot fetch `{id}` from the model hub ({what}): {reason}; on a machine without access, name a folder \
         instead, or import a file with `plumb import`"
    )]
    Unreachable {
        /// The hub id.
        id: String,
        /// What was being fetched.
        what: String,
        /// The client's reason.
        reason: String,
    },
    /// The repository lacks a file that a model folder needs.
    #[error("the hub's `{id}` has no {missing}")]
    Incomplete {
        /// The hub id.
        id: String,
        /// What is missing.
        missing: &'static str,
    },
}

/// Files of a model folder besides its weights.
const SIDE_FILES: [&str; 7] = [
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
    "model.safetensors.index.json",
];

/// The folder of `model`: the path itself if it is one, else what [`fetch`] fetches.
///
/// # Errors
/// [`HubError`].
pub fn resolve(model: &str, cache: &Path) -> Result<PathBuf, HubError> {
    let path = Path::new(model);
    if path.is_dir() { Ok(path.to_owned()) } else { fetch(model, cache) }
}

/// Fetches `id` (`owner/name` or `owner/name@revision`) into `cache` and returns the snapshot's
/// folder. Files already there are not fetched again. Only configuration, tokenizer and
/// safetensors are taken.
///
/// # Errors
/// [`HubError`]: a malformed id, a hub that cannot be reached, a repository without configuration
/// or safetensors.
pub fn fetch(id: &str, cache: &Path) -> Result<PathBuf, HubError> {
    fetch_with(ApiBuilder::from_env(), id, cache)
}

/// `builder` says which hub; by default the environment does (`HF_ENDPOINT`).
fn fetch_with(builder: ApiBuilder, id: &str, cache: &Path) -> Result<PathBuf, HubError> {
    let (name, revision) = parse(id)?;
    let unreachable = |what: &str, e: ApiError| HubError::Unreachable {
        id: id.to_owned(),
        what: what.to_owned(),
        reason: e.to_string(),
    };
    let api = builder
        .with_cache_dir(cache.to_owned())
        .with_progress(false)
        .with_retries(2)
        .build()
        .map_err(|e| unreachable("client", e))?;
    let repo = api.repo(Repo::with_revision(name.to_owned(), RepoType::Model, revision.to_owned()));
    let listed = repo.info().map_err(|e| unreachable("list of files", e))?;
    let files: Vec<String> =
        listed.siblings.into_iter().map(|s| s.rfilename).filter(|f| wanted(f)).collect();
    if !files.iter().any(|f| f == "config.json") {
        return Err(HubError::Incomplete { id: id.to_owned(), missing: "config.json" });
    }
    if !files.iter().any(|f| f.ends_with(".safetensors")) {
        return Err(HubError::Incomplete { id: id.to_owned(), missing: "safetensors files" });
    }
    fetch_all(&repo, id, &files)
}

fn fetch_all(repo: &ApiRepo, id: &str, files: &[String]) -> Result<PathBuf, HubError> {
    let mut folder = None;
    for file in files {
        let path = repo.get(file).map_err(|e| HubError::Unreachable {
            id: id.to_owned(),
            what: file.clone(),
            reason: e.to_string(),
        })?;
        if file == "config.json" {
            folder = path.parent().map(Path::to_owned);
        }
    }
    folder.ok_or_else(|| HubError::Incomplete { id: id.to_owned(), missing: "config.json" })
}

fn wanted(file: &str) -> bool {
    SIDE_FILES.contains(&file) || (file.ends_with(".safetensors") && !file.contains('/'))
}

fn parse(id: &str) -> Result<(&str, &str), HubError> {
    let (name, revision) = id.split_once('@').unwrap_or((id, "main"));
    let word = |part: &str| {
        !part.is_empty()
            && !part.starts_with('.')
            && part.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.'))
    };
    let valid = name.split('/').count() <= 2 && name.split('/').all(word) && !revision.is_empty();
    if valid { Ok((name, revision)) } else { Err(HubError::Id { id: id.to_owned() }) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_have_an_owner_a_name_and_perhaps_a_revision() {
        assert_eq!(parse("owner/name-1.5B").unwrap(), ("owner/name-1.5B", "main"));
        assert_eq!(parse("gpt2@v1").unwrap(), ("gpt2", "v1"));
        for bad in ["", "a/b/c", "/a", "../up", "a b/c", "./models/missing", "a/b@"] {
            let message = parse(bad).unwrap_err().to_string();
            assert!(message.starts_with(&format!("`{bad}` is not a hub id")), "{message}");
        }
    }

    #[test]
    fn only_model_files_are_taken() {
        let taken: Vec<&str> = [
            "config.json",
            "model-00001-of-00002.safetensors",
            "onnx/model.safetensors",
            "pytorch_model.bin",
        ]
        .into_iter()
        .filter(|f| wanted(f))
        .collect();
        assert_eq!(taken, ["config.json", "model-00001-of-00002.safetensors"]);
    }

    #[test]
    fn an_unreachable_hub_is_named_with_the_way_round() {
        let cache = tempfile::tempdir().unwrap();
        // Port 1 of the loopback: nothing listens there.
        let builder = ApiBuilder::new().with_endpoint("http://127.0.0.1:1".to_owned());
        let message = fetch_with(builder, "owner/name", cache.path()).unwrap_err().to_string();
        assert!(
            message.starts_with("cannot fetch `owner/name` from the model hub (list of files): "),
            "{message}"
        );
        assert!(message.contains("plumb import"), "{message}");
    }

    #[test]
    fn a_folder_is_taken_as_it_is() {
        let folder = tempfile::tempdir().unwrap();
        let cache = folder.path().join("cache");
        assert_eq!(resolve(folder.path().to_str().unwrap(), &cache).unwrap(), folder.path());
        assert!(!cache.exists());
    }
}
