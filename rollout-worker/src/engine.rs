//! Continuous batching over a slotted KV cache.
//!
//! The engine holds a queue of prompt groups and a fixed number of slots, each with room for one
//! sequence. A step first lets waiting samples into free slots (prefilling each prompt once and
//! copying its KV entries to the group's other samples), then advances every running sequence by
//! one token in a single batch. Finished sequences leave between steps, so the batch stays full
//! while work is waiting.
//!
//! Invariants, cited by the tests:
//! - RO-1: a sample's random stream is a function of (seed, step, prompt id, index); batch mates
//!   and arrival order do not enter it.
//! - RO-2: groups are admitted first come, first served, and at most one group is partly admitted.
//!   So the slot that holds its prompt's KV entries (the donor) is either running one of its
//!   samples or is the next slot given to it.
//! - RO-3: each response token carries the policy version that wrote it; weights change only
//!   between steps.

mod admission;
mod batch;
mod forward;
mod group;
mod native;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, VecDeque};
use std::sync::atomic::{AtomicU64, Ordering};

use plumb_domain::PolicyVersion;

pub use forward::{Forward, ForwardError, Row};
pub use group::{EncodedPrompt, FinishedGroup, FinishedSample, Request};
pub use native::Native;

use crate::stop::Detokenizer;
use group::{Group, Sequence};

/// Bounds of what runs at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Most sequences in a batch.
    pub max_sequences: usize,
    /// Most bytes of KV cache.
    pub kv_cache_bytes: u64,
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

/// The scheduler, its slots and the model behind them.
pub struct Engine<F> {
    forward: F,
    detokenizer: Box<dyn Detokenizer>,
    limits: Limits,
    version: PolicyVersion,
    slots: Vec<Option<Sequence>>,
    slot_tokens: usize,
    groups: BTreeMap<u64, Group>,
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
            slots: Vec::new(),
            slot_tokens: 0,
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
    }

    /// Queues a request.
    ///
    /// # Errors
    /// A prompt that is empty or leaves no room in the context, or a cache too small for one
    /// sequence; nothing is queued then.
    pub fn submit(&mut self, request: Request) -> Result<RequestId, EngineError> {
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
        let tokens = admission::capacity(tokens, max_new_tokens, context);
        let needed = tokens as u64 * self.forward.kv_bytes_per_token();
        let available = self.limits.kv_cache_bytes;
        if needed > available {
            return Err(EngineError::CacheTooSmall { tokens, needed, available });
        }
        Ok(())
    }

    /// Admits what fits and advances every running sequence by one token.
    ///
    /// A failure drops all work; every request then reports it from [`Engine::collect`].
    pub fn step(&mut self) {
        let result = self.admit().and_then(|()| self.decode());
        if let Err(error) = result {
            let cause = error.to_string();
            tracing::error!(%cause, running = self.running(), "generation step failed");
            self.slots.iter_mut().for_each(|slot| *slot = None);
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
        self.slots.iter().flatten().count()
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

    /// Drops a request and frees its slots. Unknown requests are ignored.
    pub fn cancel(&mut self, id: RequestId) {
        self.requests.remove(&id);
        let groups = &mut self.groups;
        groups.retain(|_, group| group.request != id);
        self.waiting.retain(|key| groups.contains_key(key));
        for slot in &mut self.slots {
            if slot.as_ref().is_some_and(|sequence| !groups.contains_key(&sequence.group)) {
                *slot = None;
            }
        }
    }

    fn next_key(&mut self) -> u64 {
        self.issued += 1;
        self.issued
    }
}
