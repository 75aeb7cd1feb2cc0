//! The dialogue with a policy: the user's next message and the score of each turn.

use super::{Image, JudgeCall, JudgeError, Message, Settings, Unjudged, Verdict, question_in_text};
use crate::blank::strip;
use crate::json::Json;
use crate::rule::repetition_ratio;
use crate::turn::ThinkingAnswer;

/// A dialogue's user: goes through the data's further messages, or asks what the judge proposes.
/// A pure state machine; whoever drives it makes the calls:
///
/// 1. [`Interaction::begin`] with the messages so far, the policy's answer the last. `None`: the
///    dialogue is over.
/// 2. If [`Exchange::call`] is set, ask that judge with [`Exchange::prompt`] and
///    [`Exchange::image_urls`].
/// 3. [`Interaction::conclude`] with the call's outcome gives the turn.
///
/// `score = format + reward / 10`, less the repetition penalty but not below 0: from 0 to 2.
///
/// Source: SaFeR-Steer `SaferdyInteraction.generate_response`.
#[derive(Debug, Clone, PartialEq)]
pub struct Interaction {
    settings: Settings,
    turns: usize,
}

/// A turn that is being scored.
#[derive(Debug, Clone, PartialEq)]
pub struct Exchange {
    /// The user's message that the policy answered.
    pub question: String,
    /// The policy's answer.
    pub answer: String,
    /// The user's next message as the data has it.
    pub planned: String,
    /// The last tool message.
    pub tool_feedback: String,
    /// The judge to ask, if there is one.
    pub call: Option<JudgeCall>,
    /// What to ask it; empty without a judge.
    pub prompt: String,
    /// Images that go with it.
    pub image_urls: Vec<String>,
}

/// What became of the call to the judge.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome<'a> {
    /// Its reply.
    Replied(&'a str),
    /// Why there is none.
    Failed(&'a str),
    /// There is no judge.
    NotAsked,
}

/// A turn.
#[derive(Debug, Clone, PartialEq)]
pub struct Turn {
    /// The user's next message.
    pub user_text: String,
    /// The score of the policy's answer. `None` where no judge has scored it, by
    /// [`Unjudged::NoScore`].
    pub score: Option<f64>,
    /// What the judge said.
    pub verdict: Option<Verdict>,
    /// Why the judge has said nothing.
    pub failure: Option<String>,
    /// [`repetition_ratio`] of the answer.
    pub repetition_ratio: f64,
    /// What it cost.
    pub repetition_penalty: f64,
}

impl Interaction {
    /// A dialogue at its start.
    #[must_use]
    pub fn new(settings: Settings) -> Self {
        Self { settings, turns: 0 }
    }

    /// The score of the call that ends the dialogue.
    #[must_use]
    pub fn end_score(&self) -> Option<f64> {
        match self.settings.unjudged {
            Unjudged::NoScore => None,
            Unjudged::Compat => Some(0.0),
        }
    }

    /// Takes up the policy's answer. `None` once the further messages or the turns are used up.
    ///
    /// # Errors
    /// [`JudgeError::Message`] for an image without content.
    pub fn begin(&mut self, messages: &[Message]) -> Result<Option<Exchange>, JudgeError> {
        if self.turns >= self.settings.max_turns {
            return Ok(None);
        }
        let Some(next) = self.settings.rest.get(self.turns) else { return Ok(None) };
        self.turns += 1;
        let last = |role: &str| {
            let message = messages.iter().rev().find(|message| message.role == role);
            message.map(|message| message.text.clone()).unwrap_or_default()
        };
        let images: Vec<&Image> = messages.iter().flat_map(|message| &message.images).collect();
        let mut exchange = Exchange {
            question: last("user"),
            answer: last("assistant"),
            planned: next.text.clone(),
            tool_feedback: last("tool"),
            call: self.settings.judge.clone(),
            prompt: String::new(),
            image_urls: image_urls(&images, self.settings.max_images)?,
        };
        if let Some(call) = &self.settings.judge {
            let shown = with_image_info(&exchange.question, &images);
            let planned = match strip(&exchange.planned) {
                "" => self.settings.no_next_question.as_str(),
                planned => planned,
            };
            exchange.prompt = call.template.fill(&shown, &exchange.answer, planned);
        }
        Ok(Some(exchange))
    }

    /// Scores the turn and chooses the user's next message: the judge's question; else one in the
    /// tool's feedback; else the data's.
    ///
    /// # Errors
    /// [`JudgeError::Json`] for tool feedback whose JSON is not read; [`JudgeError::NotANumber`]
    /// for such a score, which only [`super::Scores::Compat`] lets through. A reply that cannot be
    /// read is a failed call.
    pub fn conclude(&self, exchange: &Exchange, outcome: Outcome<'_>) -> Result<Turn, JudgeError> {
        let settings = &self.settings;
        let (verdict, failure) = match outcome {
            Outcome::Replied(reply) => {
                match Verdict::read_any(reply, settings.dimensions, settings.scores) {
                    Ok(verdict) => (Some(verdict), None),
                    Err(error) => (None, Some(error.to_string())),
                }
            }
            Outcome::Failed(why) => (None, Some(why.to_owned())),
            Outcome::NotAsked => (None, None),
        };
        let format = ThinkingAnswer::check(&exchange.answer).reward();
        let score = match (&verdict, &failure, settings.unjudged) {
            (Some(verdict), ..) => Some(format + verdict.reward.unwrap_or(0.0) / 10.0),
            (None, None, Unjudged::NoScore) => Some(format),
            (None, Some(_), Unjudged::NoScore) => None,
            (None, _, Unjudged::Compat) => Some(0.0),
        };
        let rule = settings.repetition;
        let ratio = repetition_ratio(&exchange.answer, rule.ngram, rule.min_tokens);
        let penalty = if rule.coef > 0.0 { ratio * rule.coef } else { 0.0 };
        let score = score.map(|s| if penalty > 0.0 { (s - penalty).max(0.0) } else { s });
        if score.is_some_and(f64::is_nan) {
            return Err(JudgeError::NotANumber);
        }
        let judges = verdict.as_ref().and_then(|verdict| verdict.new_question.clone());
        let question = match judges {
            None if settings.tool_question => question_in_text(&exchange.tool_feedback)?,
            judges => judges,
        };
        Ok(Turn {
            user_text: question.unwrap_or_else(|| exchange.planned.clone()),
            score,
            verdict,
            failure,
            repetition_ratio: ratio,
            repetition_penalty: penalty,
        })
    }
}

/// The addresses of the first images that have one.
fn image_urls(images: &[&Image], most: usize) -> Result<Vec<String>, JudgeError> {
    let mut urls = Vec::new();
    for image in images {
        if urls.len() >= most {
            break;
        }
        urls.extend(image.url()?.map(str::to_owned));
    }
    Ok(urls)
}

/// The question, and where there are image sources a list of them.
fn with_image_info(question: &str, images: &[&Image]) -> String {
    let sources = images.iter().enumerate().filter_map(|(index, image)| {
        let source = image.source.clone()?;
        let index = ("index".to_owned(), Json::Integer(index.to_string()));
        Some(Json::Object([index, ("source".to_owned(), source)].into_iter().collect()))
    });
    let sources: Vec<Json> = sources.collect();
    if sources.is_empty() {
        return question.to_owned();
    }
    format!("{question}\n\n[IMAGE_INFO]\n{}", Json::List(sources))
}
