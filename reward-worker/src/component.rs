//! What a recipe's reward component asks for, checked.

use std::path::PathBuf;
use std::time::Duration;

use plumb_algo::rule::{Rule, RuleError};
use plumb_proto::reward;

use crate::transform::{Transform, UnknownTransform};

/// Time for a component that states none.
const DEFAULT_TIMEOUT: Duration = Duration::from_secs(60);

/// Tokens of a packed batch where the request states none.
const DEFAULT_MICRO_BATCH_TOKENS: usize = 4096;

/// One reward component.
#[derive(Debug)]
pub struct Component {
    /// Its name in the recipe.
    pub name: String,
    /// The time it has for one request.
    pub timeout: Duration,
    /// What computes it.
    pub kind: Kind,
}

/// What computes a component.
#[derive(Debug)]
pub enum Kind {
    /// A model with a score head.
    Classifier(ClassifierSpec),
    /// A rule over texts.
    Rule(Box<Rule>),
}

/// A model with a score head, and how it is used.
#[derive(Debug, Clone, PartialEq)]
pub struct ClassifierSpec {
    /// Which weights.
    pub model: ModelKey,
    /// From raw score to reward.
    pub transform: Transform,
    /// Tokens of a packed batch at most.
    pub micro_batch_tokens: usize,
    /// What the model reads.
    pub input: Input,
}

/// Names resident weights: components with equal keys share them.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct ModelKey {
    /// Folder of the model.
    pub folder: PathBuf,
    /// Its number format.
    pub precision: Precision,
}

/// Number format of resident weights.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Precision {
    /// 32-bit floats.
    Fp32,
    /// bfloat16.
    Bf16,
}

impl Precision {
    /// libtorch's name for it.
    #[must_use]
    pub fn kind(self) -> tch::Kind {
        match self {
            Self::Fp32 => tch::Kind::Float,
            Self::Bf16 => tch::Kind::BFloat16,
        }
    }
}

/// What a classifier reads of a sample.
///
/// `Tokens` is the default: a reward model trained here is trained on prompt and response tokens
/// as the policy wrote them, end-of-sequence token included, and must score the same. It needs
/// the policy's tokenizer, which is checked on every sample. `Text` is for a model from elsewhere
/// with a tokenizer and chat template of its own; it sees the last user message and the answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Input {
    /// The sample's prompt and response tokens as they are.
    Tokens,
    /// Question and answer, rendered anew by the model's chat template.
    Text,
}

/// A component that cannot be loaded.
#[derive(Debug, thiserror::Error)]
pub enum ComponentError {
    /// No name.
    #[error("reward component {place} has no name")]
    Unnamed {
        /// Its place in the request, from 0.
        place: usize,
    },
    /// Two of one name.
    #[error("reward component {name:?} is given twice")]
    Repeated {
        /// The name.
        name: String,
    },
    /// Nothing to compute it with.
    #[error("reward component {name:?} is neither a sequence_classifier nor a rule")]
    NoKind {
        /// Its name.
        name: String,
    },
    /// No folder.
    #[error("reward component {name:?}: model_path is empty")]
    NoModel {
        /// Its name.
        name: String,
    },
    /// An unknown value of a choice.
    #[error("reward component {name:?}: {key} is {value:?}: use {expected}")]
    Choice {
        /// Its name.
        name: String,
        /// Which key.
        key: &'static str,
        /// The value.
        value: String,
        /// What would be right.
        expected: &'static str,
    },
    /// An unknown transform.
    #[error("reward component {name:?}: {source}")]
    Transform {
        /// Its name.
        name: String,
        /// The transform.
        source: UnknownTransform,
    },
    /// A rule that is none.
    #[error("reward component {name:?}: {source}")]
    Rule {
        /// Its name.
        name: String,
        /// What is wrong with it.
        source: RuleError,
    },
}

/// Checks the components of a load request.
///
/// # Errors
/// [`ComponentError`] names the component and the value.
pub fn parse_all(given: Vec<reward::Component>) -> Result<Vec<Component>, ComponentError> {
    let mut components: Vec<Component> = Vec::with_capacity(given.len());
    for (place, component) in given.into_iter().enumerate() {
        if component.name.is_empty() {
            return Err(ComponentError::Unnamed { place });
        }
        if components.iter().any(|c| c.name == component.name) {
            return Err(ComponentError::Repeated { name: component.name });
        }
        components.push(parse(component)?);
    }
    Ok(components)
}

fn parse(given: reward::Component) -> Result<Component, ComponentError> {
    let name = given.name;
    let timeout = match given.timeout_millis {
        0 => DEFAULT_TIMEOUT,
        millis => Duration::from_millis(millis.into()),
    };
    let kind = match given.kind {
        None => return Err(ComponentError::NoKind { name }),
        Some(reward::component::Kind::SequenceClassifier(spec)) => {
            Kind::Classifier(parse_classifier(&name, spec)?)
        }
        Some(reward::component::Kind::Rule(reward::Rule { json })) => {
            match Rule::from_json(&json) {
                Ok(rule) => Kind::Rule(Box::new(rule)),
                Err(source) => return Err(ComponentError::Rule { name, source }),
            }
        }
    };
    Ok(Component { name, timeout, kind })
}

fn parse_classifier(
    name: &str,
    given: reward::SequenceClassifier,
) -> Result<ClassifierSpec, ComponentError> {
    let choice = |key, value: String, expected| {
        Err(ComponentError::Choice { name: name.to_owned(), key, value, expected })
    };
    if given.model_path.is_empty() {
        return Err(ComponentError::NoModel { name: name.to_owned() });
    }
    let precision = match given.dtype.as_str() {
        "fp32" => Precision::Fp32,
        "bf16" => Precision::Bf16,
        _ => return choice("dtype", given.dtype, "fp32 or bf16"),
    };
    let input = match given.input.as_str() {
        "" | "tokens" => Input::Tokens,
        "text" => Input::Text,
        _ => return choice("input", given.input, "tokens or text"),
    };
    let transform = given
        .transform
        .parse()
        .map_err(|source| ComponentError::Transform { name: name.to_owned(), source })?;
    Ok(ClassifierSpec {
        model: ModelKey { folder: PathBuf::from(given.model_path), precision },
        transform,
        micro_batch_tokens: match given.micro_batch_tokens {
            0 => DEFAULT_MICRO_BATCH_TOKENS,
            tokens => tokens as usize,
        },
        input,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn classifier(name: &str) -> reward::Component {
        reward::Component {
            name: name.into(),
            timeout_millis: 250,
            kind: Some(reward::component::Kind::SequenceClassifier(reward::SequenceClassifier {
                model_path: "models/safety".into(),
                dtype: "bf16".into(),
                transform: "sigmoid_negated".into(),
                ..reward::SequenceClassifier::default()
            })),
        }
    }

    fn error(given: Vec<reward::Component>) -> String {
        parse_all(given).unwrap_err().to_string()
    }

    #[test]
    fn a_classifier_is_read_with_its_defaults() {
        let components = parse_all(vec![classifier("safety")]).unwrap();
        assert_eq!(components[0].timeout, Duration::from_millis(250));
        let Kind::Classifier(spec) = &components[0].kind else { panic!("no classifier") };
        assert_eq!(spec.model.precision.kind(), tch::Kind::BFloat16);
        assert_eq!(
            (spec.transform, spec.micro_batch_tokens, spec.input),
            (Transform::SigmoidNegated, 4096, Input::Tokens)
        );
    }

    #[test]
    fn wrong_components_are_named_with_the_value() {
        assert_eq!(error(vec![classifier("")]), "reward component 0 has no name");
        assert_eq!(
            error(vec![classifier("a"), classifier("a")]),
            "reward component \"a\" is given twice"
        );
        let with = |change: fn(&mut reward::SequenceClassifier)| {
            let mut component = classifier("a");
            if let Some(reward::component::Kind::SequenceClassifier(spec)) = &mut component.kind {
                change(spec);
            }
            error(vec![component])
        };
        assert_eq!(
            with(|spec| spec.dtype = "fp16".into()),
            "reward component \"a\": dtype is \"fp16\": use fp32 or bf16"
        );
        assert_eq!(
            with(|spec| spec.input = "ids".into()),
            "reward component \"a\": input is \"ids\": use tokens or text"
        );
        assert_eq!(
            with(|spec| spec.transform = "relu".into()),
            "reward component \"a\": transform \"relu\" is not known: use identity, sigmoid or \
             sigmoid_negated"
        );
        assert_eq!(
            with(|spec| spec.model_path.clear()),
            "reward component \"a\": model_path is empty"
        );
        let none = reward::Component { kind: None, ..classifier("a") };
        assert!(error(vec![none]).contains("neither a sequence_classifier nor a rule"));
        let rule = reward::Component {
            kind: Some(reward::component::Kind::Rule(reward::Rule {
                json: r#"{"rule": "no_such_rule"}"#.into(),
            })),
            ..classifier("a")
        };
        let text = error(vec![rule]);
        assert!(
            text.starts_with("reward component \"a\": ") && text.contains("no_such_rule"),
            "{text}"
        );
    }
}
