//! Contradictions in sampling, algorithm, loss and optimiser.

use super::Findings;
use super::optimizer::optimizer;
use crate::schema::{Advantage, OldLogps, SamplingConfig, Stage};
use crate::{KlPlace, Recipe};

impl Recipe {
    pub(super) fn check_sampling(&self, found: &mut Findings) {
        sampling("sampling", &self.sampling, found);
        found.require(
            self.sampling.temperature > 0.0,
            "sampling.temperature",
            "0 (greedy) gives every answer of a group the same text, so no advantage",
            "write more than 0, for example 1.0",
        );
        for (index, stage) in self.stage.iter().enumerate() {
            let own = match stage {
                Stage::Sample(s) => s.sampling.as_ref(),
                Stage::Evaluate(s) => s.sampling.as_ref(),
                _ => None,
            };
            if let Some(own) = own {
                sampling(&format!("stage[{index}].sampling"), own, found);
            }
        }
        found.require(
            self.rollout.prefill_tokens >= 1,
            "rollout.prefill_tokens",
            "0 tokens of a prompt in a step",
            "write at least 1",
        );
        found.require(
            !self.rollout.deterministic || self.algorithm.lora.is_none(),
            "rollout.deterministic",
            "true beside [algorithm.lora]: adapters are merged into what the rollout gets, which \
             rounds differently from the trainer's two products",
            "leave out one of the two",
        );
        let s = &self.sampling;
        let whole = s.top_p == 1.0
            && s.top_k.is_none()
            && s.min_p == 0.0
            && s.repetition_penalty == 1.0
            && s.logit_bias.is_empty()
            && s.allowed_tokens.is_empty()
            && s.min_new_tokens == 0;
        found.require(
            !self.rollout.deterministic || whole,
            "rollout.deterministic",
            "true, but [sampling] draws from less than the whole distribution, whose log-probs the \
             trainer does not compute",
            "leave out top_p, top_k, min_p, min_new_tokens, repetition_penalty, logit_bias and \
             allowed_tokens, or deterministic",
        );
        let longest =
            u64::from(self.rollout.max_prompt_tokens) + u64::from(self.sampling.max_new_tokens);
        found.require(
            u64::from(self.engine.micro_batch_tokens) >= longest,
            "engine.micro_batch_tokens",
            format!(
                "{} tokens cannot hold one sample of rollout.max_prompt_tokens + \
                 sampling.max_new_tokens = {longest}",
                self.engine.micro_batch_tokens
            ),
            "raise it to at least that, or shorten prompts or answers",
        );
    }

    pub(super) fn check_algorithm(&self, found: &mut Findings) {
        let a = &self.algorithm;
        let samples = u64::from(a.prompts_per_step) * u64::from(a.samples_per_prompt);
        found.require(a.steps >= 1, "algorithm.steps", "0 steps", "write at least 1");
        found.require(
            a.prompts_per_step >= 1,
            "algorithm.prompts_per_step",
            "0 prompts",
            "write at least 1",
        );
        found.require(
            a.mini_batches >= 1 && u64::from(a.mini_batches) <= samples.max(1),
            "algorithm.mini_batches",
            format!("{} mini-batches out of {samples} samples", a.mini_batches),
            "write 1 to prompts_per_step x samples_per_prompt",
        );
        found.require(a.epochs >= 1, "algorithm.epochs", "0 passes", "write at least 1");
        found.require(
            a.old_logps != OldLogps::Current || (a.mini_batches == 1 && a.epochs == 1),
            "algorithm.old_logps",
            format!(
                "\"current\" needs one optimiser step a step, here are {} mini-batches x {} epochs",
                a.mini_batches, a.epochs
            ),
            "write \"rollout\" or \"recompute\", or mini_batches = 1 and epochs = 1",
        );
        found.require(
            a.gamma > 0.0 && a.gamma <= 1.0,
            "algorithm.gamma",
            a.gamma.to_string(),
            "write a number in (0, 1]",
        );
        found.require(
            a.kl.place == KlPlace::Reward || a.gamma == 1.0 || a.advantage == Advantage::Gae,
            "algorithm.gamma",
            "discounting per token has an effect only with kl.place = \"reward\" or advantage = \"gae\"",
            "leave it 1.0, or set one of them",
        );
        found.require(
            a.kl.coef.is_finite() && a.kl.coef >= 0.0,
            "algorithm.kl.coef",
            a.kl.coef.to_string(),
            "write a number >= 0",
        );
        found.require(
            a.kl.bound > 0.0,
            "algorithm.kl.bound",
            a.kl.bound.to_string(),
            "write a number > 0",
        );
        self.check_loss(found);
        if let Some(lora) = &a.lora {
            super::lora::lora("algorithm.lora", lora, found);
            found.require(
                self.groups.reference == crate::GroupConfig::default(),
                "groups.reference",
                "a policy with adapters is its own reference, so this group is not started",
                "leave the table out",
            );
        }
        optimizer("algorithm.optimizer", &a.optimizer, found);
    }
}

fn sampling(key: &str, s: &SamplingConfig, found: &mut Findings) {
    if let Err(error) = s.params().validate() {
        found.require(false, &format!("{key}.{}", error.key), error.value, error.expected);
    }
}
