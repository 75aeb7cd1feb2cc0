//! What a verifier is asked about a sample.

use plumb_domain::template::{TemplateError, fill};
use plumb_domain::text::{has_chinese, strip};

use super::dialogue::{Dialogue, without_images};
use crate::rule::text::after_thinking;

/// The two languages that SafeWork-R1's verifiers are asked in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ByLanguage<'a> {
    /// For questions with a CJK ideograph in them.
    pub zh: &'a str,
    /// For all others.
    pub en: &'a str,
}

impl<'a> ByLanguage<'a> {
    /// The text for a question: `zh` if any CJK ideograph (U+4E00 to U+9FFF) is in it.
    #[must_use]
    pub fn of(&self, question: &str) -> &'a str {
        if has_chinese(question) { self.zh } else { self.en }
    }
}

/// How a verifier is asked. Gaps of a template are `{question}`, `{response}` and `{reference}`;
/// literal braces are doubled.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct JudgePrompt<'a> {
    /// The template by the question's language. For a template of the sample's own, whatever its
    /// language (SafeWork: a stricter one for the label `jailbreak`), give it for both.
    pub template: ByLanguage<'a>,
    /// Rules that go before it, on a line of their own. Default none.
    pub system: Option<ByLanguage<'a>>,
}

/// A sample that no prompt can be written for.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum JudgePromptError {
    /// The template.
    #[error("the verifier's template: {0}")]
    Template(#[from] TemplateError),
    /// The template has the gap `{reference}` and the sample no reference.
    #[error("the verifier's template has the gap {{reference}} and the sample no reference")]
    NoReference,
}

/// Question and answer as a verifier sees them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Exchange {
    /// The last user turn without image placeholders.
    pub question: String,
    /// The last answer without its thinking.
    pub response: String,
}

impl Exchange {
    /// From a rendered chat ([`Dialogue::parse`]). Without a user turn the question is that of the
    /// first role that is not the assistant, or else the whole text; without an assistant turn the
    /// response is what follows the last `</think>` of the whole text.
    ///
    /// Source: SafeWork-R1 `preprocess_inputs_sglang`.
    #[must_use]
    pub fn parse(chat: &str) -> Self {
        let dialogue = Dialogue::parse(chat);
        let other = || dialogue.turns().find(|(role, _)| *role != "assistant").map(|(_, t)| t);
        let question = dialogue.said_by("user").or_else(other).unwrap_or(chat);
        let response = dialogue.said_by("assistant").unwrap_or_else(|| strip(after_thinking(chat)));
        Self { question: without_images(question), response: response.to_owned() }
    }
}

impl JudgePrompt<'_> {
    /// The prompt for a sample.
    ///
    /// Source: SafeWork-R1 `preprocess_inputs_sglang`.
    ///
    /// # Errors
    /// [`JudgePromptError`].
    pub fn write(
        &self,
        exchange: &Exchange,
        reference: Option<&str>,
    ) -> Result<String, JudgePromptError> {
        let template = self.template.of(&exchange.question);
        if reference.is_none() && template.contains("{reference}") {
            return Err(JudgePromptError::NoReference);
        }
        let asked = fill(template, |gap| match gap {
            "question" => Some(exchange.question.as_str()),
            "response" => Some(exchange.response.as_str()),
            "reference" => reference,
            _ => None,
        })?;
        Ok(match self.system {
            Some(rules) => format!("{}\n{asked}", rules.of(&exchange.question)),
            None => asked,
        })
    }
}
