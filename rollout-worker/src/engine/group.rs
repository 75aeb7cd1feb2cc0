//! A prompt with its samples, and the samples in flight.

use std::sync::Arc;

use plumb_domain::{FinishReason, PolicyVersion, SamplingParams, VersionSegment};
use tch::Tensor;

use super::{RequestId, admission};
use crate::random::SampleStream;
use crate::sampler::Distribution;
use crate::stop::{Detokenizer, StopRules, StopScanner};

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
    pub(super) stop: Arc<StopRules>,
    /// Response tokens at most, context included.
    pub(super) max_response: usize,
    /// Cache tokens that each sample needs.
    pub(super) capacity: usize,
    pub(super) seed: u64,
    pub(super) step: u64,
    /// The slot that holds the prompt's KV entries, once prefilled (RO-2).
    pub(super) donor: Option<usize>,
    /// Logits `[V]` after the prompt, until the last sample has started.
    pub(super) first_logits: Option<Tensor>,
}

impl Group {
    pub(super) fn of_request(
        id: RequestId,
        request: Request,
        context: usize,
    ) -> impl Iterator<Item = Self> {
        let Request { prompts, samples_per_prompt, sampling, stop, seed, step } = request;
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
            },
            stop: stop.clone(),
            max_response: (sampling.max_new_tokens as usize).min(context - prompt.ids.len()),
            capacity: admission::capacity(prompt.ids.len(), sampling.max_new_tokens, context),
            seed,
            step,
            donor: None,
            first_logits: None,
            prompt,
        })
    }

    pub(super) fn stream(&self, index: u32) -> SampleStream {
        SampleStream::new(self.seed, self.step, &self.prompt.id, index)
    }
}

/// A sample in a slot.
#[derive(Debug)]
pub(super) struct Sequence {
    pub(super) group: u64,
    pub(super) index: u32,
    pub(super) stream: SampleStream,
    response_ids: Vec<u32>,
    logps: Vec<f32>,
    segments: Vec<VersionSegment>,
    scanner: StopScanner,
}

impl Sequence {
    pub(super) fn new(group: u64, index: u32, stream: SampleStream) -> Self {
        Self {
            group,
            index,
            stream,
            response_ids: Vec::new(),
            logps: Vec::new(),
            segments: Vec::new(),
            scanner: StopScanner::default(),
        }
    }

    pub(super) fn response_tokens(&self) -> usize {
        self.response_ids.len()
    }

    pub(super) fn newest(&self) -> Option<u32> {
        self.response_ids.last().copied()
    }

    /// Appends a token written by `version`; says whether and why the response ends with it.
    pub(super) fn push(
        &mut self,
        token: u32,
        logp: f32,
        version: PolicyVersion,
        group: &Group,
        detokenizer: &dyn Detokenizer,
    ) -> Option<FinishReason> {
        self.response_ids.push(token);
        self.logps.push(logp);
        match self.segments.last_mut() {
            Some(segment) if segment.version == version => segment.tokens += 1,
            _ => self.segments.push(VersionSegment { version, tokens: 1 }),
        }
        let stop = &group.stop;
        if stop.eos_ids.contains(&token) {
            Some(FinishReason::Eos)
        } else if stop.token_ids.contains(&token)
            || (!stop.strings.is_empty()
                && self.scanner.scan(stop, detokenizer, &self.response_ids))
        {
            Some(FinishReason::StopString)
        } else if self.response_ids.len() >= group.max_response {
            Some(FinishReason::Length)
        } else {
            None
        }
    }

    pub(super) fn finish(
        self,
        finish: FinishReason,
        group: &Group,
        detokenizer: &dyn Detokenizer,
    ) -> FinishedSample {
        FinishedSample {
            index: self.index,
            text: group.stop.answer(detokenizer, &self.response_ids),
            response_ids: self.response_ids,
            logps: self.logps,
            segments: self.segments,
            finish,
        }
    }
}
