//! From component scores to a sample's reward: the sample's label picks the mix.
//!
//! Source: SafeWork-R1 (LightRFT `mix_rewards`, reward_models_utils.py): a recipe maps each label
//! to components with weights, and a format reward is added for all labels.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

/// Component -> weight.
pub type Weights = BTreeMap<String, f64>;

/// Which components make up the reward of which label.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Mix {
    /// Label -> component -> weight.
    pub labels: BTreeMap<String, Weights>,
    /// Added for every label (SafeWork: the format reward, weight 1). Default none.
    #[serde(default)]
    pub common: Weights,
    /// Labels that `common` is not added for (SafeWork: geo3k and gsm8k, whose own rule already
    /// holds a format part).
    #[serde(default)]
    pub without_common: BTreeSet<String>,
    /// What a label that is in no mix is worth. Default: an error.
    #[serde(default)]
    pub unknown_label: UnknownLabel,
}

/// What to do with a label that the recipe does not name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum UnknownLabel {
    /// Refuse the sample.
    #[default]
    Refuse,
    /// Only the common components count (SafeWork).
    CommonOnly,
}

/// A sample's reward and what it is made of.
#[derive(Debug, Clone, PartialEq)]
pub struct Mixed {
    /// `sum over components of weight * score`.
    pub total: f64,
    /// Component -> its unweighted score.
    pub scores: BTreeMap<String, f64>,
}

/// A sample that has no reward.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum MixError {
    /// The label is in no mix.
    #[error("label {label:?} is in no reward mix; there are {known}")]
    UnknownLabel {
        /// The sample's label.
        label: String,
        /// The labels there are.
        known: String,
    },
    /// A component that the mix needs failed or is not there. Its score is never taken for 0.
    #[error("component {component:?} of label {label:?} gave no score: {cause}")]
    NoScore {
        /// The sample's label.
        label: String,
        /// Which component.
        component: String,
        /// Why.
        cause: String,
    },
    /// A score that is no number.
    #[error("component {component:?} of label {label:?} scored {value}")]
    NonFinite {
        /// The sample's label.
        label: String,
        /// Which component.
        component: String,
        /// Its score.
        value: f64,
    },
}

impl Mix {
    /// Component -> weight for one label: its own plus the common ones. A component in both has
    /// the sum of both weights.
    ///
    /// # Errors
    /// [`MixError::UnknownLabel`] unless unknown labels take the common components only.
    pub fn weights(&self, label: &str) -> Result<Weights, MixError> {
        let mut weights = match (self.labels.get(label), self.unknown_label) {
            (Some(own), _) => own.clone(),
            (None, UnknownLabel::CommonOnly) => Weights::new(),
            (None, UnknownLabel::Refuse) => {
                let known: Vec<&str> = self.labels.keys().map(String::as_str).collect();
                let known = known.join(", ");
                return Err(MixError::UnknownLabel { label: label.to_owned(), known });
            }
        };
        if !self.without_common.contains(label) {
            for (component, weight) in &self.common {
                *weights.entry(component.clone()).or_insert(0.0) += weight;
            }
        }
        Ok(weights)
    }

    /// `sum over the label's components of weight * score`, each score asked of `score`. A
    /// component of weight 0 is asked too: it is measured, and counts nothing.
    ///
    /// # Errors
    /// [`MixError::NoScore`] with the cause that `score` gives, [`MixError::NonFinite`],
    /// [`MixError::UnknownLabel`].
    pub fn reward(
        &self,
        label: &str,
        mut score: impl FnMut(&str) -> Result<f64, String>,
    ) -> Result<Mixed, MixError> {
        let mut mixed = Mixed { total: 0.0, scores: BTreeMap::new() };
        for (component, weight) in self.weights(label)? {
            let value = score(&component).map_err(|cause| MixError::NoScore {
                label: label.to_owned(),
                component: component.clone(),
                cause,
            })?;
            if !value.is_finite() {
                return Err(MixError::NonFinite { label: label.to_owned(), component, value });
            }
            mixed.total += weight * value;
            mixed.scores.insert(component, value);
        }
        Ok(mixed)
    }
}
