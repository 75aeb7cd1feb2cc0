//! Who gets blocks, and what runs in a step.

use plumb_torch::paged::BLOCK_TOKENS;

use super::group::ComputedPrompt;
use super::sequence::{Cached, Sequence};
use super::{Engine, EngineError, Forward};

/// What one step feeds: a running sequence and how many of its tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Planned {
    /// Place among the running sequences.
    pub(super) place: usize,
    /// Tokens to feed.
    pub(super) tokens: usize,
}

/// A step, decided.
#[derive(Debug, Default)]
pub(super) struct Plan {
    pub(super) spans: Vec<Planned>,
    /// Blocks to copy before it runs.
    pub(super) copies: Vec<(u32, u32)>,
}

impl<F: Forward> Engine<F> {
    /// Sets up the cache when the first work comes.
    pub(super) fn set_up_cache(&mut self) -> Result<(), EngineError> {
        if self.pool.len() > 0 || self.waiting.is_empty() {
            return Ok(());
        }
        let blocks = self.affordable_blocks();
        self.forward
            .allocate(blocks)
            .map_err(|source| EngineError::Forward { pass: "allocation of the cache", source })?;
        self.pool = super::blocks::BlockPool::new(blocks);
        Ok(())
    }

    /// Blocks that the budget pays for, but not many times more than the batch can ever use.
    pub(super) fn affordable_blocks(&self) -> usize {
        let per_block = (self.forward.kv_bytes_per_token() * BLOCK_TOKENS as u64).max(1);
        let paid = usize::try_from(self.limits.kv_cache_bytes / per_block).unwrap_or(usize::MAX);
        let longest = self.forward.context_tokens().div_ceil(BLOCK_TOKENS);
        paid.min(longest.saturating_mul(self.limits.max_sequences).saturating_mul(4))
    }

    /// Decides the next step: one token for every sequence that decodes, then parts of prompts
    /// within the step's budget, in order of arrival; sequences that were pushed out come back
    /// before new ones start.
    pub(super) fn plan(&mut self) -> Plan {
        let mut plan = Plan::default();
        let mut budget = self.limits.prefill_tokens.max(1);
        let before = self.figures.preemptions;
        let mut place = 0;
        while place < self.running.len() {
            if !self.plan_one(place, &mut budget, &mut plan) {
                break;
            }
            place += 1;
        }
        if self.figures.preemptions == before {
            while budget > 0 && self.running.len() < self.limits.max_sequences && self.admit_one() {
                if !self.plan_one(self.running.len() - 1, &mut budget, &mut plan) {
                    break;
                }
            }
        }
        plan
    }

    /// Plans one running sequence; false when it had to go to make room for those before it.
    fn plan_one(&mut self, place: usize, budget: &mut usize, plan: &mut Plan) -> bool {
        let pending = self.running[place].pending();
        let tokens = if pending == 1 { 1 } else { pending.min(*budget) };
        if tokens == 0 {
            return true;
        }
        while !self.reserve(place, tokens, &mut plan.copies) {
            if !self.make_room(place) {
                return false;
            }
        }
        if pending > 1 {
            *budget -= tokens;
        }
        plan.spans.push(Planned { place, tokens });
        true
    }

    /// Gives a sequence the blocks for its next tokens, a copy of the last one where it is shared.
    fn reserve(&mut self, place: usize, tokens: usize, copies: &mut Vec<(u32, u32)>) -> bool {
        let cached = &mut self.running[place].cached;
        let first = cached.computed / BLOCK_TOKENS;
        if let Some(number) = cached.table.get(first).copied()
            && self.pool.is_shared(number)
        {
            let Some(own) = self.pool.take() else { return false };
            copies.push((number, own));
            self.pool.release(number);
            cached.table[first] = own;
        }
        while cached.table.len() * BLOCK_TOKENS < cached.computed + tokens {
            let Some(number) = self.pool.take() else { return false };
            cached.table.push(number);
        }
        true
    }

    /// Frees blocks for the sequence at `place`: first what is kept for samples that have not
    /// started, then the sequence that came last. False when that is the one at `place` itself.
    fn make_room(&mut self, place: usize) -> bool {
        let kept =
            self.waiting.iter().rev().find(|key| {
                self.groups.get(key).is_some_and(|group| group.computed_prompt.is_some())
            });
        if let Some(group) = kept.copied().and_then(|key| self.groups.get_mut(&key)) {
            if let Some(mut prompt) = group.computed_prompt.take() {
                prompt.cached.release(&mut self.pool);
            }
            return true;
        }
        let last = self.running.len() - 1;
        let mut sequence = self.running.remove(last);
        sequence.cached.release(&mut self.pool);
        self.figures.preemptions += 1;
        self.preempted.push_front(sequence);
        last != place
    }

    /// Lets one more sequence run, if its tokens so far fit beside a block for every other.
    fn admit_one(&mut self) -> bool {
        if let Some(sequence) = self.preempted.front() {
            let tokens = sequence.tokens().to_vec();
            let Some(cached) = self.place_for(&tokens) else { return false };
            let Some(mut sequence) = self.preempted.pop_front() else { return false };
            sequence.cached = cached;
            self.running.push(sequence);
            return true;
        }
        let leaderless = |key: &&u64| {
            self.groups.get(key).is_some_and(|g| !g.is_led && g.computed_prompt.is_none())
        };
        let Some(key) = self.waiting.iter().find(leaderless).copied() else { return false };
        let Some(tokens) = self.groups.get(&key).map(|group| group.prompt.ids.clone()) else {
            return false;
        };
        let Some(cached) = self.place_for(&tokens) else { return false };
        let Some(group) = self.groups.get_mut(&key) else { return false };
        let leads = group.started + 1 < group.samples;
        self.running.push(Sequence::new(key, group.started, group, cached, leads));
        group.started += 1;
        group.is_led = leads;
        if group.started == group.samples {
            self.waiting.retain(|waiting| *waiting != key);
        }
        true
    }

    /// What is in the cache of `tokens`, held, if the rest fits.
    fn place_for(&mut self, tokens: &[u32]) -> Option<Cached> {
        let mut cached = Cached::find(tokens, self.version, &mut self.pool);
        let blocks = (tokens.len() + 1).div_ceil(BLOCK_TOKENS) - cached.table.len();
        if blocks + self.running.len() > self.pool.available() && !self.running.is_empty() {
            cached.release(&mut self.pool);
            return None;
        }
        self.figures.reused_tokens += cached.computed as u64;
        Some(cached)
    }

    /// Starts the samples whose prompt was computed by another one; returns their places. They
    /// share its blocks.
    pub(super) fn start_siblings(&mut self) -> Vec<usize> {
        let mut places = Vec::new();
        for key in self.waiting.clone() {
            let Some(group) = self.groups.get_mut(&key) else { continue };
            while group.started < group.samples
                && self.running.len() < self.limits.max_sequences
                && (self.running.is_empty() || self.running.len() < self.pool.available())
            {
                let Some(prompt) = &group.computed_prompt else { break };
                let cached = prompt.cached.share(&mut self.pool);
                self.figures.reused_tokens += cached.computed as u64;
                places.push(self.running.len());
                self.running.push(Sequence::new(key, group.started, group, cached, false));
                group.started += 1;
            }
        }
        places
    }

    /// Lets go of the prompts of groups whose samples have all started.
    pub(super) fn drop_started(&mut self) {
        for key in std::mem::take(&mut self.waiting) {
            let Some(group) = self.groups.get_mut(&key) else { continue };
            if group.started < group.samples {
                self.waiting.push_back(key);
            } else if let Some(ComputedPrompt { mut cached, .. }) = group.computed_prompt.take() {
                cached.release(&mut self.pool);
            }
        }
    }
}
