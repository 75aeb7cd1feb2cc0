//! The resident models of this worker.

use std::collections::BTreeMap;
use std::path::PathBuf;

use plumb_model::ModelError;
use plumb_model::chat_template::ChatTemplateError;
use plumb_model::tokenizer::TokenizerError;
use tch::Device;

use crate::classifier::Classifier;
use crate::component::{Component, Input, Kind, ModelKey};

/// A model that cannot be loaded.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// Its weights or configuration.
    #[error("reward model {}: {source}", folder.display())]
    Model {
        /// The folder.
        folder: PathBuf,
        /// Why.
        source: ModelError,
    },
    /// A language model, not a classifier.
    #[error(
        "reward model {}: config.json names no score head: expected an architecture \
         ...ForSequenceClassification or ...ForMlpScore",
        folder.display()
    )]
    NoScoreHead {
        /// The folder.
        folder: PathBuf,
    },
    /// Its tokenizer.
    #[error("reward model {}: {source}", folder.display())]
    Tokenizer {
        /// The folder.
        folder: PathBuf,
        /// Why.
        source: TokenizerError,
    },
    /// Its chat template.
    #[error("reward model {}: {source}", folder.display())]
    Template {
        /// The folder.
        folder: PathBuf,
        /// Why.
        source: ChatTemplateError,
    },
    /// A component that renders text, and a model that cannot.
    #[error(
        "reward component {component:?}: input is \"text\", but model {} has no chat template",
        folder.display()
    )]
    NoTemplate {
        /// The component.
        component: String,
        /// The model's folder.
        folder: PathBuf,
    },
}

/// Resident models by folder and precision; what the device thread owns.
#[derive(Debug)]
pub struct Models {
    device: Device,
    resident: BTreeMap<ModelKey, Classifier>,
}

impl Models {
    /// No models yet.
    #[must_use]
    pub fn new(device: Device) -> Self {
        Self { device, resident: BTreeMap::new() }
    }

    /// Makes exactly the models of `components` resident; those that are already stay. Returns
    /// the number of parameters held. After an error the models are those from before.
    ///
    /// # Errors
    /// [`LoadError`] names the folder and what is wrong with it.
    pub fn load(&mut self, components: &[Component]) -> Result<u64, LoadError> {
        let mut new = BTreeMap::new();
        for component in components {
            let Kind::Classifier(spec) = &component.kind else { continue };
            if !self.resident.contains_key(&spec.model) && !new.contains_key(&spec.model) {
                new.insert(spec.model.clone(), Classifier::load(&spec.model, self.device)?);
            }
            let model = new.get(&spec.model).or_else(|| self.resident.get(&spec.model));
            if spec.input == Input::Text && !model.is_some_and(Classifier::has_template) {
                return Err(LoadError::NoTemplate {
                    component: component.name.clone(),
                    folder: spec.model.folder.clone(),
                });
            }
        }
        let wanted = |key: &ModelKey| {
            components.iter().any(|c| matches!(&c.kind, Kind::Classifier(s) if s.model == *key))
        };
        self.resident.append(&mut new);
        self.resident.retain(|key, _| wanted(key));
        Ok(self.resident.values().map(Classifier::parameters).sum())
    }

    /// A resident model.
    #[must_use]
    pub fn get(&self, key: &ModelKey) -> Option<&Classifier> {
        self.resident.get(key)
    }

    /// Models held.
    #[must_use]
    pub fn len(&self) -> usize {
        self.resident.len()
    }

    /// Whether none is held.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.resident.is_empty()
    }
}
