//! What the device thread owns: groups, model, staged weights.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use plumb_collective::Collective;
use plumb_domain::PolicyVersion;
use plumb_model::chat_template::ChatTemplateError;
use plumb_model::tokenizer::TokenizerError;
use plumb_model::{ChatTemplate, ModelError, Tokenizer, Weights};
use plumb_proto::actor::WeightBucket;
use tch::Device;

use crate::engine::{Collected, Engine, EngineError, Figures, Limits, Native, Request, RequestId};
use crate::prompt::{PromptError, Texts};
use crate::request::{Generation, Loading};
use crate::weights::{ActivationError, Staged, take_verified};

/// Why a call could not be done.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    /// No model yet.
    #[error("no model is loaded")]
    NotLoaded,
    /// A folder's weights or configuration are unusable.
    #[error("model {}: {source}", folder.display())]
    Model {
        /// The folder.
        folder: PathBuf,
        /// Why.
        source: ModelError,
    },
    /// A folder's tokenizer is unusable.
    #[error("model {}: {source}", folder.display())]
    Tokenizer {
        /// The folder.
        folder: PathBuf,
        /// Why.
        source: TokenizerError,
    },
    /// A folder's chat template is unusable.
    #[error("model {}: {source}", folder.display())]
    Template {
        /// The folder.
        folder: PathBuf,
        /// Why.
        source: ChatTemplateError,
    },
    /// A group that this worker is not in.
    #[error("this worker is not in group {group:?}; it has joined {joined:?}")]
    NoGroup {
        /// The group asked for.
        group: String,
        /// The groups there are.
        joined: Vec<String>,
    },
    /// The weights did not come in.
    #[error("receiving version {version} from group {group}: {source}")]
    Receive {
        /// The version expected.
        version: PolicyVersion,
        /// The group.
        group: String,
        /// Why.
        source: Box<plumb_engine::EngineError>,
    },
    /// Weights that do not fit the model.
    #[error("weights of version {version}: {source}")]
    Weights {
        /// The version.
        version: PolicyVersion,
        /// Why.
        source: ModelError,
    },
    /// A version that does not become live.
    #[error(transparent)]
    Activation(#[from] ActivationError),
    /// Generation asked of weights that are not live.
    #[error("generation with policy version {asked} is refused: version {live} is live")]
    Version {
        /// The version asked for.
        asked: PolicyVersion,
        /// The live one.
        live: PolicyVersion,
    },
    /// A prompt that cannot be answered.
    #[error(transparent)]
    Prompt(#[from] PromptError),
    /// The engine's refusal or failure.
    #[error(transparent)]
    Engine(#[from] EngineError),
}

struct Loaded {
    engine: Engine<Native>,
    texts: Texts,
}

/// State of the device thread.
pub struct State {
    device: Device,
    groups: BTreeMap<String, Box<dyn Collective>>,
    loaded: Option<Loaded>,
    staged: Option<Staged<Weights>>,
}

impl State {
    /// Nothing loaded, no groups.
    #[must_use]
    pub fn new(device: Device) -> Self {
        Self { device, groups: BTreeMap::new(), loaded: None, staged: None }
    }

    /// Where tensors live.
    #[must_use]
    pub fn device(&self) -> Device {
        self.device
    }

    /// Keeps a group that was joined, replacing an older one of that name.
    pub fn join(&mut self, collective: Box<dyn Collective>) {
        self.groups.insert(collective.group().to_owned(), collective);
    }

    /// The live version, if a model is loaded.
    #[must_use]
    pub fn version(&self) -> Option<PolicyVersion> {
        self.loaded.as_ref().map(|loaded| loaded.engine.version())
    }

    /// Loads a folder in place of what was loaded; returns the number of parameters. Staged
    /// weights and running work are dropped.
    ///
    /// # Errors
    /// What is missing or wrong in the folder, by name. Then no model is loaded.
    pub fn load(&mut self, loading: &Loading) -> Result<u64, StateError> {
        // The old model's memory is free before the new one needs it.
        self.loaded = None;
        self.staged = None;
        let texts = read_texts(&loading.folder)?;
        let refused = |source| StateError::Model { folder: loading.folder.clone(), source };
        let mut native =
            Native::load(&loading.folder, loading.kind, self.device).map_err(refused)?;
        if loading.deterministic {
            native.make_deterministic().map_err(refused)?;
        }
        let parameters = native.parameters();
        self.set_up(native, texts, loading.limits, loading.version);
        Ok(parameters)
    }

    /// [`load`](Self::load) of a model that is in memory already.
    pub fn set_up(&mut self, native: Native, texts: Texts, limits: Limits, version: PolicyVersion) {
        let engine = Engine::new(native, Box::new(texts.clone()), limits, version);
        self.loaded = Some(Loaded { engine, texts });
    }

    /// Receives a version from rank 0 of a group and stages it; returns what arrived.
    ///
    /// # Errors
    /// No model, no such group, another version than expected, a lost peer.
    pub fn receive(
        &mut self,
        group: &str,
        version: PolicyVersion,
    ) -> Result<Vec<WeightBucket>, StateError> {
        let loaded = self.loaded.as_ref().ok_or(StateError::NotLoaded)?;
        let native = loaded.engine.forward();
        let collective = self.groups.get(group).ok_or_else(|| StateError::NoGroup {
            group: group.to_owned(),
            joined: self.groups.keys().cloned().collect(),
        })?;
        // What was staged before is superseded; its memory is needed now.
        self.staged = None;
        let received = plumb_engine::publish::receive(
            collective.as_ref(),
            native.blocks(),
            version.0,
            native.kind(),
            self.device,
        )
        .map_err(|source| StateError::Receive {
            version,
            group: group.to_owned(),
            source: Box::new(source),
        })?;
        let buckets: Vec<WeightBucket> = received
            .buckets
            .into_iter()
            .map(|b| WeightBucket { name: b.name, bytes: b.bytes, digest: b.digest })
            .collect();
        let weights = native
            .weights_from(received.flats)
            .map_err(|source| StateError::Weights { version, source })?;
        self.staged = Some(Staged { version, buckets: buckets.clone(), weights });
        Ok(buckets)
    }

    /// Makes the staged version live if its buckets are those that were sent.
    ///
    /// # Errors
    /// [`ActivationError`]; the old version then stays live.
    pub fn activate(
        &mut self,
        version: PolicyVersion,
        sent: &[WeightBucket],
    ) -> Result<(), StateError> {
        let loaded = self.loaded.as_mut().ok_or(StateError::NotLoaded)?;
        let live = loaded.engine.version();
        let weights = take_verified(&mut self.staged, live, version, sent)?;
        loaded.engine.activate(version, |native| native.replace(weights));
        Ok(())
    }

    /// Queues a generation.
    ///
    /// # Errors
    /// Another version than the live one, or a prompt that cannot be answered; nothing is queued
    /// then.
    pub fn submit(&mut self, generation: Generation) -> Result<RequestId, StateError> {
        let loaded = self.loaded.as_mut().ok_or(StateError::NotLoaded)?;
        let live = loaded.engine.version();
        if generation.version != live {
            return Err(StateError::Version { asked: generation.version, live });
        }
        let Generation {
            prompts, max_prompt_tokens, samples_per_prompt, sampling, seed, step, ..
        } = generation;
        let prompts = loaded.texts.encode_all(prompts, max_prompt_tokens)?;
        let stop = loaded.texts.stop_rules(&sampling);
        let request = Request { prompts, samples_per_prompt, sampling, stop, seed, step };
        Ok(loaded.engine.submit(request)?)
    }

    /// What the engine has done since its model was loaded.
    #[must_use]
    pub fn figures(&self) -> Figures {
        self.loaded.as_ref().map(|loaded| loaded.engine.figures()).unwrap_or_default()
    }

    /// One step of the engine; returns what the request has finished.
    ///
    /// # Errors
    /// No model (it was replaced meanwhile), or the engine's failure.
    pub fn advance(&mut self, request: RequestId) -> Result<Collected, StateError> {
        let loaded = self.loaded.as_mut().ok_or(StateError::NotLoaded)?;
        loaded.engine.step();
        Ok(loaded.engine.collect(request)?)
    }
}

fn read_texts(folder: &Path) -> Result<Texts, StateError> {
    let folder = folder.to_owned();
    let tokenizer = match Tokenizer::from_folder(&folder) {
        Ok(tokenizer) => tokenizer,
        Err(source) => return Err(StateError::Tokenizer { folder, source }),
    };
    match ChatTemplate::from_folder(&folder, &tokenizer) {
        Ok(template) => Ok(Texts { tokenizer, template }),
        Err(source) => Err(StateError::Template { folder, source }),
    }
}

#[cfg(test)]
#[path = "state_tests.rs"]
mod tests;
