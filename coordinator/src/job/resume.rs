//! Going on with a job whose processes are all gone: what is left in the run folder, and whether
//! a recipe is the one that left it.
//!
//! - **RE-1**: a finished stage is not run again; later stages get what it left from `stages/`.
//! - **RE-2**: a stage that was interrupted goes on from its newest sound commit, or from its
//!   start where it has none.
//! - **RE-3**: a recipe that would have trained something else is refused, by key.

use std::collections::{BTreeMap, BTreeSet};

use plumb_config::Recipe;

use super::error::JobError;
use super::folder::RunFolder;

/// Keys that say where and how a job runs, not what it learns: they may differ.
const FREE: [&str; 8] = [
    "name",
    "groups",
    "timeouts",
    "checkpoint",
    "engine",
    "rollout.max_sequences",
    "rollout.kv_cache_mib",
    "rollout.prefill_tokens",
];

/// Keys below those that matter all the same.
const NUMERIC: [&str; 1] = ["engine.reduce_dtype"];

/// Whether the folder holds a job to go on with. The recipe must be that job's.
///
/// # Errors
/// The recipe differs in a key that matters; the folder's own recipe cannot be read.
pub fn is_there(folder: &RunFolder, recipe: &Recipe) -> Result<bool, JobError> {
    let path = folder.path("recipe.toml");
    if !path.is_file() {
        return Ok(false);
    }
    let before = Recipe::read(&path, &[])?;
    match difference(&before, recipe)? {
        None => Ok(true),
        Some((key, before, now)) => {
            Err(JobError::OtherRecipe { path: folder.root().to_owned(), key, before, now })
        }
    }
}

/// The first key that matters and differs, with both values.
fn difference(before: &Recipe, now: &Recipe) -> Result<Option<(String, String, String)>, JobError> {
    let (before, now) = (keys(before)?, keys(now)?);
    let all: BTreeSet<_> = before.keys().chain(now.keys()).collect();
    let value = |of: &BTreeMap<String, String>, key: &str| {
        of.get(key).cloned().unwrap_or_else(|| "absent".to_owned())
    };
    let mut different = all.into_iter().filter(|key| before.get(*key) != now.get(*key));
    Ok(different
        .find(|key| matters(key))
        .map(|key| (key.clone(), value(&before, key), value(&now, key))))
}

fn matters(key: &str) -> bool {
    let below = |of: &str| {
        key.strip_prefix(of).is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
    };
    NUMERIC.iter().any(|of| below(of)) || !FREE.iter().any(|of| below(of))
}

/// Every value of a recipe by its dotted key, as TOML.
fn keys(recipe: &Recipe) -> Result<BTreeMap<String, String>, JobError> {
    let text = recipe.to_toml()?;
    let table: toml::Table = text.parse().map_err(|error: toml::de::Error| JobError::Input {
        what: "the recipe".to_owned(),
        problem: error.to_string(),
        fix: "report this: a recipe must be TOML when it is written".to_owned(),
    })?;
    let mut keys = BTreeMap::new();
    flatten(&mut keys, String::new(), &toml::Value::Table(table));
    Ok(keys)
}

fn flatten(keys: &mut BTreeMap<String, String>, at: String, value: &toml::Value) {
    let below = |name: &str| if at.is_empty() { name.to_owned() } else { format!("{at}.{name}") };
    match value {
        toml::Value::Table(table) => {
            for (name, value) in table {
                flatten(keys, below(name), value);
            }
        }
        toml::Value::Array(items) if items.iter().any(toml::Value::is_table) => {
            for (index, value) in items.iter().enumerate() {
                flatten(keys, below(&index.to_string()), value);
            }
        }
        other => drop(keys.insert(at, other.to_string())),
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    fn recipe(set: &[&str]) -> Recipe {
        let set: Vec<plumb_config::Override> = set.iter().map(|s| s.parse().unwrap()).collect();
        let text = include_str!("../stage/testdata/recipe.toml");
        Recipe::from_toml(text, Path::new("r.toml"), &set).unwrap()
    }

    fn differing(set: &str) -> Option<String> {
        difference(&recipe(&[]), &recipe(&[set])).unwrap().map(|(key, ..)| key)
    }

    #[test]
    fn re_3_a_key_that_matters_is_named_and_others_may_differ() {
        for key in ["model.path", "data.train", "algorithm.advantage"] {
            let value = if key == "algorithm.advantage" { "rloo" } else { "elsewhere" };
            assert_eq!(differing(&format!("{key}={value}")).as_deref(), Some(key));
        }
        assert_eq!(differing("seed=99").as_deref(), Some("seed"));
        assert_eq!(differing("engine.reduce_dtype=bf16").as_deref(), Some("engine.reduce_dtype"));
        for set in [
            "groups.policy.world_size=4",
            "engine.micro_batch_tokens=4096",
            "checkpoint.every_steps=1",
            "timeouts.phase_secs=7.0",
            "name=other",
        ] {
            assert_eq!(differing(set), None, "{set}");
        }
    }

    #[test]
    fn the_refusal_names_folder_key_and_values() {
        let root = tempfile::tempdir().unwrap();
        let folder = RunFolder::open(root.path()).unwrap();
        assert!(!is_there(&folder, &recipe(&[])).unwrap(), "nothing to go on with");
        std::fs::write(folder.path("recipe.toml"), recipe(&[]).to_toml().unwrap()).unwrap();
        assert!(is_there(&folder, &recipe(&["groups.policy.world_size=3"])).unwrap());
        let error = is_there(&folder, &recipe(&["seed=99"])).unwrap_err().to_string();
        assert!(error.contains("seed was 1 and is 99"), "{error}");
        assert!(error.contains(&folder.root().display().to_string()), "{error}");
    }
}
