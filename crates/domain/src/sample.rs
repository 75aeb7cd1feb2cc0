//! Prompts, sampling parameters and samples.

use serde::{Deserialize, Serialize};

use crate::{Label, PolicyVersion, PromptId, SampleId};

/// One message of a conversation, as chat templates take it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ChatMessage {
    /// `system`, `user` or `assistant`.
    pub role: String,
    /// The text.
    pub content: String,
}

/// One row of prompt data.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Prompt {
    /// Unique within its data set.
    pub id: PromptId,
    /// Chooses the reward mix.
    pub label: Label,
    /// The conversation so far; the last message is the user's.
    pub messages: Vec<ChatMessage>,
    /// Reference answer, where there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reference: Option<String>,
}

impl Prompt {
    /// The last user message, or an empty string.
    #[must_use]
    pub fn question(&self) -> &str {
        self.messages.iter().rev().find(|m| m.role == "user").map_or("", |m| m.content.as_str())
    }
}

/// How tokens are drawn.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SamplingParams {
    /// Upper bound of response tokens.
    pub max_new_tokens: u32,
    /// 0 is greedy.
    pub temperature: f64,
    /// Nucleus mass in `(0, 1]`; 1 is off.
    pub top_p: f64,
    /// Number of most probable tokens kept; `None` is off.
    pub top_k: Option<u32>,
    /// Strings that end a response (and are cut off it).
    pub stop: Vec<String>,
    /// Keep going over the end-of-sequence token (for benchmarks).
    pub ignore_eos: bool,
}

/// Sampling parameters that cannot be used.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[error("sampling.{key} = {value} is out of range: {expected}")]
pub struct SamplingError {
    /// Which parameter.
    pub key: &'static str,
    /// Its value.
    pub value: String,
    /// What would be right.
    pub expected: &'static str,
}

impl SamplingParams {
    /// Checks ranges.
    ///
    /// # Errors
    /// [`SamplingError`] names the parameter, its value and the range.
    pub fn validate(self) -> Result<Self, SamplingError> {
        let fail = |key, value: String, expected| Err(SamplingError { key, value, expected });
        if self.max_new_tokens == 0 {
            return fail("max_new_tokens", "0".into(), "at least 1");
        }
        if !(self.temperature.is_finite() && self.temperature >= 0.0) {
            return fail("temperature", self.temperature.to_string(), "a finite number >= 0");
        }
        if !(self.top_p > 0.0 && self.top_p <= 1.0) {
            return fail("top_p", self.top_p.to_string(), "in (0, 1]");
        }
        if self.top_k == Some(0) {
            return fail("top_k", "0".into(), "at least 1, or absent");
        }
        if self.stop.iter().any(String::is_empty) {
            return fail("stop", "\"\"".into(), "non-empty strings");
        }
        Ok(self)
    }
}

/// Why a response ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FinishReason {
    /// The model wrote an end-of-sequence token.
    Eos,
    /// A stop string appeared.
    StopString,
    /// `max_new_tokens` or the context length was reached.
    Length,
}

/// A run of response tokens that one policy version wrote.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct VersionSegment {
    /// The version.
    pub version: PolicyVersion,
    /// How many tokens.
    pub tokens: u32,
}

/// One response with all that training needs to know of it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Sample {
    /// Unique within the job.
    pub id: SampleId,
    /// The prompt that it answers; the samples of one prompt are a group.
    pub prompt_id: PromptId,
    /// Chooses the reward mix.
    pub label: Label,
    /// Prompt tokens as fed to the model.
    pub prompt_ids: Vec<u32>,
    /// Response tokens, `[T]`, the end-of-sequence token included where there is one.
    pub response_ids: Vec<u32>,
    /// Log-prob of each response token under the sampling distribution, `[T]`.
    pub logps: Vec<f32>,
    /// Which version wrote which tokens; the counts sum to T.
    pub segments: Vec<VersionSegment>,
    /// Why it ended.
    pub finish: FinishReason,
    /// The last user message.
    pub question: String,
    /// The answer as text, without special tokens.
    pub response: String,
    /// Reference answer, where there is one.
    pub reference: Option<String>,
}

/// A sample whose parts do not fit together.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("sample {id}: {what}")]
pub struct SampleError {
    /// Which sample.
    pub id: SampleId,
    /// What is wrong, with the figures.
    pub what: String,
}

impl Sample {
    /// Checks lengths, segments and that every log-prob is finite and not positive.
    ///
    /// # Errors
    /// [`SampleError`] names the sample and the mismatch.
    pub fn validate(self) -> Result<Self, SampleError> {
        let tokens = self.response_ids.len();
        let by_segment: u64 = self.segments.iter().map(|s| u64::from(s.tokens)).sum();
        let what = if self.prompt_ids.is_empty() {
            Some("the prompt has no tokens".to_owned())
        } else if self.logps.len() != tokens {
            Some(format!("{} log-probs for {tokens} response tokens", self.logps.len()))
        } else if by_segment != tokens as u64 {
            Some(format!("version segments cover {by_segment} of {tokens} response tokens"))
        } else {
            self.logps
                .iter()
                .position(|p| !p.is_finite() || *p > 1e-4)
                .map(|i| format!("log-prob {} at response token {i} is not one", self.logps[i]))
        };
        match what {
            None => Ok(self),
            Some(what) => Err(SampleError { id: self.id, what }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> Sample {
        Sample {
            id: SampleId::new("0/p/0").unwrap(),
            prompt_id: PromptId::new("p").unwrap(),
            label: Label::new("safety").unwrap(),
            prompt_ids: vec![1, 2],
            response_ids: vec![3, 4],
            logps: vec![-0.5, -1.0],
            segments: vec![VersionSegment { version: PolicyVersion(0), tokens: 2 }],
            finish: FinishReason::Eos,
            question: "q".into(),
            response: "r".into(),
            reference: None,
        }
    }

    #[test]
    fn a_sample_whose_parts_disagree_is_refused_with_the_figures() {
        assert!(sample().validate().is_ok());
        let short = Sample { logps: vec![-0.5], ..sample() };
        assert_eq!(
            short.validate().unwrap_err().to_string(),
            "sample 0/p/0: 1 log-probs for 2 response tokens"
        );
        let nan = Sample { logps: vec![-0.5, f32::NAN], ..sample() };
        assert!(nan.validate().is_err());
        let gap = Sample {
            segments: vec![VersionSegment { version: PolicyVersion(0), tokens: 1 }],
            ..sample()
        };
        assert!(gap.validate().is_err());
    }

    #[test]
    fn sampling_parameters_are_checked_by_name() {
        let good = SamplingParams {
            max_new_tokens: 4,
            temperature: 1.0,
            top_p: 1.0,
            top_k: None,
            stop: vec![],
            ignore_eos: false,
        };
        assert!(good.clone().validate().is_ok());
        let bad = SamplingParams { top_p: 0.0, ..good };
        assert_eq!(
            bad.validate().unwrap_err().to_string(),
            "sampling.top_p = 0 is out of range: in (0, 1]"
        );
    }
}
