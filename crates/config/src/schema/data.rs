//! Keys of data.

use std::collections::BTreeMap;
use std::fmt;

use serde::de::{Error, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// Prompts. A source is the path of a file or folder, or `name:proportion:path` as `docs/data.md`
/// says; several sources are a list and are mixed. Files are JSON lines (`.jsonl`, also `.jsonl.gz`)
/// or Parquet (`.parquet`); folders are those that Hugging Face datasets writes with `save_to_disk`.
/// A path without a name has rows of `id`, `label`, `messages` (or `prompt`) and, where there is
/// one, `reference`. Relative paths are taken from the recipe's folder.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DataConfig {
    /// Prompts to train on.
    #[serde(default)]
    pub train: DataSources,
    /// Prompts that are only used to evaluate.
    #[serde(default)]
    pub heldout: DataSources,
    /// What becomes of rows that are no prompts: `fail` ends the job before it costs time, and says
    /// where the row stands and what is wrong; `skip` leaves them out and reports their number by
    /// cause. Default `fail`.
    #[serde(default)]
    pub on_bad_row: OnBadRow,
    /// Labels of prompts whose data set has none, by the data set's name.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub dataset_labels: BTreeMap<String, String>,
    /// System message put before every prompt, dialogue and pair that has none, in training and in
    /// evaluation.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub system_prompt: Option<String>,
    /// How often a label is drawn, relative to the others; absent: as often as it stands in the
    /// data.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub label_weights: BTreeMap<String, f64>,
}

/// What becomes of bad rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OnBadRow {
    /// The first ends the job.
    #[default]
    Fail,
    /// They are left out, counted and reported by cause.
    Skip,
}

/// By which of its data set's judgements an answer is preferred. Rows of safe-rlhf's kinds have
/// both.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PreferredBy {
    /// The more helpful one (safe-rlhf's `better`).
    #[default]
    Better,
    /// The safer one (safe-rlhf's `safer`).
    Safer,
}

impl PreferredBy {
    /// Whether it is the default.
    #[must_use]
    pub fn is_better(&self) -> bool {
        *self == Self::Better
    }
}

/// Sources of data: one text, or a list of them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct DataSources(pub Vec<String>);

impl DataSources {
    /// Whether no source is given.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Names of data sets among the sources: what stands before the first colon.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.0.iter().filter_map(|source| Some(source.split_once(':')?.0))
    }
}

impl fmt::Display for DataSources {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0.as_slice() {
            [one] => write!(f, "{one:?}"),
            several => write!(f, "{several:?}"),
        }
    }
}

impl Serialize for DataSources {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self.0.as_slice() {
            [one] => serializer.serialize_str(one),
            several => several.serialize(serializer),
        }
    }
}

impl<'de> Deserialize<'de> for DataSources {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Sources;

        impl<'de> Visitor<'de> for Sources {
            type Value = DataSources;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a source of data (text), or a list of sources")
            }

            fn visit_str<E: Error>(self, one: &str) -> Result<DataSources, E> {
                Ok(DataSources(vec![one.to_owned()]))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<DataSources, A::Error> {
                let mut sources = Vec::new();
                while let Some(source) = list.next_element()? {
                    sources.push(source);
                }
                Ok(DataSources(sources))
            }
        }

        deserializer.deserialize_any(Sources)
    }
}
