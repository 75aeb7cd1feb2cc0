//! Continuous batching over a KV cache in blocks.
//!
//! The engine holds a queue of prompt groups. A step feeds one token of every sequence that decodes
//! and, within a budget, parts of the prompts that have arrived, all in one batch. Sequences take
//! blocks as they grow; finished ones leave between steps, so the batch stays full while work is
//! waiting.
//!
//! One sample of a group computes the prompt; the others share its blocks and copy the last, partly
//! filled one when they write to it. Full blocks have names (what they hold, under which version)
//! and outlive their sequences until the memory is needed, so that a conversation goes on from its
//! earlier turns' tokens without computing them again. When blocks run out, the sequence that came
//! last loses its own, waits, and is computed again from its prompt and what it has written.
//!
//! Invariants, cited by the tests:
//! - RO-1: a sample's random stream is a function of (seed, step, prompt id, index); batch mates,
//!   arrival order and interruptions do not enter it.
//! - RO-2: nobody writes a block that somebody else holds.
//! - RO-3: each response token carries the policy version that wrote it; weights change only
//!   between steps, and no sequence starts from another version's blocks.
//! - RO-4: every sample that was asked for comes back once, or its request fails.

mod batch;
mod blocks;
#[cfg(test)]
mod determinism_tests;
mod forward;
mod group;
mod native;
#[cfg(test)]
mod paging_tests;
mod schedule;
mod sequence;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, VecDeque};
use std::sync::atomic::{AtomicU64, Ordering};

use plumb_domain::PolicyVersion;
use plumb_torch::paged::BLOCK_TOKENS;

pub use forward::{Forward, ForwardError, Span};
pub use group::{EncodedPrompt, FinishedGroup, FinishedSample, Request};
pub use native::Native;

use crate::stop::Detokenizer;
use blocks::BlockPool;
use group::Group;
use sequence::Sequence;

/// Bounds of what runs at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Most sequences in a batch.
    pub max_sequences: usize,
    /// Most bytes of KV cache.
    pub kv_cache_bytes: u64,
    /// Most prompt tokens of one step: how long running sequences wait for new ones.
    pub prefill_tokens: usize,
}

/// What an engine has done since it was made.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Figures {
    /// Forward passes.
    pub steps: u64,
    /// Tokens of prompts that were computed, those of sequences that came back included.
    pub prefilled_tokens: u64,
    /// Tokens that were found in the cache instead.
    pub reused_tokens: u64,
    /// Times that a sequence lost its blocks.
    pub preemptions: u64,
    /// Most sequences of one step.
    pub widest_batch: usize,
}

/// Numbers requests over all engines of the process: one that outlives its engine must not be
/// taken for one of the next.
static REQUESTS: AtomicU64 = AtomicU64::new(0);

/// Names one request of this process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct RequestId(u64);

/// Work that the engine refuses or could not do.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// A prompt with nothing in it.
    #[error("prompt {prompt} has no tokens")]
    EmptyPrompt {
        /// Its id.
        prompt: String,
    },
    /// A prompt that leaves no room for a response.
    #[error(
        "prompt {prompt} has {tokens} tokens, the model's context is {context}: shorten the prompt"
    )]
    PromptTooLong {
        /// Its id.
        prompt: String,
        /// Its length.
        tokens: usize,
        /// The context length.
        context: usize,
    },
    /// A sampling parameter names a token that the model does not have.
    #[error("sampling names token {token}, the model's vocabulary has {vocabulary}")]
    UnknownToken {
        /// The token.
        token: u32,
        /// Tokens in the vocabulary.
        vocabulary: usize,
    },
    /// A prompt with such a token.
    #[error("prompt {prompt} has token {token}, the model's vocabulary has {vocabulary}")]
    UnknownPromptToken {
        /// The prompt's id.
        prompt: String,
        /// The token.
        token: u32,
        /// Tokens in the vocabulary.
        vocabulary: usize,
    },
    /// Every allowed token would end the response before its minimum.
    #[error(
        "sampling.allowed_tokens are all tokens that end a response, and min_new_tokens forbids \
         them at first: allow another token or lower min_new_tokens"
    )]
    NothingAllowed,
    /// Not even one sequence fits.
    #[error(
        "one sequence of {tokens} tokens needs {needed} bytes of KV cache, but kv_cache_bytes is \
         {available}: raise it or lower max_new_tokens"
    )]
    CacheTooSmall {
        /// Prompt and response tokens of the longest sequence.
        tokens: usize,
        /// Bytes for it.
        needed: u64,
        /// The limit.
        available: u64,
    },
    /// The model wrote NaN or infinity.
    #[error("sample {sample}: the model's logits are not finite at response token {position}")]
    NotFinite {
        /// `<prompt id>/<index>`.
        sample: String,
        /// Position in the response.
        position: usize,
    },
    /// The forward pass failed.
    #[error("{pass} failed: {source}")]
    Forward {
        /// Which pass.
        pass: &'static str,
        /// Why.
        source: ForwardError,
    },
    /// The request's work was dropped because a step failed.
    #[error("generation failed: {cause}")]
    Failed {
        /// The step's error with its causes.
        cause: String,
    },
    /// The request is not known (cancelled, or collected to its end).
    #[error("generation request {0:?} is not known to the engine")]
    UnknownRequest(RequestId),
}

/// What a request has to show since it was last asked.
#[derive(Debug, Default)]
pub struct Collected {
    /// Groups that finished, in order of finishing.
    pub groups: Vec<FinishedGroup>,
    /// True when nothing more will come.
    pub done: bool,
}

#[derive(Debug, Default)]
struct Outbox {
    finished: Vec<FinishedGroup>,
    open_groups: usize,
    failure: Option<String>,
}

/// The scheduler, its blocks and the model behind them.
pub struct Engine<F> {
    forward: F,
    detokenizer: Box<dyn Detokenizer>,
    limits: Limits,
    version: PolicyVersion,
    pool: BlockPool,
    /// In order of admission.
    running: Vec<Sequence>,
    /// Sequences that lost their blocks, in order of admission.
    preempted: VecDeque<Sequence>,
    figures: Figures,
    groups: BTreeMap<u64, Group>,
    /// Groups with samples that have not started, in order of arrival.
    waiting: VecDeque<u64>,
    requests: BTreeMap<RequestId, Outbox>,
    issued: u64,
}

impl<F: Forward> Engine<F> {
    /// An engine without work. `version` is the policy version of the weights in `forward`.
    pub fn new(
        forward: F,
        detokenizer: Box<dyn Detokenizer>,
        limits: Limits,
        version: PolicyVersion,
    ) -> Self {
        Self {
            forward,
            detokenizer,
            limits,
            version,
            pool: BlockPool::default(),
            running: Vec::new(),
            preempted: VecDeque::new(),
            figures: Figures::default(),
            groups: BTreeMap::new(),
            waiting: VecDeque::new(),
            requests: BTreeMap::new(),
            issued: 0,
        }
    }

    /// The live policy version.
    #[must_use]
    pub fn version(&self) -> PolicyVersion {
        self.version
    }

    /// The model.
    #[must_use]
    pub fn forward(&self) -> &F {
        &self.forward
    }

    /// The model, for a change of weights between steps (RO-3): tokens drawn from now on carry
    /// `version`.
    pub fn activate(&mut self, version: PolicyVersion, change: impl FnOnce(&mut F)) {
        change(&mut self.forward);
        self.version = version;
        // A prompt that the old weights computed, or began, is not where a new sample starts.
        self.running.iter_mut().chain(&mut self.preempted).for_each(|s| s.leads = false);
        for group in self.groups.values_mut() {
            group.is_led = false;
            if let Some(mut prompt) = group.computed_prompt.take() {
                prompt.cached.release(&mut self.pool);
            }
        }
        self.pool.forget_idle();
    }

    /// What the engine has done.
    #[must_use]
    pub fn figures(&self) -> Figures {
        self.figures
    }

    /// Queues a request.
    ///
    /// # Errors
    /// A prompt that is empty or leaves no room in the context, or a cache too small for one
    /// sequence; nothing is queued then.
    pub fn submit(&mut self, request: Request) -> Result<RequestId, EngineError> {
        let shaping = group::shaping(&request.sampling, &request.stop);
        let vocabulary = self.forward.vocabulary();
        if let Some(token) = shaping.outside(vocabulary) {
            return Err(EngineError::UnknownToken { token, vocabulary });
        }
        if shaping.leaves_nothing() {
            return Err(EngineError::NothingAllowed);
        }
        for prompt in &request.prompts {
            self.check(prompt, request.sampling.max_new_tokens)?;
        }
        let id = RequestId(REQUESTS.fetch_add(1, Ordering::Relaxed));
        let open_groups = request.prompts.len();
        self.requests.insert(id, Outbox { open_groups, ..Outbox::default() });
        let context = self.forward.context_tokens();
        for group in Group::of_request(id, request, context) {
            let key = self.next_key();
            self.groups.insert(key, group);
            self.waiting.push_back(key);
        }
        Ok(id)
    }

    fn check(&self, prompt: &EncodedPrompt, max_new_tokens: u32) -> Result<(), EngineError> {
        let tokens = prompt.ids.len();
        let context = self.forward.context_tokens();
        if tokens == 0 {
            return Err(EngineError::EmptyPrompt { prompt: prompt.id.clone() });
        }
        if tokens >= context {
            return Err(EngineError::PromptTooLong { prompt: prompt.id.clone(), tokens, context });
        }
        let vocabulary = self.forward.vocabulary();
        if let Some(&token) = prompt.ids.iter().find(|id| **id as usize >= vocabulary) {
            let prompt = prompt.id.clone();
            return Err(EngineError::UnknownPromptToken { prompt, token, vocabulary });
        }
        let tokens = tokens.saturating_add(max_new_tokens as usize).min(context);
        let blocks = tokens.div_ceil(BLOCK_TOKENS);
        if blocks > self.affordable_blocks() {
            let needed = (blocks * BLOCK_TOKENS) as u64 * self.forward.kv_bytes_per_token();
            let available = self.limits.kv_cache_bytes;
            return Err(EngineError::CacheTooSmall { tokens, needed, available });
        }
        Ok(())
    }

    /// Runs one batch: every sequence that decodes gets its next token, and prompts go on.
    ///
    /// A failure drops all work; every request then reports it from [`Engine::collect`].
    pub fn step(&mut self) {
        if let Err(error) = self.advance() {
            let cause = error.to_string();
            tracing::error!(%cause, running = self.running(), "generation step failed");
            self.running.clear();
            self.preempted.clear();
            self.pool = BlockPool::new(self.pool.len());
            self.groups.clear();
            self.waiting.clear();
            self.requests.values_mut().filter(|r| r.open_groups > 0).for_each(|request| {
                request.failure = Some(cause.clone());
            });
        }
    }

    /// Sequences in the batch.
    #[must_use]
    pub fn running(&self) -> usize {
        self.running.len()
    }

    /// Takes what a request has finished. A request that is done or failed is forgotten.
    ///
    /// # Errors
    /// The failure of a step that the request was part of, or an unknown request.
    pub fn collect(&mut self, id: RequestId) -> Result<Collected, EngineError> {
        let outbox = self.requests.get_mut(&id).ok_or(EngineError::UnknownRequest(id))?;
        if let Some(cause) = outbox.failure.take() {
            self.requests.remove(&id);
            return Err(EngineError::Failed { cause });
        }
        let groups = std::mem::take(&mut outbox.finished);
        let done = outbox.open_groups == 0;
        if done {
            self.requests.remove(&id);
        }
        Ok(Collected { groups, done })
    }

    /// Drops a request and frees its blocks. Unknown requests are ignored.
    pub fn cancel(&mut self, id: RequestId) {
        self.requests.remove(&id);
        let Self { groups, pool, running, preempted, waiting, .. } = self;
        groups.retain(|_, group| {
            if let Some(prompt) = &mut group.computed_prompt
                && group.request == id
            {
                prompt.cached.release(pool);
            }
            group.request != id
        });
        waiting.retain(|key| groups.contains_key(key));
        preempted.retain(|sequence| groups.contains_key(&sequence.group));
        running.retain_mut(|sequence| {
            let stays = groups.contains_key(&sequence.group);
            if !stays {
                sequence.cached.release(pool);
            }
            stays
        });
    }

    fn next_key(&mut self) -> u64 {
        self.issued += 1;
        self.issued
    }
}
