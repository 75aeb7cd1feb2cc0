//! From messages to token ids, and which of them are the assistant's.

use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use plumb_domain::ChatMessage;
use plumb_model::chat_template::ChatTemplateError;
use plumb_model::tokenizer::TokenizerError;
use plumb_model::{ChatTemplate, Tokenizer};

/// A dialogue that cannot be encoded.
#[derive(Debug, thiserror::Error)]
pub(crate) enum DialogueError {
    /// The folder's tokenizer or template cannot be read.
    #[error("model folder {}", folder.display())]
    Folder {
        /// The folder.
        folder: PathBuf,
        /// Why.
        #[source]
        source: ChatTemplateError,
    },
    /// A base model.
    #[error(
        "model folder {} has no chat template, so dialogues have no form; add \
         chat_template.jinja to it",
        folder.display()
    )]
    NoTemplate {
        /// The folder.
        folder: PathBuf,
    },
    /// The template does not take these messages.
    #[error("dialogue {id}")]
    Template {
        /// The dialogue.
        id: String,
        /// Why.
        #[source]
        source: ChatTemplateError,
    },
    /// The tokenizer does not take the text.
    #[error("dialogue {id}")]
    Tokenizer {
        /// The dialogue.
        id: String,
        /// Why.
        #[source]
        source: TokenizerError,
    },
    /// Nothing to learn.
    #[error("dialogue {id} has no assistant's turn")]
    NoAnswer {
        /// The dialogue.
        id: String,
    },
    /// The template writes earlier turns anew once later ones follow.
    #[error(
        "dialogue {id}: the chat template writes what stands before message {message} in another \
         way once that message follows; split the dialogue into one for each answer"
    )]
    Rewritten {
        /// The dialogue.
        id: String,
        /// The message, from 0.
        message: usize,
    },
}

/// A model folder's way of writing dialogues.
#[derive(Debug)]
pub(crate) struct Dialogues {
    tokenizer: Tokenizer,
    template: ChatTemplate,
}

impl Dialogues {
    fn open(folder: &Path) -> Result<Self, DialogueError> {
        let failed = |source| DialogueError::Folder { folder: folder.to_owned(), source };
        let tokenizer = Tokenizer::from_folder(folder).map_err(|e| failed(e.into()))?;
        match ChatTemplate::from_folder(folder, &tokenizer).map_err(failed)? {
            Some(template) => Ok(Self { tokenizer, template }),
            None => Err(DialogueError::NoTemplate { folder: folder.to_owned() }),
        }
    }

    /// Token ids of a dialogue, and the spans of them that the assistant wrote, each with the
    /// end-of-sequence token that ends the turn. What the template writes before an answer and
    /// the answer itself are encoded apart, as they are when the model answers, so that no token
    /// crosses that border.
    pub(crate) fn encode(
        &self,
        id: &str,
        messages: &[ChatMessage],
    ) -> Result<(Vec<u32>, Vec<Range<usize>>), DialogueError> {
        let render = |count: usize, prompt: bool| {
            self.template
                .render(&messages[..count], prompt)
                .map_err(|source| DialogueError::Template { id: id.to_owned(), source })
        };
        let (mut ids, mut targets, mut written) = (Vec::new(), Vec::new(), String::new());
        let mut append = |message: usize, text: String, ids: &mut Vec<u32>| {
            let Some(new) = text.strip_prefix(&written) else {
                return Err(DialogueError::Rewritten { id: id.to_owned(), message });
            };
            let encoded = self.tokenizer.encode(new, false);
            ids.extend(
                encoded.map_err(|source| DialogueError::Tokenizer { id: id.to_owned(), source })?,
            );
            written = text;
            Ok(())
        };
        let answers = messages.iter().enumerate().filter(|(_, m)| m.role == "assistant");
        for (message, _) in answers {
            append(message, render(message, true)?, &mut ids)?;
            let first = ids.len();
            append(message, render(message + 1, false)?, &mut ids)?;
            let eos = ids[first..].iter().rposition(|id| self.tokenizer.eos_ids().contains(id));
            let end = eos.map_or(ids.len(), |eos| first + eos + 1);
            // Position 0 has nothing before it that could predict it.
            let target = first.max(1)..end;
            if !target.is_empty() {
                targets.push(target);
            }
        }
        if targets.is_empty() {
            return Err(DialogueError::NoAnswer { id: id.to_owned() });
        }
        Ok((ids, targets))
    }
}

/// A folder, and what was read from it.
type Opened = (PathBuf, Arc<Dialogues>);

/// The folder that was used last, kept open: data sets come in many calls.
#[derive(Debug, Clone, Default)]
pub(crate) struct LoadedDialogues(Arc<Mutex<Option<Opened>>>);

impl LoadedDialogues {
    /// Opens a folder unless it is the last one.
    pub(crate) fn of(&self, folder: &Path) -> Result<Arc<Dialogues>, DialogueError> {
        let mut last = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((path, dialogues)) = &*last
            && path == folder
        {
            return Ok(Arc::clone(dialogues));
        }
        let dialogues = Arc::new(Dialogues::open(folder)?);
        *last = Some((folder.to_owned(), Arc::clone(&dialogues)));
        Ok(dialogues)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tiny() -> Arc<Dialogues> {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../recipes/tiny/model");
        LoadedDialogues::default().of(&folder).unwrap()
    }

    fn messages(turns: &[(&str, &str)]) -> Vec<ChatMessage> {
        let message = |&(role, content): &(&str, &str)| ChatMessage {
            role: role.to_owned(),
            content: content.to_owned(),
        };
        turns.iter().map(message).collect()
    }

    #[test]
    fn every_answer_is_a_target_with_the_token_that_ends_it_and_nothing_else_is() {
        let dialogues = tiny();
        let turns = [("user", "Hi"), ("assistant", "Yo"), ("user", "And?"), ("assistant", "No.")];
        let (ids, targets) = dialogues.encode("d", &messages(&turns)).unwrap();
        let text =
            |range: &Range<usize>| dialogues.tokenizer.decode(&ids[range.clone()], false).unwrap();
        let learnt: Vec<_> = targets.iter().map(text).collect();
        assert_eq!(learnt, ["Yo<|im_end|>", "No.<|im_end|>"]);
        assert_eq!(
            dialogues.tokenizer.decode(&ids, false).unwrap(),
            "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nYo<|im_end|>\n\
             <|im_start|>user\nAnd?<|im_end|>\n<|im_start|>assistant\nNo.<|im_end|>\n"
        );
    }

    /// Ids and masks were written by transformers (`tests/parity/make_dialogue_vectors.py`).
    #[test]
    fn ids_and_targets_are_those_of_transformers() {
        let text = include_str!("testdata/dialogue_vectors.json");
        let vectors: serde_json::Value = serde_json::from_str(text).unwrap();
        let mut compared = 0;
        for template in vectors["templates"].as_array().unwrap() {
            let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
            let folder = folder.join(template["folder"].as_str().unwrap());
            let tokenizer = Tokenizer::from_folder(&folder).unwrap();
            let source = template["template"].as_str().unwrap().to_owned();
            let (bos, eos) = (tokenizer.bos_token(), tokenizer.eos_token());
            let template_text = ChatTemplate::new(source).unwrap().with_tokens(bos, eos);
            let dialogues = Dialogues { template: template_text, tokenizer };
            for (name, case) in template["cases"].as_object().unwrap() {
                let messages: Vec<ChatMessage> =
                    serde_json::from_value(case["messages"].clone()).unwrap();
                let expected: Vec<u32> = serde_json::from_value(case["ids"].clone()).unwrap();
                let spans: Vec<(usize, usize)> =
                    serde_json::from_value(case["targets"].clone()).unwrap();
                let (ids, targets) = dialogues.encode(name, &messages).unwrap();
                // What follows the last answer is not encoded: nothing in it is learnt.
                assert_eq!(ids[..], expected[..ids.len()], "{} {name}", template["name"]);
                let targets: Vec<_> = targets.into_iter().map(|t| (t.start, t.end)).collect();
                assert_eq!(targets, spans, "{} {name}", template["name"]);
                compared += 1;
            }
        }
        assert_eq!(compared, 12);
    }

    #[test]
    fn what_cannot_be_encoded_is_named() {
        let error = tiny().encode("d-7", &messages(&[("user", "Hi")])).unwrap_err().to_string();
        assert!(error.contains("d-7") && error.contains("no assistant"), "{error}");
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/parity/data/tiny-qwen2");
        assert!(LoadedDialogues::default().of(&folder).is_err());
        let mut dialogues =
            Dialogues::open(&Path::new(env!("CARGO_MANIFEST_DIR")).join("../recipes/tiny/model"))
                .unwrap();
        dialogues.template =
            ChatTemplate::new("{{ messages | length }}{{ messages[-1].content }}".into()).unwrap();
        let error = dialogues
            .encode("d-8", &messages(&[("user", "Hi"), ("assistant", "Yo")]))
            .unwrap_err()
            .to_string();
        assert!(error.contains("d-8") && error.contains("message 1"), "{error}");
    }
}
