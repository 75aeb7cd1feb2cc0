//! The settings of an interaction as the original keeps them.

use indexmap::IndexMap;

use super::JudgeError;
use crate::json::{Json, int_of_text};

/// What a sample's own settings must be to go before the configuration's.
#[derive(Clone, Copy)]
enum Own {
    /// Not empty, zero, false or null.
    Truthy,
    /// Not null.
    Given,
    /// There, even if null.
    Present,
    /// There, even if null; the configuration is not asked.
    PresentOnly,
}

/// Settings by name, as they come out of a sample's own settings, the configuration and the
/// defaults. Values keep the types that they came with.
///
/// Source: SaFeR-Steer `start_interaction`.
#[derive(Debug, Clone, PartialEq)]
pub struct Record {
    /// All of them, in the original's order. `format_violation_penalty`, `feedback_prefix` and
    /// `include_feedback_prefix` are kept there and never used.
    pub fields: IndexMap<String, Json>,
    /// Turns after which a dialogue ends, from the configuration alone.
    pub turn_limit: Json,
}

impl Record {
    /// Settings from a sample's `own` and the `configuration`. At most `max_turns` of the
    /// `rest_messages` are kept: the sample's number, else the configuration's, else 4, which also
    /// stands for what is no number.
    ///
    /// # Errors
    /// [`JudgeError::Setting`] for `rest_messages` that are no list, and for infinite `max_turns`.
    pub fn resolve(own: &Json, configuration: &Json) -> Result<Self, JudgeError> {
        let text = |text: &str| Json::Text(text.to_owned());
        let whole = |number: usize| Json::Integer(number.to_string());
        let turn_limit = configuration.get("max_turns").cloned().unwrap_or_else(|| whole(4));
        let max_turns = match own.get("max_turns") {
            None | Some(Json::Null) => whole_turns(&turn_limit)?,
            Some(given) => whole_turns(given)?,
        };
        let rest = match own.get("rest_messages") {
            Some(Json::List(messages)) => {
                messages.iter().take(max_turns.max(0.0) as usize).cloned().collect()
            }
            None => Vec::new(),
            Some(other) if other.is_falsy() => Vec::new(),
            Some(other) => return Err(setting("rest_messages", other, "a list")),
        };
        let mut fields = IndexMap::new();
        fields.insert("rest_messages".to_owned(), Json::List(rest));
        fields.insert("index".to_owned(), whole(0));
        fields.insert("max_turns".to_owned(), Json::Integer(format!("{max_turns:.0}")));
        for (name, rule, default) in [
            ("feedback_prefix", Own::PresentOnly, text("Judge feedback:\n")),
            ("use_judge_question", Own::PresentOnly, Json::Bool(true)),
            ("include_feedback_prefix", Own::PresentOnly, Json::Bool(true)),
            ("reward_model_base_url", Own::Truthy, Json::Null),
            ("reward_model_name", Own::Truthy, Json::Null),
            ("reward_model_api_key", Own::Truthy, Json::Null),
            ("reward_model_timeout_s", Own::Truthy, Json::Float(120.0)),
            ("reward_model_max_tokens", Own::Truthy, whole(512)),
            ("reward_model_temperature", Own::Truthy, Json::Float(0.0)),
            ("reward_model_top_p", Own::Truthy, Json::Float(1.0)),
            ("reward_model_endpoint", Own::Truthy, Json::Null),
            ("reward_prompt_template", Own::Truthy, Json::Null),
            ("format_violation_penalty", Own::Given, Json::Float(0.5)),
            ("repetition_penalty_coef", Own::Given, Json::Float(0.1)),
            ("repetition_penalty_ngram", Own::Given, whole(3)),
            ("repetition_penalty_min_tokens", Own::Given, whole(12)),
            ("empty_old_next_question", Own::Given, text("N/A")),
            ("max_judge_images", Own::Truthy, whole(1)),
            ("log_reward_debug", Own::Present, Json::Bool(false)),
            ("logged_missing_reward_model", Own::PresentOnly, Json::Bool(false)),
        ] {
            let own = own.get(name).filter(|_| name != "logged_missing_reward_model");
            let value = resolved(own, configuration.get(name), rule, default);
            fields.insert(name.to_owned(), value);
        }
        Ok(Self { fields, turn_limit })
    }

    /// A field; null for one that does not exist.
    pub(super) fn get(&self, name: &str) -> &Json {
        self.fields.get(name).unwrap_or(&Json::Null)
    }
}

fn resolved(own: Option<&Json>, configured: Option<&Json>, rule: Own, default: Json) -> Json {
    let own = own.filter(|own| match rule {
        Own::Truthy => !own.is_falsy(),
        Own::Given => **own != Json::Null,
        Own::Present | Own::PresentOnly => true,
    });
    let configured = configured.filter(|_| !matches!(rule, Own::PresentOnly));
    own.or(configured).cloned().unwrap_or(default)
}

/// The whole part of a number or the integer in a string; 4 for anything else.
fn whole_turns(value: &Json) -> Result<f64, JudgeError> {
    let number = match value {
        Json::Text(text) => int_of_text(text),
        other => other.number()?,
    };
    match number {
        Some(number) if number.is_infinite() => Err(setting("max_turns", value, "a finite number")),
        Some(number) if !number.is_nan() => Ok(number.trunc()),
        _ => Ok(4.0),
    }
}

pub(super) fn setting(name: &'static str, got: &Json, expected: &'static str) -> JudgeError {
    JudgeError::Setting { name, got: got.to_string(), expected }
}
