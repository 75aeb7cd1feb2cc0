//! What is done to a row of logits before it is drawn from.

use std::collections::{BTreeMap, BTreeSet};

use tch::{Kind, Tensor};

/// Changes to the logits of one sample, in the order in which they are applied: bias, repetition
/// penalty, tokens that may not yet end the response, tokens that may not be drawn at all.
#[derive(Debug, Clone, PartialEq)]
pub struct Shaping {
    /// Added to the logits of these tokens.
    pub logit_bias: BTreeMap<u32, f64>,
    /// Logits of tokens seen before are divided by this when positive, multiplied when negative;
    /// 1 is off.
    pub repetition_penalty: f64,
    /// Response tokens before which none of [`Shaping::ending`] may be drawn.
    pub min_new_tokens: usize,
    /// Tokens that end a response.
    pub ending: Vec<u32>,
    /// The only tokens that may be drawn; empty allows all.
    pub allowed: BTreeSet<u32>,
}

impl Default for Shaping {
    /// Changes nothing.
    fn default() -> Self {
        Self {
            logit_bias: BTreeMap::new(),
            repetition_penalty: 1.0,
            min_new_tokens: 0,
            ending: Vec::new(),
            allowed: BTreeSet::new(),
        }
    }
}

impl Shaping {
    /// Whether a row after `response_tokens` tokens is changed at all.
    #[must_use]
    pub fn acts(&self, response_tokens: usize) -> bool {
        !self.logit_bias.is_empty()
            || self.repetition_penalty != 1.0
            || self.withholds_ending(response_tokens)
            || !self.allowed.is_empty()
    }

    fn withholds_ending(&self, response_tokens: usize) -> bool {
        response_tokens < self.min_new_tokens && !self.ending.is_empty()
    }

    /// Changes `logits_v` (`[V]` f32) in place; `prompt_ids` and `response_ids` are what stands
    /// before the token that is to be drawn.
    pub fn apply(&self, logits_v: &mut Tensor, prompt_ids: &[u32], response_ids: &[u32]) {
        let _no_grad = tch::no_grad_guard();
        if !self.logit_bias.is_empty() {
            let tokens: Vec<u32> = self.logit_bias.keys().copied().collect();
            let bias: Vec<f32> = self.logit_bias.values().map(|b| *b as f32).collect();
            let bias = Tensor::from_slice(&bias).to_device(logits_v.device());
            let _ = logits_v.index_add_(0, &index(&tokens, logits_v), &bias);
        }
        if self.repetition_penalty != 1.0 {
            let seen: BTreeSet<u32> = prompt_ids.iter().chain(response_ids).copied().collect();
            let seen = index(&seen.into_iter().collect::<Vec<_>>(), logits_v);
            let of_seen = logits_v.index_select(0, &seen);
            let penalised = (&of_seen / self.repetition_penalty)
                .where_self(&of_seen.gt(0.0), &(&of_seen * self.repetition_penalty));
            let _ = logits_v.index_copy_(0, &seen, &penalised);
        }
        if self.withholds_ending(response_ids.len()) {
            let _ = logits_v.index_fill_(0, &index(&self.ending, logits_v), f64::NEG_INFINITY);
        }
        if !self.allowed.is_empty() {
            let allowed = index(&self.allowed.iter().copied().collect::<Vec<_>>(), logits_v);
            let kept = logits_v.index_select(0, &allowed);
            let _ = logits_v.fill_(f64::NEG_INFINITY);
            let _ = logits_v.index_copy_(0, &allowed, &kept);
        }
    }

    /// A token of these parameters that is outside a vocabulary of this size.
    #[must_use]
    pub fn outside(&self, vocabulary: usize) -> Option<u32> {
        let last = |tokens: Option<u32>| tokens.filter(|id| *id as usize >= vocabulary);
        last(self.logit_bias.keys().next_back().copied())
            .or(last(self.allowed.iter().next_back().copied()))
    }

    /// Whether every token that may be drawn at first is one that may not end the response yet.
    #[must_use]
    pub fn leaves_nothing(&self) -> bool {
        self.withholds_ending(0)
            && !self.allowed.is_empty()
            && self.allowed.iter().all(|id| self.ending.contains(id))
    }
}

fn index(tokens: &[u32], like: &Tensor) -> Tensor {
    let tokens: Vec<i64> = tokens.iter().map(|id| i64::from(*id)).collect();
    Tensor::from_slice(&tokens).to_kind(Kind::Int64).to_device(like.device())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shaped(shaping: &Shaping, logits: &[f32], prompt: &[u32], response: &[u32]) -> Vec<f32> {
        let mut row = Tensor::from_slice(logits);
        shaping.apply(&mut row, prompt, response);
        Vec::try_from(row).unwrap()
    }

    const NONE: f32 = f32::NEG_INFINITY;

    #[test]
    fn a_bias_is_added_to_its_tokens() {
        let shaping = Shaping { logit_bias: [(0, -1.0), (2, 0.5)].into(), ..Shaping::default() };
        assert_eq!(shaped(&shaping, &[1.0, 2.0, 3.0], &[], &[]), [0.0, 2.0, 3.5]);
    }

    #[test]
    fn the_penalty_lowers_what_prompt_and_response_hold_once_each() {
        // 2: 4 / 2; -3: -3 * 2; token 1 was not seen; token 0 was, in both, but pays once.
        let shaping = Shaping { repetition_penalty: 2.0, ..Shaping::default() };
        assert_eq!(shaped(&shaping, &[4.0, 4.0, -3.0], &[0, 0], &[2, 0]), [2.0, 4.0, -6.0]);
    }

    #[test]
    fn the_penalty_acts_on_the_biased_logit() {
        // (3 + 1) / 2, as in transformers; the other order would give 3 / 2 + 1.
        let shaping = Shaping {
            logit_bias: [(0, 1.0)].into(),
            repetition_penalty: 2.0,
            ..Shaping::default()
        };
        assert_eq!(shaped(&shaping, &[3.0, 0.0], &[0], &[]), [2.0, 0.0]);
    }

    #[test]
    fn what_ends_a_response_is_withheld_until_the_minimum() {
        let shaping = Shaping { min_new_tokens: 2, ending: vec![1], ..Shaping::default() };
        assert_eq!(shaped(&shaping, &[0.5, 9.0], &[0], &[0]), [0.5, NONE]);
        assert_eq!(shaped(&shaping, &[0.5, 9.0], &[0], &[0, 0]), [0.5, 9.0]);
        assert!(shaping.acts(1) && !shaping.acts(2));
    }

    #[test]
    fn only_allowed_tokens_keep_their_logits() {
        let shaping = Shaping { allowed: [0, 2].into(), ..Shaping::default() };
        assert_eq!(shaped(&shaping, &[1.0, 2.0, 3.0], &[], &[]), [1.0, NONE, 3.0]);
        assert_eq!(shaping.outside(3), None);
        assert_eq!(shaping.outside(2), Some(2));
        let stuck = Shaping { allowed: [1].into(), min_new_tokens: 1, ending: vec![1], ..shaping };
        assert!(stuck.leaves_nothing());
    }
}
