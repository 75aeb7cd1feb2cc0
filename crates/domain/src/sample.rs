//! Prompts, sampling parameters and samples.

use std::collections::{BTreeMap, BTreeSet};

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

/// Most alternatives recorded for each token.
const MAX_TOP_LOGPS: u32 = 64;

/// How tokens are drawn.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SamplingParams {
    /// Upper bound of response tokens.
    pub max_new_tokens: u32,
    /// Response tokens before which neither an end-of-sequence token nor a stop string ends the
    /// response; 0 is off.
    pub min_new_tokens: u32,
    /// 0 is greedy.
    pub temperature: f64,
    /// Nucleus mass in `(0, 1]`; 1 is off.
    pub top_p: f64,
    /// Number of most probable tokens kept; `None` is off.
    pub top_k: Option<u32>,
    /// Tokens below this share of the best token's probability are cut, in `[0, 1]`; 0 is off.
    pub min_p: f64,
    /// Logits of tokens in prompt and response so far are divided by this when positive, and
    /// multiplied by it when negative; above 0, 1 is off.
    pub repetition_penalty: f64,
    /// Added to the logits of these tokens.
    pub logit_bias: BTreeMap<u32, f64>,
    /// The only tokens that may be drawn; empty allows all.
    pub allowed_tokens: BTreeSet<u32>,
    /// Most probable tokens whose log-probs are recorded beside each drawn token's.
    pub top_logps: u32,
    /// Strings that end a response (and are cut off it).
    pub stop: Vec<String>,
    /// Keep going over the end-of-sequence token (for benchmarks).
    pub ignore_eos: bool,
}

/// Draws from the model's own distribution; `max_new_tokens` is 0 and has to be set.
impl Default for SamplingParams {
    fn default() -> Self {
        Self {
            max_new_tokens: 0,
            min_new_tokens: 0,
            temperature: 1.0,
            top_p: 1.0,
            top_k: None,
            min_p: 0.0,
            repetition_penalty: 1.0,
            logit_bias: BTreeMap::new(),
            allowed_tokens: BTreeSet::new(),
            top_logps: 0,
            stop: Vec::new(),
            ignore_eos: false,
        }
    }
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
        if self.min_new_tokens > self.max_new_tokens {
            let value = self.min_new_tokens.to_string();
            return fail("min_new_tokens", value, "at most max_new_tokens");
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
        if !(0.0..=1.0).contains(&self.min_p) {
            return fail("min_p", self.min_p.to_string(), "in [0, 1]");
        }
        if !(self.repetition_penalty.is_finite() && self.repetition_penalty > 0.0) {
            let value = self.repetition_penalty.to_string();
            return fail("repetition_penalty", value, "a finite number above 0");
        }
        if let Some((token, bias)) = self.logit_bias.iter().find(|(_, bias)| !bias.is_finite()) {
            return fail("logit_bias", format!("{bias} for token {token}"), "finite numbers");
        }
        if self.top_logps > MAX_TOP_LOGPS {
            return fail("top_logps", self.top_logps.to_string(), "at most 64");
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
        let good = SamplingParams { max_new_tokens: 4, ..SamplingParams::default() };
        assert!(good.clone().validate().is_ok());
        let refused = |bad: SamplingParams| bad.validate().unwrap_err().to_string();
        assert_eq!(
            refused(SamplingParams { top_p: 0.0, ..good.clone() }),
            "sampling.top_p = 0 is out of range: in (0, 1]"
        );
        assert_eq!(
            refused(SamplingParams { min_new_tokens: 5, ..good.clone() }),
            "sampling.min_new_tokens = 5 is out of range: at most max_new_tokens"
        );
        for (bad, key) in [
            (SamplingParams { max_new_tokens: 0, ..good.clone() }, "max_new_tokens"),
            (SamplingParams { temperature: f64::NAN, ..good.clone() }, "temperature"),
            (SamplingParams { top_k: Some(0), ..good.clone() }, "top_k"),
            (SamplingParams { min_p: 1.5, ..good.clone() }, "min_p"),
            (SamplingParams { repetition_penalty: 0.0, ..good.clone() }, "repetition_penalty"),
            (
                SamplingParams { logit_bias: [(3, f64::INFINITY)].into(), ..good.clone() },
                "logit_bias",
            ),
            (SamplingParams { top_logps: 65, ..good.clone() }, "top_logps"),
            (SamplingParams { stop: vec![String::new()], ..good.clone() }, "stop"),
        ] {
            assert!(refused(bad).starts_with(&format!("sampling.{key} = ")), "{key}");
        }
    }
}
