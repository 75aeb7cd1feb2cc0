//! Requests of the rollout service, checked.

use std::path::PathBuf;

use plumb_domain::{PolicyVersion, SamplingError, SamplingParams};
use plumb_proto::rollout;
use tch::Kind;

use crate::engine::Limits;

/// What to load.
#[derive(Debug, Clone, PartialEq)]
pub struct Loading {
    /// Folder of the model.
    pub folder: PathBuf,
    /// Number format of weights and cache.
    pub kind: Kind,
    /// Bounds of what runs at once.
    pub limits: Limits,
    /// The version that the folder's weights are.
    pub version: PolicyVersion,
    /// Whether log-probs have to be the trainer's to the bit.
    pub deterministic: bool,
}

/// Prompt tokens of one step where a request does not say.
const PREFILL_TOKENS: usize = 2048;

/// What to generate.
#[derive(Debug, Clone, PartialEq)]
pub struct Generation {
    /// The prompts, not yet encoded.
    pub prompts: Vec<rollout::Prompt>,
    /// Longest prompt; 0 leaves the bound to the model's context.
    pub max_prompt_tokens: usize,
    /// Samples of each prompt.
    pub samples_per_prompt: u32,
    /// How tokens are drawn.
    pub sampling: SamplingParams,
    /// Root of the random streams.
    pub seed: u64,
    /// Training step.
    pub step: u64,
    /// The version that must be live.
    pub version: PolicyVersion,
}

/// A request with a value that cannot be used.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum RequestError {
    /// A field out of range.
    #[error("{field} is {value}: {expected}")]
    Field {
        /// Which field.
        field: &'static str,
        /// Its value.
        value: String,
        /// What would be right.
        expected: &'static str,
    },
    /// Sampling parameters out of range.
    #[error(transparent)]
    Sampling(#[from] SamplingError),
}

fn wrong<T>(
    field: &'static str,
    value: impl ToString,
    expected: &'static str,
) -> Result<T, RequestError> {
    Err(RequestError::Field { field, value: value.to_string(), expected })
}

impl TryFrom<&rollout::LoadRequest> for Loading {
    type Error = RequestError;

    fn try_from(request: &rollout::LoadRequest) -> Result<Self, RequestError> {
        if request.model_path.is_empty() {
            return wrong("model_path", "empty", "the folder of a model");
        }
        let kind = match request.dtype.as_str() {
            "fp32" => Kind::Float,
            "bf16" => Kind::BFloat16,
            other => return wrong("dtype", format!("{other:?}"), "fp32 or bf16"),
        };
        if request.max_sequences == 0 {
            return wrong("max_sequences", 0, "at least 1");
        }
        if request.kv_cache_bytes == 0 {
            return wrong("kv_cache_bytes", 0, "at least the bytes of one sequence");
        }
        Ok(Self {
            folder: PathBuf::from(&request.model_path),
            kind,
            limits: Limits {
                max_sequences: request.max_sequences as usize,
                kv_cache_bytes: request.kv_cache_bytes,
                prefill_tokens: match request.prefill_tokens {
                    0 => PREFILL_TOKENS,
                    tokens => tokens as usize,
                },
            },
            deterministic: request.deterministic,
            version: PolicyVersion(request.policy_version),
        })
    }
}

impl Generation {
    /// Checks a request of training step `step`.
    ///
    /// # Errors
    /// [`RequestError`] names the field, its value and the range.
    pub fn new(request: rollout::GenerateRequest, step: u64) -> Result<Self, RequestError> {
        if request.samples_per_prompt == 0 {
            return wrong("samples_per_prompt", 0, "at least 1");
        }
        let Some(sampling) = request.sampling else {
            return wrong("sampling", "missing", "temperature, top_p and max_new_tokens");
        };
        Ok(Self {
            prompts: request.prompts,
            max_prompt_tokens: request.max_prompt_tokens as usize,
            samples_per_prompt: request.samples_per_prompt,
            sampling: sampling.try_into()?,
            seed: request.seed,
            step,
            version: PolicyVersion(request.policy_version),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load() -> rollout::LoadRequest {
        rollout::LoadRequest {
            model_path: "models/chat".into(),
            dtype: "bf16".into(),
            max_sequences: 8,
            kv_cache_bytes: 1 << 20,
            policy_version: 3,
            ..rollout::LoadRequest::default()
        }
    }

    fn load_error(request: &rollout::LoadRequest) -> String {
        Loading::try_from(request).unwrap_err().to_string()
    }

    #[test]
    fn a_load_request_is_checked_by_field() {
        assert_eq!(Loading::try_from(&load()).unwrap().kind, Kind::BFloat16);
        let dtype = rollout::LoadRequest { dtype: "int8".into(), ..load() };
        assert_eq!(load_error(&dtype), "dtype is \"int8\": fp32 or bf16");
        let none = rollout::LoadRequest { max_sequences: 0, ..load() };
        assert_eq!(load_error(&none), "max_sequences is 0: at least 1");
        assert!(load_error(&rollout::LoadRequest { kv_cache_bytes: 0, ..load() }).contains("kv_"));
        assert!(
            load_error(&rollout::LoadRequest { model_path: String::new(), ..load() })
                .starts_with("model_path is empty")
        );
    }

    #[test]
    fn a_generate_request_is_checked_by_field() {
        let sampling = rollout::SamplingParams {
            max_new_tokens: 8,
            temperature: 1.0,
            top_p: 1.0,
            top_k: -1,
            ..rollout::SamplingParams::default()
        };
        let request = rollout::GenerateRequest {
            samples_per_prompt: 2,
            sampling: Some(sampling.clone()),
            ..rollout::GenerateRequest::default()
        };
        let generation = Generation::new(request.clone(), 5).unwrap();
        assert_eq!((generation.sampling.top_k, generation.step), (None, 5));
        let error = |request| Generation::new(request, 5).unwrap_err().to_string();
        let none = rollout::GenerateRequest { samples_per_prompt: 0, ..request.clone() };
        assert_eq!(error(none), "samples_per_prompt is 0: at least 1");
        let none = rollout::GenerateRequest { sampling: None, ..request.clone() };
        assert!(error(none).starts_with("sampling is missing"));
        let hot = rollout::SamplingParams { temperature: -1.0, ..sampling };
        let hot = rollout::GenerateRequest { sampling: Some(hot), ..request };
        assert_eq!(error(hot), "sampling.temperature = -1 is out of range: a finite number >= 0");
    }
}
