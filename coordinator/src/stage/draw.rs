//! Which prompts a step gets: a pure function of seed and step.

use std::collections::BTreeMap;

use plumb_data::Order;
use plumb_domain::{Prompt, StepId};

use crate::ports::Prompts;

/// Draws prompts without replacement within an epoch of each label, and labels in fixed shares.
pub(super) struct Draw {
    by_label: Vec<Shelf>,
    per_step: usize,
    seed: u64,
}

struct Shelf {
    prompts: Vec<Prompt>,
    share: f64,
}

impl Draw {
    /// `weights` of labels that are not named are their numbers of prompts; with no weights at
    /// all every prompt is as likely.
    pub(super) fn new(
        prompts: &[Prompt],
        weights: &BTreeMap<String, f64>,
        per_step: usize,
        seed: u64,
    ) -> Self {
        let mut shelves: BTreeMap<&str, Vec<Prompt>> = BTreeMap::new();
        for prompt in prompts {
            shelves.entry(prompt.label.as_str()).or_default().push(prompt.clone());
        }
        let weight = |label: &str, count: usize| {
            if weights.is_empty() {
                count as f64
            } else {
                weights.get(label).copied().unwrap_or(0.0)
            }
        };
        let total: f64 = shelves.iter().map(|(label, p)| weight(label, p.len())).sum();
        let by_label = shelves
            .into_iter()
            .map(|(label, prompts)| {
                let share = if total > 0.0 { weight(label, prompts.len()) / total } else { 0.0 };
                Shelf { prompts, share }
            })
            .filter(|shelf| shelf.share > 0.0)
            .collect();
        Self { by_label, per_step, seed }
    }

    /// Whether there is anything to draw.
    pub(super) fn is_empty(&self) -> bool {
        self.by_label.is_empty()
    }

    /// The order of a shelf's prompts in an epoch.
    fn order(&self, shelf: usize, epoch: usize) -> Vec<usize> {
        let seed = self.seed ^ (shelf as u64 + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15);
        Order::new(self.by_label[shelf].prompts.len(), seed).epoch(epoch as u64)
    }
}

impl Prompts for Draw {
    fn draw(&self, step: StepId) -> Vec<Prompt> {
        if self.by_label.is_empty() {
            return Vec::new();
        }
        // Each turn goes to the label that lags most behind its share.
        let mut taken = vec![0_usize; self.by_label.len()];
        let first = step.0 as usize * self.per_step;
        let mut drawn = Vec::with_capacity(self.per_step);
        let mut orders: BTreeMap<(usize, usize), Vec<usize>> = BTreeMap::new();
        for turn in 0..first + self.per_step {
            let lag = |i: usize| self.by_label[i].share * (turn + 1) as f64 - taken[i] as f64;
            let next = (0..taken.len()).max_by(|a, b| lag(*a).total_cmp(&lag(*b))).unwrap_or(0);
            if turn >= first {
                let prompts = &self.by_label[next].prompts;
                let (epoch, at) = (taken[next] / prompts.len(), taken[next] % prompts.len());
                let order = orders.entry((next, epoch)).or_insert_with(|| self.order(next, epoch));
                drawn.push(prompts[order[at]].clone());
            }
            taken[next] += 1;
        }
        distinct(drawn)
    }
}

/// A prompt drawn twice in a step (a small data set) would make two groups of one id: the copies
/// get ids of their own.
fn distinct(mut prompts: Vec<Prompt>) -> Vec<Prompt> {
    let mut seen: BTreeMap<String, usize> = BTreeMap::new();
    for prompt in &mut prompts {
        let count = seen.entry(prompt.id.to_string()).or_default();
        *count += 1;
        if *count > 1
            && let Ok(id) = plumb_domain::PromptId::new(format!("{}:{count}", prompt.id))
        {
            prompt.id = id;
        }
    }
    prompts
}

#[cfg(test)]
mod tests {
    use super::*;
    use plumb_domain::{ChatMessage, Label, PromptId};

    fn prompts(label: &str, n: usize) -> Vec<Prompt> {
        let prompt = |i| Prompt {
            id: PromptId::new(format!("{label}-{i}")).unwrap(),
            label: Label::new(label).unwrap(),
            messages: vec![ChatMessage { role: "user".into(), content: "?".into() }],
            reference: None,
        };
        (0..n).map(prompt).collect()
    }

    fn ids(draw: &Draw, step: u64) -> Vec<String> {
        draw.draw(StepId(step)).iter().map(|p| p.id.to_string()).collect()
    }

    #[test]
    fn a_replayed_step_gets_the_same_prompts_and_another_seed_others() {
        let all = [prompts("a", 9), prompts("b", 9)].concat();
        let draw = |seed| Draw::new(&all, &BTreeMap::new(), 4, seed);
        assert_eq!(ids(&draw(1), 3), ids(&draw(1), 3));
        assert_ne!(ids(&draw(1), 3), ids(&draw(2), 3));
    }

    #[test]
    fn an_epoch_has_every_prompt_once() {
        let draw = Draw::new(&prompts("a", 6), &BTreeMap::new(), 3, 5);
        let mut first: Vec<String> = [ids(&draw, 0), ids(&draw, 1)].concat();
        first.sort();
        assert_eq!(first, ["a-0", "a-1", "a-2", "a-3", "a-4", "a-5"]);
    }

    #[test]
    fn labels_keep_their_shares_in_every_step() {
        let all = [prompts("a", 50), prompts("b", 2)].concat();
        let weights = [("a".to_owned(), 1.0), ("b".to_owned(), 1.0)].into();
        let draw = Draw::new(&all, &weights, 4, 1);
        for step in 0..8 {
            let ids = ids(&draw, step);
            assert_eq!(ids.iter().filter(|id| id.starts_with('b')).count(), 2, "{ids:?}");
        }
        let none = [("b".to_owned(), 1.0)].into();
        assert!(ids(&Draw::new(&all, &none, 4, 1), 0).iter().all(|id| id.starts_with('b')));
    }

    #[test]
    fn a_prompt_drawn_twice_in_a_step_is_two_groups() {
        let mut ids = ids(&Draw::new(&prompts("a", 1), &BTreeMap::new(), 3, 1), 0);
        ids.dedup();
        assert_eq!(ids, ["a-0", "a-0:2", "a-0:3"]);
    }
}
