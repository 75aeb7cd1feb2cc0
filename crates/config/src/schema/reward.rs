//! Keys of rewards.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::Dtype;

/// What an answer is worth: components, and a mix of them for each label.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RewardConfig {
    /// Models and rules; all live in the reward worker.
    pub component: Vec<Component>,
    /// Label -> component -> weight. A label's reward is the weighted sum of its components.
    pub mix: BTreeMap<String, BTreeMap<String, f64>>,
    /// Tokens in a packed micro-batch of a reward model.
    #[serde(default = "micro_batch_tokens")]
    pub micro_batch_tokens: u32,
}

impl Default for RewardConfig {
    /// Of a recipe that rewards nothing.
    fn default() -> Self {
        Self {
            component: Vec::new(),
            mix: BTreeMap::new(),
            micro_batch_tokens: micro_batch_tokens(),
        }
    }
}

/// One model or rule.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Component {
    /// Name in mixes, metrics and reports.
    pub name: String,
    /// `sequence_classifier` or `rule`.
    pub kind: ComponentKind,
    /// Folder or hub id of a `sequence_classifier`; `stage:NAME` is what that stage trained.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub model: Option<String>,
    /// What a model's logit is turned into: `identity`, `sigmoid` or `sigmoid_negated`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub transform: Option<Transform>,
    /// What a model reads: `tokens` (the policy's own; needs the same tokenizer) or `text`
    /// (rendered again by the model's chat template).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub input: Option<ScoreInput>,
    /// Type that the model's arithmetic runs in; absent: `model.dtype`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dtype: Option<Dtype>,
    /// The rule of a `rule`, for example `{ rule = "length", min = 8, max = 60 }`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rule: Option<toml::Table>,
    /// Longest time for one batch.
    #[serde(default = "timeout_secs")]
    pub timeout_secs: f64,
}

/// Kind of a component.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ComponentKind {
    /// A language model with a score head.
    SequenceClassifier,
    /// A function of the text.
    Rule,
}

/// What a logit is turned into.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Transform {
    /// As it is.
    Identity,
    /// Into (0, 1).
    #[default]
    Sigmoid,
    /// Into (0, 1), turned round: for models whose logit means harm.
    SigmoidNegated,
}

impl Transform {
    /// The name on the wire.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Identity => "identity",
            Self::Sigmoid => "sigmoid",
            Self::SigmoidNegated => "sigmoid_negated",
        }
    }
}

/// What a reward model reads.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ScoreInput {
    /// The policy's tokens.
    #[default]
    Tokens,
    /// Question and answer, rendered by the model's own chat template.
    Text,
}

impl ScoreInput {
    /// The name on the wire.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Tokens => "tokens",
            Self::Text => "text",
        }
    }
}

fn micro_batch_tokens() -> u32 {
    2048
}
fn timeout_secs() -> f64 {
    120.0
}
