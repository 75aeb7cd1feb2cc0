//! A prompt with its samples.

use std::sync::Arc;

use plumb_domain::{FinishReason, SamplingParams, VersionSegment};
use tch::Tensor;

use super::RequestId;
use super::sequence::Cached;
use crate::random::SampleStream;
use crate::sampler::{Distribution, Shaping};
use crate::stop::StopRules;

/// A prompt as the model takes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EncodedPrompt {
    /// Unique within the request.
    pub id: String,
    /// Chooses the reward mix.
    pub label: String,
    /// Tokens.
    pub ids: Vec<u32>,
    /// The last user message.
    pub question: String,
    /// Reference answer, where there is one.
    pub reference: Option<String>,
}

/// Prompts to answer in one way.
#[derive(Debug, Clone)]
pub struct Request {
    /// The prompts.
    pub prompts: Vec<EncodedPrompt>,
    /// Samples of each prompt.
    pub samples_per_prompt: u32,
    /// How tokens are drawn; validated.
    pub sampling: SamplingParams,
    /// What ends a response.
    pub stop: StopRules,
    /// Root of the random streams.
    pub seed: u64,
    /// Training step, part of every stream's name.
    pub step: u64,
}

/// One response.
#[derive(Debug, Clone, PartialEq)]
pub struct FinishedSample {
    /// Index among the prompt's samples.
    pub index: u32,
    /// Tokens, `[T]`, with the token that ended it.
    pub response_ids: Vec<u32>,
    /// Log-probs under the sampling distribution, `[T]`.
    pub logps: Vec<f32>,
    /// The most probable tokens at each position, best first, `[T]`; empty unless asked for.
    pub top_logps: Vec<Vec<(u32, f32)>>,
    /// Which version wrote which tokens.
    pub segments: Vec<VersionSegment>,
    /// Why it ended.
    pub finish: FinishReason,
    /// The answer: text without special tokens, cut before a stop string.
    pub text: String,
}

/// All samples of one prompt, by index.
#[derive(Debug, Clone)]
pub struct FinishedGroup {
    /// The prompt.
    pub prompt: EncodedPrompt,
    /// Its samples.
    pub samples: Vec<FinishedSample>,
}

/// A prompt on its way.
#[derive(Debug)]
pub(super) struct Group {
    pub(super) request: RequestId,
    pub(super) prompt: EncodedPrompt,
    pub(super) samples: u32,
    pub(super) started: u32,
    pub(super) finished: Vec<FinishedSample>,
    pub(super) distribution: Distribution,
    pub(super) shaping: Arc<Shaping>,
    pub(super) stop: Arc<StopRules>,
    /// Response tokens at most, context included.
    pub(super) max_response: usize,
    pub(super) seed: u64,
    pub(super) step: u64,
    /// Whether a sample is computing the prompt for the others.
    pub(super) is_led: bool,
    /// The prompt, once computed, until the last sample has started.
    pub(super) computed_prompt: Option<ComputedPrompt>,
}

/// A prompt in the cache, held for samples that have not started.
#[derive(Debug)]
pub(super) struct ComputedPrompt {
    pub(super) cached: Cached,
    /// Logits `[V]` after it.
    pub(super) logits_v: Tensor,
}

impl Group {
    pub(super) fn of_request(
        id: RequestId,
        request: Request,
        context: usize,
    ) -> impl Iterator<Item = Self> {
        let Request { prompts, samples_per_prompt, sampling, stop, seed, step } = request;
        let shaping = Arc::new(shaping(&sampling, &stop));
        let stop = Arc::new(stop);
        prompts.into_iter().map(move |prompt| Self {
            request: id,
            samples: samples_per_prompt,
            started: 0,
            finished: Vec::new(),
            distribution: Distribution {
                temperature: sampling.temperature,
                top_p: sampling.top_p,
                top_k: sampling.top_k,
                min_p: sampling.min_p,
                top_logps: sampling.top_logps as usize,
            },
            shaping: shaping.clone(),
            stop: stop.clone(),
            max_response: (sampling.max_new_tokens as usize).min(context - prompt.ids.len()),
            seed,
            step,
            is_led: false,
            computed_prompt: None,
            prompt,
        })
    }

    /// Whether tokens are drawn from the whole distribution: that of which the trainer computes
    /// log-probs.
    pub(super) fn draws_from_all(&self) -> bool {
        let Distribution { temperature, top_p, top_k, min_p, .. } = self.distribution;
        let uncut = top_p >= 1.0 && top_k.is_none() && min_p <= 0.0;
        temperature > 0.0 && uncut && !self.shaping.acts(0)
    }

    pub(super) fn stream(&self, index: u32) -> SampleStream {
        SampleStream::new(self.seed, self.step, &self.prompt.id, index)
    }
}

/// What the sampling parameters do to the logits.
pub(super) fn shaping(sampling: &SamplingParams, stop: &StopRules) -> Shaping {
    Shaping {
        logit_bias: sampling.logit_bias.clone(),
        repetition_penalty: sampling.repetition_penalty,
        min_new_tokens: sampling.min_new_tokens as usize,
        ending: stop.eos_ids.iter().chain(&stop.token_ids).copied().collect(),
        allowed: sampling.allowed_tokens.clone(),
    }
}
