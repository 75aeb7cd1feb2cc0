//! A model with a score head.

use plumb_domain::ChatMessage;
use plumb_model::{
    ChatTemplate, Decoder, HeadSpec, ModelConfig, ModelError, Packed, Tokenizer, Weights,
};
use plumb_proto::object::Sample;
use tch::{Device, Kind, Tensor};

use crate::component::{ClassifierSpec, Input, ModelKey};
use crate::models::LoadError;
use crate::outcome::{Deadline, Outcome, finite};
use crate::packing;

/// Resident weights with their tokenizer.
#[derive(Debug)]
pub struct Classifier {
    decoder: Decoder,
    weights: Weights,
    tokenizer: Tokenizer,
    template: Option<ChatTemplate>,
}

impl Classifier {
    /// Loads a folder.
    ///
    /// # Errors
    /// [`LoadError`] names the folder and what is wrong with it: a file or tensor that is
    /// missing or truncated, an unsupported architecture, no score head.
    pub fn load(key: &ModelKey, device: Device) -> Result<Self, LoadError> {
        let folder = key.folder.clone();
        let tokenizer = match Tokenizer::from_folder(&folder) {
            Ok(tokenizer) => tokenizer,
            Err(source) => return Err(LoadError::Tokenizer { folder, source }),
        };
        let template = match ChatTemplate::from_folder(&folder, &tokenizer) {
            Ok(template) => template,
            Err(source) => return Err(LoadError::Template { folder, source }),
        };
        let failed = |source| LoadError::Model { folder: folder.clone(), source };
        let config = ModelConfig::from_folder(&folder).map_err(failed)?;
        let Some(head) = config.score_head.clone() else {
            return Err(LoadError::NoScoreHead { folder });
        };
        let decoder = Decoder::new(config).map_err(failed)?;
        let head = HeadSpec::Score(head);
        let weights = Weights::load(&decoder, &folder, &head, key.precision.kind(), device)
            .map_err(failed)?;
        Ok(Self { decoder, weights, tokenizer, template })
    }

    /// Number of parameters.
    #[must_use]
    pub fn parameters(&self) -> u64 {
        self.weights.specs().iter().map(|block| block.numel() as u64).sum()
    }

    /// Whether the folder has a chat template.
    #[must_use]
    pub fn has_template(&self) -> bool {
        self.template.is_some()
    }

    /// Scores samples, each at its last token, in packed batches; one outcome per sample.
    ///
    /// A sample that cannot be scored, or that comes up after the deadline, has its reason as
    /// its outcome; the others are scored all the same.
    #[must_use]
    pub fn score(
        &self,
        spec: &ClassifierSpec,
        samples: &[&Sample],
        deadline: &Deadline,
    ) -> Vec<Outcome> {
        let mut outcomes: Vec<Outcome> = vec![Err("not scored".to_owned()); samples.len()];
        let mut places = Vec::with_capacity(samples.len());
        let mut sequences = Vec::with_capacity(samples.len());
        for (place, sample) in samples.iter().enumerate() {
            match self.sequence(spec.input, sample) {
                Ok(ids) => {
                    places.push(place);
                    sequences.push(ids);
                }
                Err(error) => outcomes[place] = Err(error),
            }
        }
        let lengths: Vec<usize> = sequences.iter().map(Vec::len).collect();
        for batch in packing::batches(&lengths, spec.micro_batch_tokens) {
            let results = self.batch(&sequences, &batch, deadline);
            for (index, result) in batch.into_iter().zip(results) {
                outcomes[places[index]] = result.and_then(|raw| finite(spec.transform.apply(raw)));
            }
        }
        outcomes
    }

    fn batch(&self, sequences: &[Vec<u32>], batch: &[usize], deadline: &Deadline) -> Vec<Outcome> {
        if let Some(late) = deadline.passed() {
            return vec![Err(late); batch.len()];
        }
        let chosen: Vec<&[u32]> = batch.iter().map(|index| sequences[*index].as_slice()).collect();
        match self.raw_scores(&chosen) {
            // A raw NaN may hide behind a transform: sigmoid of an infinity is a number.
            Ok(scores) => scores.into_iter().map(finite).collect(),
            Err(error) => vec![Err(error.to_string()); batch.len()],
        }
    }

    fn raw_scores(&self, sequences: &[&[u32]]) -> Result<Vec<f64>, ModelError> {
        let packed = Packed::new(sequences)?;
        let scores_b: Tensor = self.decoder.score_sequences(&self.weights, &packed)?;
        let scores_b = scores_b.f_to_device(Device::Cpu)?.f_to_kind(Kind::Double)?;
        Ok(Vec::<f64>::try_from(scores_b)?)
    }

    /// The tokens that the model reads of a sample.
    fn sequence(&self, input: Input, sample: &Sample) -> Result<Vec<u32>, String> {
        let ids = match input {
            Input::Tokens => self.own_tokens(sample)?,
            Input::Text => self.rendered(sample)?,
        };
        let context = self.decoder.config().max_positions;
        if ids.len() as i64 > context {
            return Err(format!("{} tokens, the reward model's context is {context}", ids.len()));
        }
        Ok(ids)
    }

    /// Prompt and response tokens, if they mean to this model what they meant to the policy.
    fn own_tokens(&self, sample: &Sample) -> Result<Vec<u32>, String> {
        if sample.response_ids.is_empty() {
            return Err("the response has no tokens".to_owned());
        }
        let text = self.tokenizer.decode(&sample.response_ids, true).map_err(|e| e.to_string())?;
        // The sample's answer may have been cut before a stop string.
        if !text.starts_with(&sample.response) {
            return Err(format!(
                "the response's tokens are {:?} to the reward model, but the policy wrote {:?}: \
                 the tokenizers differ; set input = \"text\"",
                start_of(&text),
                start_of(&sample.response)
            ));
        }
        Ok([sample.prompt_ids.as_slice(), &sample.response_ids].concat())
    }

    /// Question and answer in the model's own chat format.
    fn rendered(&self, sample: &Sample) -> Result<Vec<u32>, String> {
        let Some(template) = &self.template else {
            return Err("the reward model has no chat template".to_owned());
        };
        let message = |role: &str, content: &str| ChatMessage {
            role: role.to_owned(),
            content: content.to_owned(),
        };
        let messages = [message("user", &sample.question), message("assistant", &sample.response)];
        let text = template.render(&messages, false).map_err(|e| e.to_string())?;
        self.tokenizer.encode(&text, false).map_err(|e| e.to_string())
    }
}

/// Enough of a text to recognise it in an error.
fn start_of(text: &str) -> String {
    text.chars().take(40).collect()
}

#[cfg(test)]
#[path = "classifier_tests.rs"]
mod tests;
