//! Which verifiers a run uses and where their models are, as SafeWork-R1's flag
//! `--reward_pretrain` says it.
//!
//! Recipes of this project name reward components in tables of their own; this reads the original
//! flag, so that its run scripts can be carried over.

use std::collections::BTreeMap;
use std::fmt;

use plumb_domain::text::{is_blank, strip};
use serde::de::{MapAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};

use crate::verdict::Verifier;

/// One verifier's model.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct RewardModel {
    /// Which verifier.
    #[serde(rename = "type")]
    pub verifier: Verifier,
    /// Folder or name of its model.
    pub path: String,
    /// Is it served by an inference engine (the original's other way is to run it in place)?
    pub use_engine: bool,
}

/// The verifiers of a run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RewardModels {
    /// In the order in which the flag names them; a verifier may occur more than once.
    pub models: Vec<RewardModel>,
}

/// The flag's value in the forms that the original takes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RewardPretrain {
    /// Not given.
    Absent,
    /// `{"safety": "/s", "value": "/v"}`, `safety:/s,value:/v` or bare paths `/s,/v`.
    Text(String),
    /// Verifier -> path, in order.
    Table(Vec<(String, String)>),
    /// `[{"type": "safety", "path": "/s", "engine": true}]`.
    List(Vec<Entry>),
}

/// One entry of the list form.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Entry {
    /// Name of the verifier; `?` guesses it from the path.
    #[serde(rename = "type")]
    pub verifier: String,
    /// Folder or name of its model.
    pub path: String,
    /// Goes before `?engine=` and the run's own setting.
    #[serde(default)]
    pub engine: Option<bool>,
}

/// A flag that cannot be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RewardPretrainError {
    /// A verifier that there is not.
    #[error(
        "reward model {path:?} has the unknown type {verifier:?}, expected one of knowledge, \
         safety, value, general, normal"
    )]
    UnknownVerifier {
        /// As the flag has it.
        verifier: String,
        /// Its path.
        path: String,
    },
    /// A JSON object with a value that is no path.
    #[error("reward models: {0}")]
    NotAPath(String),
}

/// Endings `?engine=` of a path that ask for the engine; all others ask for none.
const ENGINE: [&str; 3] = ["1", "true", "yes"];

impl RewardPretrain {
    /// The verifiers that the flag names. A path may end in `?engine=true` (or `1`, `yes`; anything
    /// else is no), which goes before `use_engine`.
    ///
    /// Text in braces that is no JSON object is read as comma-separated pairs without the braces.
    /// The verifier of a bare path is guessed: `safety`, then `value` or `vauai`, then `knowledge`
    /// or `qwen2.5-vl-72b`, then `normal` within the lower-case path, else general.
    ///
    /// Source: SafeWork-R1 `parse_reward_pretrain`.
    ///
    /// # Errors
    /// [`RewardPretrainError`].
    pub fn parse(&self, use_engine: bool) -> Result<RewardModels, RewardPretrainError> {
        let plain = |(verifier, path): &(String, String)| Entry {
            verifier: verifier.clone(),
            path: path.clone(),
            engine: None,
        };
        let entries = match self {
            Self::Absent => Vec::new(),
            Self::Text(text) => pairs_of_text(text)?.iter().map(plain).collect(),
            Self::Table(pairs) => pairs.iter().map(plain).collect(),
            Self::List(entries) => entries.clone(),
        };
        let models = entries.into_iter().map(|entry| entry.model(use_engine));
        Ok(RewardModels { models: models.collect::<Result<_, _>>()? })
    }
}

impl RewardModels {
    /// Verifier -> its row among the scores, in the order of first appearance; `general` comes last
    /// where no model is of that type.
    #[must_use]
    pub fn label_map(&self) -> Vec<(Verifier, usize)> {
        let mut rows: Vec<Verifier> = Vec::new();
        let general = std::iter::once(Verifier::General);
        for verifier in self.models.iter().map(|model| model.verifier).chain(general) {
            if !rows.contains(&verifier) {
                rows.push(verifier);
            }
        }
        rows.into_iter().enumerate().map(|(row, verifier)| (verifier, row)).collect()
    }

    /// The models' paths without repetition, in order, each with how many verifiers share it: those
    /// of one path share one engine.
    #[must_use]
    pub fn engines(&self) -> Vec<(&str, usize)> {
        let mut at: BTreeMap<&str, usize> = BTreeMap::new();
        let mut engines: Vec<(&str, usize)> = Vec::new();
        for model in &self.models {
            let index = *at.entry(&model.path).or_insert_with(|| {
                engines.push((&model.path, 0));
                engines.len() - 1
            });
            engines[index].1 += 1;
        }
        engines
    }
}

impl Entry {
    fn model(self, use_engine: bool) -> Result<RewardModel, RewardPretrainError> {
        let (path, use_engine) = match self.path.split_once("?engine=") {
            Some((path, asked)) => {
                (path.to_owned(), ENGINE.contains(&asked.to_lowercase().as_str()))
            }
            None => (self.path, use_engine),
        };
        let verifier = match self.verifier.as_str() {
            "?" => guessed(&path),
            name => name.parse().map_err(|_| RewardPretrainError::UnknownVerifier {
                verifier: self.verifier.clone(),
                path: path.clone(),
            })?,
        };
        Ok(RewardModel { verifier, path, use_engine: self.engine.unwrap_or(use_engine) })
    }
}

fn guessed(path: &str) -> Verifier {
    let path = path.to_lowercase();
    let any = |words: &[&str]| words.iter().any(|word| path.contains(word));
    if any(&["safety"]) {
        Verifier::Safety
    } else if any(&["value", "vauai"]) {
        Verifier::Value
    } else if any(&["knowledge", "qwen2.5-vl-72b"]) {
        Verifier::Knowledge
    } else if any(&["normal"]) {
        Verifier::Normal
    } else {
        Verifier::General
    }
}

/// JSON first, then pairs between commas.
fn pairs_of_text(text: &str) -> Result<Vec<(String, String)>, RewardPretrainError> {
    let stripped = strip(text);
    if stripped.starts_with('{')
        && stripped.ends_with('}')
        && let Ok(object) = serde_json::from_str::<Object>(text)
        && !object.0.is_empty()
    {
        let path = |(key, value): (String, serde_json::Value)| match value {
            serde_json::Value::String(path) => Ok((key, path)),
            other => Err(RewardPretrainError::NotAPath(format!("{key:?} is {other}, not a path"))),
        };
        return object.0.into_iter().map(path).collect();
    }
    let inner = stripped.trim_start_matches('{').trim_end_matches('}');
    Ok(between_commas(inner).into_iter().map(pair).collect())
}

/// Cut at commas with the blanks around them; empty parts are left out. Blanks at either end of the
/// whole stay, so a text of nothing else is one part.
fn between_commas(text: &str) -> Vec<&str> {
    let last = text.matches(',').count();
    let part = |(i, part): (usize, &'_ str)| -> (usize, usize) {
        let start = if i == 0 { 0 } else { part.len() - part.trim_start_matches(is_blank).len() };
        let end = if i == last { part.len() } else { part.trim_end_matches(is_blank).len() };
        (start, end.max(start))
    };
    let parts = text.split(',').enumerate().map(|(i, whole)| {
        let (start, end) = part((i, whole));
        &whole[start..end]
    });
    parts.filter(|part| !part.is_empty()).collect()
}

/// `verifier:path`, or a bare path.
fn pair(part: &str) -> (String, String) {
    let (verifier, path) = part.split_once(':').unwrap_or(("?", part));
    (strip(verifier).to_owned(), strip(path).to_owned())
}

/// A JSON object whose keys keep their order; of equal keys the first place and the last value.
struct Object(Vec<(String, serde_json::Value)>);

impl<'de> Deserialize<'de> for Object {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Fields;
        impl<'de> Visitor<'de> for Fields {
            type Value = Object;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a JSON object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Object, A::Error> {
                let mut fields: Vec<(String, serde_json::Value)> = Vec::new();
                let mut at: BTreeMap<String, usize> = BTreeMap::new();
                while let Some((key, value)) = map.next_entry::<String, serde_json::Value>()? {
                    match at.get(&key) {
                        Some(&index) => fields[index].1 = value,
                        None => {
                            at.insert(key.clone(), fields.len());
                            fields.push((key, value));
                        }
                    }
                }
                Ok(Object(fields))
            }
        }
        deserializer.deserialize_map(Fields)
    }
}
