//! A sample in flight.

use plumb_domain::{FinishReason, PolicyVersion, VersionSegment};
use plumb_torch::paged::BLOCK_TOKENS;

use super::blocks::{self, BlockHash, BlockPool};
use super::group::{FinishedSample, Group};
use crate::random::SampleStream;
use crate::stop::{Detokenizer, StopScanner};

/// A token as it was drawn.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct DrawnToken {
    pub(super) token: u32,
    pub(super) logp: f32,
    /// The most probable tokens, where they were asked for.
    pub(super) top: Vec<(u32, f32)>,
}

/// Where a sequence's keys and values lie. The first `computed` of its tokens are in the cache.
#[derive(Debug, Clone)]
pub(super) struct Cached {
    pub(super) table: Vec<u32>,
    pub(super) computed: usize,
    /// Names of its full blocks, from the first.
    names: Vec<BlockHash>,
    root: BlockHash,
}

impl Cached {
    /// Nothing is in the cache yet.
    pub(super) fn nothing(version: PolicyVersion) -> Self {
        Self { table: Vec::new(), computed: 0, names: Vec::new(), root: blocks::root(version) }
    }

    /// Holds the blocks that are in the cache already from the start of `tokens`; at least one
    /// token is left to compute, because its logits are wanted.
    pub(super) fn find(tokens: &[u32], version: PolicyVersion, pool: &mut BlockPool) -> Self {
        let mut cached = Self::nothing(version);
        for block in tokens[..tokens.len().saturating_sub(1)].chunks_exact(BLOCK_TOKENS) {
            let name = blocks::chained(cached.last_name(), block);
            let Some(number) = pool.find(&name) else { break };
            pool.hold(number);
            cached.table.push(number);
            cached.names.push(name);
            cached.computed += BLOCK_TOKENS;
        }
        cached
    }

    /// One more holder of all of it.
    pub(super) fn share(&self, pool: &mut BlockPool) -> Self {
        self.table.iter().for_each(|number| pool.hold(*number));
        self.clone()
    }

    /// Counts the first `computed` of `tokens` as computed and names the blocks that are full now.
    pub(super) fn advance(&mut self, computed: usize, tokens: &[u32], pool: &mut BlockPool) {
        self.computed = computed;
        while (self.names.len() + 1) * BLOCK_TOKENS <= computed {
            let first = self.names.len() * BLOCK_TOKENS;
            let name = blocks::chained(self.last_name(), &tokens[first..first + BLOCK_TOKENS]);
            pool.name(self.table[self.names.len()], name);
            self.names.push(name);
        }
    }

    /// Lets go of it.
    pub(super) fn release(&mut self, pool: &mut BlockPool) {
        pool.release_all(&mut self.table);
        self.computed = 0;
        self.names.clear();
    }

    fn last_name(&self) -> &BlockHash {
        self.names.last().unwrap_or(&self.root)
    }
}

/// A sample that runs or waits to go on.
#[derive(Debug)]
pub(super) struct Sequence {
    pub(super) group: u64,
    pub(super) index: u32,
    pub(super) stream: SampleStream,
    pub(super) cached: Cached,
    /// Whether it computes the prompt for the group's other samples.
    pub(super) leads: bool,
    /// Prompt and response so far.
    tokens: Vec<u32>,
    prompt_tokens: usize,
    logps: Vec<f32>,
    top_logps: Vec<Vec<(u32, f32)>>,
    segments: Vec<VersionSegment>,
    scanner: StopScanner,
}

impl Sequence {
    pub(super) fn new(group: u64, index: u32, of: &Group, cached: Cached, leads: bool) -> Self {
        Self {
            group,
            index,
            stream: of.stream(index),
            cached,
            leads,
            tokens: of.prompt.ids.clone(),
            prompt_tokens: of.prompt.ids.len(),
            logps: Vec::new(),
            top_logps: Vec::new(),
            segments: Vec::new(),
            scanner: StopScanner::default(),
        }
    }

    /// Prompt and response so far.
    pub(super) fn tokens(&self) -> &[u32] {
        &self.tokens
    }

    pub(super) fn prompt_ids(&self) -> &[u32] {
        &self.tokens[..self.prompt_tokens]
    }

    pub(super) fn response_ids(&self) -> &[u32] {
        &self.tokens[self.prompt_tokens..]
    }

    pub(super) fn response_tokens(&self) -> usize {
        self.tokens.len() - self.prompt_tokens
    }

    /// Tokens that are not in the cache: one while it decodes.
    pub(super) fn pending(&self) -> usize {
        self.tokens.len() - self.cached.computed
    }

    /// Counts `count` more tokens as computed.
    pub(super) fn advance(&mut self, count: usize, pool: &mut BlockPool) {
        let computed = self.cached.computed + count;
        self.cached.advance(computed, &self.tokens, pool);
    }

    /// Appends a token written by `version`; says whether and why the response ends with it.
    pub(super) fn push(
        &mut self,
        drawn: DrawnToken,
        version: PolicyVersion,
        group: &Group,
        detokenizer: &dyn Detokenizer,
    ) -> Option<FinishReason> {
        let token = drawn.token;
        self.tokens.push(token);
        self.logps.push(drawn.logp);
        if group.distribution.top_logps > 0 {
            self.top_logps.push(drawn.top);
        }
        match self.segments.last_mut() {
            Some(segment) if segment.version == version => segment.tokens += 1,
            _ => self.segments.push(VersionSegment { version, tokens: 1 }),
        }
        let stop = &group.stop;
        let response_ids = &self.tokens[self.prompt_tokens..];
        if stop.eos_ids.contains(&token) {
            Some(FinishReason::Eos)
        } else if stop.token_ids.contains(&token)
            || (!stop.strings.is_empty() && self.scanner.scan(stop, detokenizer, response_ids))
        {
            Some(FinishReason::StopString)
        } else if response_ids.len() >= group.max_response {
            Some(FinishReason::Length)
        } else {
            None
        }
    }

    /// Whether `version` wrote all of it.
    pub(super) fn is_of(&self, version: PolicyVersion) -> bool {
        self.segments.iter().all(|segment| segment.version == version)
    }

    pub(super) fn finish(
        mut self,
        finish: FinishReason,
        group: &Group,
        detokenizer: &dyn Detokenizer,
        trainer_logps: Option<Vec<f32>>,
    ) -> FinishedSample {
        let response_ids = self.tokens.split_off(self.prompt_tokens);
        FinishedSample {
            index: self.index,
            text: group.stop.answer(detokenizer, &response_ids),
            response_ids,
            logps: trainer_logps.unwrap_or(self.logps),
            top_logps: self.top_logps,
            segments: self.segments,
            finish,
        }
    }
}
