//! One step of every sequence that is planned, and the tokens drawn from it.

use plumb_domain::FinishReason;
use tch::{Kind, Tensor};

use super::group::ComputedPrompt;
use super::schedule::Plan;
use super::sequence::DrawnToken;
use super::{Engine, EngineError, FinishedGroup, Forward, Span};
use crate::sampler::{self, Distribution};

/// The rows of a batch that are drawn alike: their places in the batch.
type Alike = (Distribution, Vec<usize>);

impl<F: Forward> Engine<F> {
    /// Draws the first tokens of samples whose prompt is computed, then runs a step.
    pub(super) fn advance(&mut self) -> Result<(), EngineError> {
        self.set_up_cache()?;
        let places = self.start_siblings();
        if !places.is_empty() {
            let firsts: Vec<Tensor> = places
                .iter()
                .filter_map(|place| self.groups.get(&self.running[*place].group))
                .filter_map(|group| group.computed_prompt.as_ref())
                .map(|prompt| prompt.logits_v.shallow_clone())
                .collect();
            self.drop_started();
            self.draw(&places, &Tensor::stack(&firsts, 0))?;
        }
        let plan = self.plan();
        if plan.spans.is_empty() { Ok(()) } else { self.run(&plan) }
    }

    fn run(&mut self, plan: &Plan) -> Result<(), EngineError> {
        let failed = |pass| move |source| EngineError::Forward { pass, source };
        if !plan.copies.is_empty() {
            self.forward.copy_blocks(&plan.copies).map_err(failed("copy of shared blocks"))?;
        }
        let mut spans = Vec::with_capacity(plan.spans.len());
        let mut drawing = Vec::new();
        for planned in &plan.spans {
            let sequence = &self.running[planned.place];
            let first = sequence.cached.computed;
            let wants_logits = planned.tokens == sequence.pending();
            if wants_logits {
                drawing.push(planned.place);
            }
            if planned.tokens > 1 || sequence.response_tokens() == 0 {
                self.figures.prefilled_tokens += planned.tokens as u64;
            }
            spans.push(Span {
                ids: &sequence.tokens()[first..first + planned.tokens],
                first_position: first,
                blocks: &sequence.cached.table,
                wants_logits,
            });
        }
        self.figures.steps += 1;
        self.figures.widest_batch = self.figures.widest_batch.max(spans.len());
        let logits_sv = self.forward.step(&spans).map_err(failed("forward pass"))?;
        for planned in &plan.spans {
            self.running[planned.place].advance(planned.tokens, &mut self.pool);
        }
        let Some(logits_sv) = logits_sv else { return Ok(()) };
        for (row, place) in drawing.iter().enumerate() {
            self.keep_prompt(*place, &logits_sv.get(row as i64));
        }
        self.draw(&drawing, &logits_sv)
    }

    /// Keeps the blocks and the last logits of a prompt for the samples that have not started.
    fn keep_prompt(&mut self, place: usize, logits_v: &Tensor) {
        let sequence = &mut self.running[place];
        if !std::mem::take(&mut sequence.leads) {
            return;
        }
        let Some(group) = self.groups.get_mut(&sequence.group) else { return };
        group.is_led = false;
        if group.started < group.samples && sequence.response_tokens() == 0 {
            let cached = sequence.cached.share(&mut self.pool);
            group.computed_prompt =
                Some(ComputedPrompt { cached, logits_v: logits_v.shallow_clone() });
        }
    }

    /// Draws the next token of the sequences at `places` from `logits_bv` (`[B, V]`, a row for
    /// each) and lets go of those that end with it.
    fn draw(&mut self, places: &[usize], logits_bv: &Tensor) -> Result<(), EngineError> {
        let logits_bv = &self.shaped(places, logits_bv);
        let mut ended = Vec::new();
        for (distribution, rows) in self.alike(places) {
            let uniforms: Vec<f64> = rows
                .iter()
                .map(|row| &self.running[places[*row]])
                .map(|sequence| sequence.stream.uniform(sequence.response_tokens()))
                .collect();
            let chosen_bv = if rows.len() == places.len() {
                logits_bv.shallow_clone()
            } else {
                let index: Vec<i64> = rows.iter().map(|row| *row as i64).collect();
                logits_bv.index_select(0, &Tensor::from_slice(&index).to_device(logits_bv.device()))
            };
            let drawn = sampler::draw(&chosen_bv, distribution, &uniforms)
                .map_err(|error| self.name_not_finite(places[rows[error.row]]))?;
            let mut top = drawn.top.into_iter();
            for (at, row) in rows.iter().enumerate() {
                let token = DrawnToken {
                    token: drawn.tokens[at],
                    logp: drawn.logps[at],
                    top: top.next().unwrap_or_default(),
                };
                ended.extend(self.push(places[*row], token));
            }
        }
        // From the last on, so that the places before stay what they are.
        ended.sort_unstable_by_key(|(place, _)| std::cmp::Reverse(*place));
        ended.into_iter().try_for_each(|(place, reason)| self.finish(place, reason))
    }

    /// The logits after bias, penalty and what else the rows' parameters do; a copy only where a
    /// row is changed.
    fn shaped(&self, places: &[usize], logits_bv: &Tensor) -> Tensor {
        let mut copy = None;
        for (row, place) in places.iter().enumerate() {
            let sequence = &self.running[*place];
            let Some(group) = self.groups.get(&sequence.group) else { continue };
            if group.shaping.acts(sequence.response_tokens()) {
                let copy_bv = copy.get_or_insert_with(|| logits_bv.to_kind(Kind::Float).copy());
                let mut row_v = copy_bv.get(row as i64);
                group.shaping.apply(&mut row_v, sequence.prompt_ids(), sequence.response_ids());
            }
        }
        copy.unwrap_or_else(|| logits_bv.shallow_clone())
    }

    /// Groups the rows by how they are drawn: one draw for all in the common case.
    fn alike(&self, places: &[usize]) -> Vec<Alike> {
        let mut sets: Vec<Alike> = Vec::new();
        for (row, place) in places.iter().enumerate() {
            let Some(group) = self.groups.get(&self.running[*place].group) else { continue };
            match sets.iter_mut().find(|(distribution, _)| *distribution == group.distribution) {
                Some((_, rows)) => rows.push(row),
                None => sets.push((group.distribution, vec![row])),
            }
        }
        sets
    }

    fn name_not_finite(&self, place: usize) -> EngineError {
        let sequence = &self.running[place];
        let prompt = self.groups.get(&sequence.group).map_or("?", |group| group.prompt.id.as_str());
        EngineError::NotFinite {
            sample: format!("{prompt}/{}", sequence.index),
            position: sequence.response_tokens(),
        }
    }

    fn push(&mut self, place: usize, drawn: DrawnToken) -> Option<(usize, FinishReason)> {
        let sequence = &mut self.running[place];
        let group = self.groups.get(&sequence.group)?;
        let reason = sequence.push(drawn, self.version, group, self.detokenizer.as_ref())?;
        Some((place, reason))
    }

    /// Takes a finished sample out of the batch, and its group with its last sample.
    fn finish(&mut self, place: usize, reason: FinishReason) -> Result<(), EngineError> {
        let mut sequence = self.running.remove(place);
        sequence.cached.release(&mut self.pool);
        let key = sequence.group;
        let Some(group) = self.groups.get_mut(&key) else { return Ok(()) };
        // Other versions' log-probs cannot be computed again: their weights are gone.
        let logps = if sequence.is_of(self.version) && group.draws_from_all() {
            let (prompt, response) = (sequence.prompt_ids(), sequence.response_ids());
            self.forward
                .trainer_logps(prompt, response, group.distribution.temperature)
                .map_err(|source| EngineError::Forward { pass: "scoring of a response", source })?
        } else {
            None
        };
        group.finished.push(sequence.finish(reason, group, self.detokenizer.as_ref(), logps));
        if group.finished.len() < group.samples as usize {
            return Ok(());
        }
        let Some(mut group) = self.groups.remove(&key) else { return Ok(()) };
        group.finished.sort_by_key(|sample| sample.index);
        if let Some(outbox) = self.requests.get_mut(&group.request) {
            outbox.open_groups -= 1;
            outbox.finished.push(FinishedGroup { prompt: group.prompt, samples: group.finished });
        }
        Ok(())
    }
}
