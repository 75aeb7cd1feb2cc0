//! From a prompt of the request to the tokens that the model is fed.

use std::collections::BTreeSet;

use plumb_domain::{ChatMessage, Label, PromptId, SamplingParams};
use plumb_model::chat_template::ChatTemplateError;
use plumb_model::tokenizer::TokenizerError;
use plumb_model::{ChatTemplate, Tokenizer};
use plumb_proto::rollout;

use crate::engine::EncodedPrompt;
use crate::stop::{Detokenizer, StopRules};

/// A prompt that cannot be answered.
#[derive(Debug, thiserror::Error)]
pub enum PromptError {
    /// Its id or label cannot be one.
    #[error("prompt {place}: {source}")]
    Id {
        /// Its place in the request, from 0.
        place: usize,
        /// What is wrong.
        source: plumb_domain::IdError,
    },
    /// Two of one id: their samples could not be told apart.
    #[error("prompt {id} is given twice")]
    Repeated {
        /// The id.
        id: String,
    },
    /// Nothing to say.
    #[error("prompt {id} has neither messages nor a text")]
    Empty {
        /// The id.
        id: String,
    },
    /// Messages, but a base model.
    #[error("prompt {id} has messages, but the model has no chat template: give it as a text")]
    NoTemplate {
        /// The id.
        id: String,
    },
    /// The template does not take these messages.
    #[error("prompt {id}: {source}")]
    Template {
        /// The id.
        id: String,
        /// Why.
        source: ChatTemplateError,
    },
    /// The tokenizer does not take this text.
    #[error("prompt {id}: {source}")]
    Tokenizer {
        /// The id.
        id: String,
        /// Why.
        source: TokenizerError,
    },
    /// Longer than the request allows.
    #[error(
        "prompt {id} has {tokens} tokens, max_prompt_tokens is {max}: shorten it or raise the limit"
    )]
    TooLong {
        /// The id.
        id: String,
        /// Its length.
        tokens: usize,
        /// The limit.
        max: usize,
    },
}

/// A model's tokenizer and chat template.
#[derive(Debug, Clone)]
pub struct Texts {
    /// The tokenizer.
    pub tokenizer: Tokenizer,
    /// Absent for a base model.
    pub template: Option<ChatTemplate>,
}

impl Texts {
    /// Encodes a request's prompts, all or none.
    ///
    /// Messages are rendered by the chat template, which writes the special tokens itself. A
    /// `text` is encoded with what the tokenizer adds, such as a beginning-of-sequence token;
    /// `token_ids` are taken as they are, whatever else is given.
    /// `max_tokens` 0 leaves the bound to the model's context.
    ///
    /// # Errors
    /// [`PromptError`] names the first prompt that cannot be answered.
    pub fn encode_all(
        &self,
        prompts: Vec<rollout::Prompt>,
        max_tokens: usize,
    ) -> Result<Vec<EncodedPrompt>, PromptError> {
        let mut ids = BTreeSet::new();
        let mut encoded = Vec::with_capacity(prompts.len());
        for (place, prompt) in prompts.into_iter().enumerate() {
            let wrong = |source| PromptError::Id { place, source };
            PromptId::new(prompt.id.clone()).map_err(wrong)?;
            Label::new(prompt.label.clone()).map_err(wrong)?;
            if !ids.insert(prompt.id.clone()) {
                return Err(PromptError::Repeated { id: prompt.id });
            }
            encoded.push(self.encode(prompt, max_tokens)?);
        }
        Ok(encoded)
    }

    fn encode(
        &self,
        prompt: rollout::Prompt,
        max_tokens: usize,
    ) -> Result<EncodedPrompt, PromptError> {
        let id = prompt.id;
        let messages: Vec<ChatMessage> = prompt
            .messages
            .into_iter()
            .map(|m| ChatMessage { role: m.role, content: m.content })
            .collect();
        if !prompt.token_ids.is_empty() {
            let ids = prompt.token_ids;
            within(max_tokens, &id, ids.len())?;
            let question = last_user_text(messages).unwrap_or_else(|| self.text(&ids));
            let (label, reference) = (prompt.label, prompt.reference);
            return Ok(EncodedPrompt { id, label, ids, question, reference });
        }
        let (text, add_special_tokens) = match (prompt.text, &self.template) {
            (Some(text), _) => (text, true),
            (None, _) if messages.is_empty() => return Err(PromptError::Empty { id }),
            (None, None) => return Err(PromptError::NoTemplate { id }),
            (None, Some(template)) => match template.render(&messages, true) {
                Ok(text) => (text, false),
                Err(source) => return Err(PromptError::Template { id, source }),
            },
        };
        let ids = match self.tokenizer.encode(&text, add_special_tokens) {
            Ok(ids) => ids,
            Err(source) => return Err(PromptError::Tokenizer { id, source }),
        };
        within(max_tokens, &id, ids.len())?;
        let question = last_user_text(messages).unwrap_or(text);
        Ok(EncodedPrompt { id, label: prompt.label, ids, question, reference: prompt.reference })
    }

    /// What ends responses: the model's end-of-sequence tokens unless ignored, and the stop
    /// strings. A stop string that is a token without text, such as `<|im_end|>`, is met as a
    /// token.
    #[must_use]
    pub fn stop_rules(&self, sampling: &SamplingParams) -> StopRules {
        let eos = if sampling.ignore_eos { &[] } else { self.tokenizer.eos_ids() };
        let min_tokens = sampling.min_new_tokens as usize;
        let mut rules = StopRules { eos_ids: eos.to_vec(), min_tokens, ..StopRules::default() };
        for text in &sampling.stop {
            match self.tokenizer.token_id(text) {
                Some(id) if self.text(&[id]).is_empty() => rules.token_ids.push(id),
                _ => rules.strings.push(text.clone()),
            }
        }
        rules
    }
}

fn within(max_tokens: usize, id: &str, tokens: usize) -> Result<(), PromptError> {
    if max_tokens > 0 && tokens > max_tokens {
        return Err(PromptError::TooLong { id: id.to_owned(), tokens, max: max_tokens });
    }
    Ok(())
}

fn last_user_text(messages: Vec<ChatMessage>) -> Option<String> {
    messages.into_iter().rev().find(|m| m.role == "user").map(|message| message.content)
}

impl Detokenizer for Texts {
    fn text(&self, ids: &[u32]) -> String {
        self.tokenizer.decode(ids, true).unwrap_or_else(|error| {
            // Ids come from the model's own vocabulary, so this is a folder whose tokenizer is
            // smaller than its embedding.
            tracing::warn!(%error, "tokens without a text");
            String::new()
        })
    }
}
