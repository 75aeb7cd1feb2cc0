//! One token for every running sequence.

use tch::Tensor;

use super::{Engine, EngineError, FinishedGroup, Forward, Row};
use crate::sampler::{self, Distribution};

/// The rows of a batch that are drawn alike: their places in the batch.
type Alike = (Distribution, Vec<usize>);

impl<F: Forward> Engine<F> {
    /// Feeds each running sequence its newest token and draws the next.
    pub(super) fn decode(&mut self) -> Result<(), EngineError> {
        self.close_gaps()?;
        let mut rows = Vec::new();
        for (slot, sequence) in self.slots.iter().enumerate() {
            let Some(sequence) = sequence else { continue };
            let Some(group) = self.groups.get(&sequence.group) else { continue };
            let Some(token) = sequence.newest() else { continue };
            let position = group.prompt.ids.len() + sequence.response_tokens() - 1;
            rows.push(Row { token, position, slot });
        }
        if rows.is_empty() {
            return Ok(());
        }
        let logits_bv = self
            .forward
            .decode(&rows)
            .map_err(|source| EngineError::Forward { pass: "decode", source })?;
        let slots: Vec<usize> = rows.iter().map(|row| row.slot).collect();
        self.extend(&slots, &logits_bv)
    }

    /// Moves sequences from high slots into free low ones, so that the batch is one run of slots
    /// and the cache is read without a gather. While work waits, admission fills the gaps.
    fn close_gaps(&mut self) -> Result<(), EngineError> {
        if !self.waiting.is_empty() {
            return Ok(());
        }
        while let Some(free) = self.slots.iter().position(Option::is_none) {
            let Some(last) = self.slots.iter().rposition(Option::is_some) else { return Ok(()) };
            if last < free {
                return Ok(());
            }
            let Some(sequence) = self.slots[last].take() else { return Ok(()) };
            if let Some(group) = self.groups.get(&sequence.group) {
                // The newest token is not in the cache yet.
                let cached = group.prompt.ids.len() + sequence.response_tokens().saturating_sub(1);
                self.forward.copy_prefix(last, &[free], cached).map_err(|source| {
                    EngineError::Forward { pass: "move of a sequence", source }
                })?;
            }
            self.slots[free] = Some(sequence);
        }
        Ok(())
    }

    /// Draws the next token of the sequences in `slots` from `logits_bv` (`[B, V]`, a row for each
    /// slot) and lets go of those that end with it.
    pub(super) fn extend(
        &mut self,
        slots: &[usize],
        logits_bv: &Tensor,
    ) -> Result<(), EngineError> {
        for (distribution, places) in self.alike(slots) {
            let uniforms: Vec<f64> = places
                .iter()
                .filter_map(|place| self.slots[slots[*place]].as_ref())
                .map(|sequence| sequence.stream.uniform(sequence.response_tokens()))
                .collect();
            let chosen_bv = if places.len() == slots.len() {
                logits_bv.shallow_clone()
            } else {
                let index: Vec<i64> = places.iter().map(|place| *place as i64).collect();
                logits_bv.index_select(0, &Tensor::from_slice(&index).to_device(logits_bv.device()))
            };
            let drawn = sampler::draw(&chosen_bv, distribution, &uniforms)
                .map_err(|error| self.name_not_finite(slots[places[error.row]]))?;
            for (row, place) in places.iter().enumerate() {
                self.push(slots[*place], drawn.tokens[row], drawn.logps[row]);
            }
        }
        Ok(())
    }

    /// Groups the rows by how they are drawn: one draw for all in the common case.
    fn alike(&self, slots: &[usize]) -> Vec<Alike> {
        let mut sets: Vec<Alike> = Vec::new();
        for (place, slot) in slots.iter().enumerate() {
            let group = self.slots[*slot].as_ref().and_then(|s| self.groups.get(&s.group));
            let Some(group) = group else { continue };
            match sets.iter_mut().find(|(distribution, _)| *distribution == group.distribution) {
                Some((_, places)) => places.push(place),
                None => sets.push((group.distribution, vec![place])),
            }
        }
        sets
    }

    fn name_not_finite(&self, slot: usize) -> EngineError {
        let sequence = self.slots[slot].as_ref();
        let prompt = sequence
            .and_then(|s| self.groups.get(&s.group))
            .map_or("?", |group| group.prompt.id.as_str());
        EngineError::NotFinite {
            sample: format!("{prompt}/{}", sequence.map_or(0, |s| s.index)),
            position: sequence.map_or(0, |s| s.response_tokens()),
        }
    }

    fn push(&mut self, slot: usize, token: u32, logp: f32) {
        let Some(sequence) = self.slots[slot].as_mut() else { return };
        let key = sequence.group;
        let Some(group) = self.groups.get_mut(&key) else { return };
        let detokenizer = self.detokenizer.as_ref();
        let Some(reason) = sequence.push(token, logp, self.version, group, detokenizer) else {
            return;
        };
        let Some(sequence) = self.slots[slot].take() else { return };
        let sample = sequence.finish(reason, group, detokenizer);
        group.finished.push(sample);
        if group.finished.len() < group.samples as usize {
            return;
        }
        let Some(mut group) = self.groups.remove(&key) else { return };
        group.finished.sort_by_key(|sample| sample.index);
        if let Some(outbox) = self.requests.get_mut(&group.request) {
            outbox.open_groups -= 1;
            outbox.finished.push(FinishedGroup { prompt: group.prompt, samples: group.finished });
        }
    }
}
