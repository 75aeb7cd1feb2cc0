//! What an interaction is set to.

use super::message::plain_text;
use super::record::setting;
use super::{Dimensions, JudgeError, Message, Record, Scores, Template};
use crate::json::{Json, float_of_text, int_of_text};

/// How a judge is asked.
#[derive(Debug, Clone, PartialEq)]
pub struct JudgeCall {
    /// Where it is served.
    pub base_url: String,
    /// Path under `base_url`; `None` for that of chat completions.
    pub endpoint: Option<String>,
    /// Name of the model.
    pub model: String,
    /// Bearer token, if the server wants one.
    pub api_key: Option<String>,
    /// Time after which a call has failed. Default 120.
    pub timeout_secs: f64,
    /// Longest reply. Default 512.
    pub max_tokens: i64,
    /// Default 0.
    pub temperature: f64,
    /// Default 1.
    pub top_p: f64,
    /// The prompt.
    pub template: Template,
}

impl JudgeCall {
    /// A call with the defaults.
    #[must_use]
    pub fn new(base_url: &str, model: &str) -> Self {
        Self {
            base_url: base_url.to_owned(),
            endpoint: None,
            model: model.to_owned(),
            api_key: None,
            timeout_secs: 120.0,
            max_tokens: 512,
            temperature: 0.0,
            top_p: 1.0,
            template: Template::default(),
        }
    }

    /// The address that is posted to: `base_url` with the endpoint, else with
    /// `v1/chat/completions`, of which a `v1` at its end is not repeated.
    #[must_use]
    pub fn url(&self) -> String {
        let base = self.base_url.trim_end_matches('/');
        match &self.endpoint {
            Some(path) => format!("{base}/{}", path.trim_start_matches('/')),
            None if base.ends_with("/v1") => format!("{base}/chat/completions"),
            None => format!("{base}/v1/chat/completions"),
        }
    }
}

/// What repetition costs: `coef * repetition_ratio`, down to a score of 0.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct RepetitionPenalty {
    /// Default 0.1. There is no penalty at 0 or below.
    pub coef: f64,
    /// Words of an n-gram. Default 3.
    pub ngram: usize,
    /// Shorter answers have no penalty. Default 12.
    pub min_tokens: usize,
}

impl Default for RepetitionPenalty {
    fn default() -> Self {
        Self { coef: 0.1, ngram: 3, min_tokens: 12 }
    }
}

/// The score of a turn that no judge has scored: the call failed or its reply could not be read,
/// or there is no judge; and of the turn that ends the dialogue.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Unjudged {
    /// None where a judge should have scored it, and at the end; the format reward alone where
    /// there is no judge.
    #[default]
    NoScore,
    /// 0 everywhere, as in the original.
    Compat,
}

/// What an interaction is set to.
#[derive(Debug, Clone, PartialEq)]
pub struct Settings {
    /// The user's further messages as the data has them, one for each turn.
    pub rest: Vec<Message>,
    /// Turns after which the dialogue ends, whatever is left of `rest`. Default 4.
    pub max_turns: usize,
    /// The judge, if there is one.
    pub judge: Option<JudgeCall>,
    /// Most images that go with the prompt. Default 1.
    pub max_images: usize,
    /// Weights of its scores.
    pub dimensions: Dimensions,
    /// Which of its scores count.
    pub scores: Scores,
    /// Turns without a judge's score.
    pub unjudged: Unjudged,
    /// What repetition costs.
    pub repetition: RepetitionPenalty,
    /// Is a question sought in the last tool message if the judge has none? Default true.
    pub tool_question: bool,
    /// Told to the judge where the next message is blank. Default `N/A`.
    pub no_next_question: String,
}

impl Settings {
    /// The defaults, for a dialogue that goes on with `rest`.
    #[must_use]
    pub fn new(rest: Vec<Message>, judge: Option<JudgeCall>) -> Self {
        Self {
            rest,
            max_turns: 4,
            judge,
            max_images: 1,
            dimensions: Dimensions::default(),
            scores: Scores::default(),
            unjudged: Unjudged::default(),
            repetition: RepetitionPenalty::default(),
            tool_question: true,
            no_next_question: "N/A".to_owned(),
        }
    }

    /// The original's behaviour under the original's settings. There is a judge if the address
    /// and the model are set; a template that is not set is ours. Where no turn can come, no other
    /// setting is looked at.
    ///
    /// # Errors
    /// [`JudgeError::Setting`], [`JudgeError::Message`], [`JudgeError::Template`] and
    /// [`JudgeError::Slot`] name what cannot be used.
    pub fn compat(record: &Record) -> Result<Self, JudgeError> {
        let rest = match record.get("rest_messages") {
            Json::List(messages) => {
                messages.iter().map(Message::from_json).collect::<Result<Vec<_>, _>>()?
            }
            _ => Vec::new(),
        };
        let max_turns = match record.turn_limit.number()? {
            Some(limit) if limit.is_nan() => usize::MAX,
            Some(limit) => limit.ceil().max(0.0) as usize,
            None if rest.is_empty() => 0,
            None => return Err(setting("max_turns", &record.turn_limit, "a number")),
        };
        if rest.is_empty() || max_turns == 0 {
            let never = Self::new(Vec::new(), None);
            return Ok(Self { unjudged: Unjudged::Compat, ..never });
        }
        let or = |name, default| {
            let value = record.get(name);
            if value.is_falsy() { Ok(default) } else { count(name, value) }
        };
        let coef = record.get("repetition_penalty_coef");
        let repetition = RepetitionPenalty {
            coef: if coef.is_falsy() { 0.0 } else { number("repetition_penalty_coef", coef)? },
            ngram: or("repetition_penalty_ngram", 3)?,
            min_tokens: or("repetition_penalty_min_tokens", 12)?,
        };
        Ok(Self {
            max_turns,
            judge: judge(record)?,
            max_images: count("max_judge_images", record.get("max_judge_images"))?,
            dimensions: Dimensions::default(),
            scores: Scores::Compat,
            unjudged: Unjudged::Compat,
            repetition,
            tool_question: !record.get("use_judge_question").is_falsy(),
            no_next_question: text("empty_old_next_question", record)?,
            rest,
        })
    }
}

fn judge(record: &Record) -> Result<Option<JudgeCall>, JudgeError> {
    let absent = |name| record.get(name).is_falsy();
    if absent("reward_model_base_url") || absent("reward_model_name") {
        return Ok(None);
    }
    let template = record.get("reward_prompt_template");
    let optional = |name| if absent(name) { Ok(None) } else { text(name, record).map(Some) };
    let tokens = record.get("reward_model_max_tokens");
    let figure = |name| number(name, record.get(name));
    Ok(Some(JudgeCall {
        base_url: text("reward_model_base_url", record)?,
        endpoint: optional("reward_model_endpoint")?,
        model: text("reward_model_name", record)?,
        api_key: optional("reward_model_api_key")?,
        timeout_secs: figure("reward_model_timeout_s")?,
        max_tokens: whole("reward_model_max_tokens", tokens)? as i64,
        temperature: figure("reward_model_temperature")?,
        top_p: figure("reward_model_top_p")?,
        template: if template.is_falsy() {
            Template::default()
        } else {
            Template::new(&text("reward_prompt_template", record)?)?
        },
    }))
}

fn text(name: &'static str, record: &Record) -> Result<String, JudgeError> {
    let value = record.get(name);
    plain_text(value).ok_or_else(|| setting(name, value, "text"))
}

fn number(name: &'static str, value: &Json) -> Result<f64, JudgeError> {
    let number = value.number()?.or_else(|| value.as_text().and_then(float_of_text));
    number.ok_or_else(|| setting(name, value, "a number"))
}

/// The whole part of a number, or the integer in a string.
fn whole(name: &'static str, value: &Json) -> Result<f64, JudgeError> {
    let number = value.number()?.or_else(|| value.as_text().and_then(int_of_text));
    let finite = number.filter(|number| number.is_finite());
    finite.map(f64::trunc).ok_or_else(|| setting(name, value, "a whole number"))
}

/// As [`whole`]; less than nothing is nothing.
fn count(name: &'static str, value: &Json) -> Result<usize, JudgeError> {
    Ok(whole(name, value)?.max(0.0) as usize)
}
