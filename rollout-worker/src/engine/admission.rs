//! Letting waiting samples into free slots.

use std::collections::VecDeque;

use tch::Tensor;

use super::group::Sequence;
use super::{Engine, EngineError, Forward};

/// Most prompt tokens of one prefill batch, unless a single prompt is longer: bounds the memory of
/// a prefill and how long running sequences wait for it.
const PREFILL_TOKENS: usize = 4096;

/// Slot capacities are multiples of this, so that similar requests share a cache.
const CAPACITY_STEP: usize = 64;

/// Cache tokens of a sequence: prompt and response, rounded up, within the context.
pub(super) fn capacity(prompt_tokens: usize, max_new_tokens: u32, context: usize) -> usize {
    let wanted = prompt_tokens.saturating_add(max_new_tokens as usize);
    wanted.div_ceil(CAPACITY_STEP).saturating_mul(CAPACITY_STEP).min(context)
}

/// What one round of admission does.
#[derive(Debug, Default)]
struct Round {
    /// Prompts to prefill: group, slot.
    fresh: Vec<(u64, usize)>,
    /// Prefixes to copy: group, from, to.
    copies: Vec<(u64, usize, usize)>,
    /// Samples that start: group, index, slot.
    starts: Vec<(u64, u32, usize)>,
}

impl<F: Forward> Engine<F> {
    /// Fills free slots and draws the first token of every sample that starts.
    pub(super) fn admit(&mut self) -> Result<(), EngineError> {
        self.fit_cache()?;
        let round = self.plan_round();
        if round.starts.is_empty() {
            return Ok(());
        }
        self.prefill(&round)?;
        for (group, from, to) in &round.copies {
            let Some(group) = self.groups.get(group) else { continue };
            self.forward
                .copy_prefix(*from, &[*to], group.prompt.ids.len())
                .map_err(|source| EngineError::Forward { pass: "copy of a prefix", source })?;
        }
        self.start(&round)
    }

    /// Sets up the cache for the waiting work while no sequence runs. A cache that is large enough
    /// is kept; while sequences run, work that does not fit waits for them.
    fn fit_cache(&mut self) -> Result<(), EngineError> {
        if self.running() > 0 || self.waiting.is_empty() {
            return Ok(());
        }
        let waiting = || self.waiting.iter().filter_map(|key| self.groups.get(key));
        // A partly admitted group has its prompt in the present cache.
        if waiting().any(|group| group.donor.is_some()) {
            return Ok(());
        }
        let tokens = waiting().map(|group| group.capacity).max().unwrap_or(0);
        let samples: usize = waiting().map(|group| group.samples as usize).sum();
        let tokens = tokens.max(self.slot_tokens);
        let per_slot = (tokens as u64 * self.forward.kv_bytes_per_token()).max(1);
        let affordable = (self.limits.kv_cache_bytes / per_slot).max(1) as usize;
        let slots = samples.max(self.slots.len()).min(self.limits.max_sequences).min(affordable);
        if slots <= self.slots.len() && tokens <= self.slot_tokens {
            return Ok(());
        }
        self.forward
            .allocate(slots, tokens)
            .map_err(|source| EngineError::Forward { pass: "allocation of the cache", source })?;
        self.slots = std::iter::repeat_with(|| None).take(slots).collect();
        self.slot_tokens = tokens;
        Ok(())
    }

    /// Decides who starts where (RO-2). Marks groups as started and donors as set.
    fn plan_round(&mut self) -> Round {
        let mut free: VecDeque<usize> =
            (0..self.slots.len()).filter(|slot| self.slots[*slot].is_none()).collect();
        let mut round = Round::default();
        let mut prefill_tokens = 0;
        while let Some(&key) = self.waiting.front() {
            let Some(group) = self.groups.get_mut(&key) else {
                self.waiting.pop_front();
                continue;
            };
            if free.is_empty() || group.capacity > self.slot_tokens {
                break;
            }
            if group.donor.is_none() {
                let tokens = group.prompt.ids.len();
                if !round.fresh.is_empty() && prefill_tokens + tokens > PREFILL_TOKENS {
                    break;
                }
                prefill_tokens += tokens;
                group.donor = free.front().copied();
                round.fresh.extend(group.donor.map(|slot| (key, slot)));
            }
            let Some(donor) = group.donor else { break };
            while group.started < group.samples {
                let slot = match free.iter().position(|slot| *slot == donor) {
                    Some(place) => free.remove(place),
                    None => free.pop_front(),
                };
                let Some(slot) = slot else { break };
                if slot != donor {
                    round.copies.push((key, donor, slot));
                }
                round.starts.push((key, group.started, slot));
                group.started += 1;
            }
            if group.started < group.samples {
                break;
            }
            self.waiting.pop_front();
        }
        round
    }

    fn prefill(&mut self, round: &Round) -> Result<(), EngineError> {
        if round.fresh.is_empty() {
            return Ok(());
        }
        let prompts: Vec<(usize, &[u32])> = round
            .fresh
            .iter()
            .filter_map(|(key, slot)| Some((*slot, self.groups.get(key)?.prompt.ids.as_slice())))
            .collect();
        let logits_gv = self
            .forward
            .prefill(&prompts)
            .map_err(|source| EngineError::Forward { pass: "prefill", source })?;
        for (row, (key, _)) in round.fresh.iter().enumerate() {
            if let Some(group) = self.groups.get_mut(key) {
                group.first_logits = Some(logits_gv.get(row as i64));
            }
        }
        Ok(())
    }

    fn start(&mut self, round: &Round) -> Result<(), EngineError> {
        let mut logits = Vec::with_capacity(round.starts.len());
        let mut slots = Vec::with_capacity(round.starts.len());
        for (key, index, slot) in &round.starts {
            let Some(group) = self.groups.get(key) else { continue };
            let Some(first_v) = &group.first_logits else { continue };
            logits.push(first_v.shallow_clone());
            slots.push(*slot);
            self.slots[*slot] = Some(Sequence::new(*key, *index, group.stream(*index)));
        }
        for (key, _, _) in &round.starts {
            if let Some(group) = self.groups.get_mut(key)
                && group.started == group.samples
            {
                group.first_logits = None;
            }
        }
        self.extend(&slots, &Tensor::stack(&logits, 0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn capacity_is_rounded_up_and_stays_in_the_context() {
        assert_eq!(capacity(10, 20, 2048), 64);
        assert_eq!(capacity(64, 64, 2048), 128);
        assert_eq!(capacity(60, 5, 100), 100);
        assert_eq!(capacity(1, u32::MAX, 512), 512);
    }
}
