//! What follows from a recipe: the arithmetic that `plumb explain` prints.

use crate::memory::{Head, Layout, Machine, ModelShapes, table};
use crate::schema::Stage;
use crate::{KlPlace, Recipe};

/// What a step does, in numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StepArithmetic {
    /// Samples of a step.
    pub samples: u64,
    /// Response tokens of a step, at most.
    pub response_tokens: u64,
    /// Prompt and response tokens of a step, at most.
    pub tokens: u64,
    /// Samples of a mini-batch on one policy rank.
    pub samples_per_rank: u64,
    /// Packed micro-batches of a mini-batch on one policy rank, at most.
    pub micro_batches_per_rank: u64,
    /// Optimiser steps of a step.
    pub optimizer_steps: u64,
    /// Sequences that each rollout process generates.
    pub sequences_per_rollout: u64,
}

/// The arithmetic of one step.
#[must_use]
pub fn step(recipe: &Recipe) -> StepArithmetic {
    let a = &recipe.algorithm;
    let samples = u64::from(a.prompts_per_step) * u64::from(a.samples_per_prompt);
    let longest =
        u64::from(recipe.rollout.max_prompt_tokens) + u64::from(recipe.sampling.max_new_tokens);
    let ranks = u64::from(recipe.groups.policy.world_size.max(1));
    let mini_batch = samples.div_ceil(u64::from(a.mini_batches.max(1)));
    let per_rank = mini_batch.div_ceil(ranks);
    let in_micro_batch = (u64::from(recipe.engine.micro_batch_tokens) / longest.max(1)).max(1);
    StepArithmetic {
        samples,
        response_tokens: samples * u64::from(recipe.sampling.max_new_tokens),
        tokens: samples * longest,
        samples_per_rank: per_rank,
        micro_batches_per_rank: per_rank.div_ceil(in_micro_batch),
        optimizer_steps: u64::from(a.mini_batches) * u64::from(a.epochs),
        sequences_per_rollout: samples.div_ceil(u64::from(recipe.groups.rollout.world_size.max(1))),
    }
}

impl Recipe {
    /// Whether the step asks a reference model of its own: KL is always measured, so whenever the
    /// recipe trains, but a policy with adapters is its own reference.
    #[must_use]
    pub fn needs_reference(&self) -> bool {
        self.algorithm.lora.is_none() && self.stage.iter().any(Stage::reinforces)
    }

    /// KL coefficient in the loss.
    #[must_use]
    pub fn kl_in_loss(&self) -> f64 {
        if self.algorithm.kl.place == KlPlace::Loss { self.algorithm.kl.coef } else { 0.0 }
    }

    /// KL coefficient in the reward.
    #[must_use]
    pub fn kl_in_reward(&self) -> f64 {
        if self.algorithm.kl.place == KlPlace::Reward { self.algorithm.kl.coef } else { 0.0 }
    }
}

/// The report that `plumb explain` prints; without shapes it leaves memory out.
#[must_use]
pub fn explain(recipe: &Recipe, models: Option<(&ModelShapes, &Machine)>) -> String {
    use std::fmt::Write as _;
    let mut out = String::new();
    let names: Vec<String> =
        recipe.stage.iter().map(|s| format!("{} ({})", s.name(), s.kind())).collect();
    let _ = writeln!(out, "recipe {} (seed {})", recipe.name, recipe.seed);
    let _ = writeln!(out, "stages        {}", names.join(" -> "));
    for stage in &recipe.stage {
        if let Some(text) = training(stage) {
            let _ = writeln!(out, "training      {}: {text}", stage.name());
        }
    }
    if recipe.reinforces() {
        explain_step(&mut out, recipe);
    }
    if let Some((shapes, machine)) = models {
        let model = &shapes.policy;
        let _ = writeln!(
            out,
            "model         {:.1} M parameters, {} layers, hidden {}",
            model.parameters(&Head::LanguageModel) as f64 / 1e6,
            model.layers,
            model.hidden
        );
        out.push_str(&table(&Layout::new(recipe, shapes), machine));
    }
    out
}

/// The arithmetic of one reinforcement step.
fn explain_step(out: &mut String, recipe: &Recipe) {
    use std::fmt::Write as _;
    let s = step(recipe);
    let a = &recipe.algorithm;
    let ranks = recipe.groups.policy.world_size;
    let _ = writeln!(
        out,
        "samples       {} prompts x {} answers = {} a step; {} steps; {} samples in all",
        a.prompts_per_step,
        a.samples_per_prompt,
        s.samples,
        a.steps,
        s.samples * a.steps
    );
    let _ = writeln!(
        out,
        "tokens        up to {} a step, of them {} generated",
        s.tokens, s.response_tokens
    );
    let _ = writeln!(
        out,
        "update        {} optimiser steps of {} samples on each of {ranks} ranks, in up to {} \
         micro-batches of {} tokens",
        s.optimizer_steps,
        s.samples_per_rank,
        s.micro_batches_per_rank,
        recipe.engine.micro_batch_tokens
    );
    let _ = writeln!(
        out,
        "generation    {} sequences on each of {} rollout processes, {} at a time",
        s.sequences_per_rollout, recipe.groups.rollout.world_size, recipe.rollout.max_sequences
    );
}

/// How a stage goes over its data set.
fn training(stage: &Stage) -> Option<String> {
    let (epochs, rows, what) = match stage {
        Stage::Sft(s) => (s.epochs, s.dialogues_per_step, "dialogues"),
        Stage::RewardModel(s) => (s.epochs, s.pairs_per_step, "pairs"),
        Stage::CostModel(s) => (s.epochs, s.pairs_per_step, "pairs"),
        Stage::Dpo(s) => (s.epochs, s.pairs_per_step, "pairs"),
        _ => return None,
    };
    Some(format!("{epochs} epochs, {rows} {what} in an optimiser step"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::validate::tests::MINIMAL;
    use std::path::Path;

    fn recipe(set: &[&str]) -> Recipe {
        let overrides: Vec<crate::Override> = set.iter().map(|s| s.parse().unwrap()).collect();
        Recipe::from_toml(MINIMAL, Path::new("r.toml"), &overrides).unwrap()
    }

    #[test]
    fn a_step_by_hand() {
        // 6 prompts x 4 answers = 24 samples; 2 mini-batches of 12; 2 ranks: 6 each; samples of
        // at most 48 + 16 = 64 tokens; 128 tokens hold 2 of them: 3 micro-batches.
        let recipe = recipe(&[
            "algorithm.prompts_per_step=6",
            "algorithm.mini_batches=2",
            "groups.policy.world_size=2",
            "groups.rollout.world_size=3",
            "rollout.max_prompt_tokens=48",
            "engine.micro_batch_tokens=128",
        ]);
        assert_eq!(
            step(&recipe),
            StepArithmetic {
                samples: 24,
                response_tokens: 384,
                tokens: 1536,
                samples_per_rank: 6,
                micro_batches_per_rank: 3,
                optimizer_steps: 2,
                sequences_per_rollout: 8,
            }
        );
    }

    #[test]
    fn the_report_has_samples_and_memory() {
        let shapes = ModelShapes {
            policy: crate::memory::DecoderShape {
                hidden: 4,
                intermediate: 8,
                layers: 2,
                heads: 2,
                kv_heads: 1,
                head_width: 2,
                vocabulary: 10,
                tied: true,
                qkv_bias: false,
                o_bias: false,
                mlp_bias: false,
                qk_norm: false,
            },
            components: Default::default(),
        };
        let machine = Machine { memory_bytes: 1 << 30, gpu_bytes: vec![] };
        let text = explain(&recipe(&[]), Some((&shapes, &machine)));
        assert!(text.contains("2 prompts x 4 answers = 8 a step"), "{text}");
        assert!(text.contains("of 1.00 GiB") && text.contains("  policy      1 x "), "{text}");
    }

    #[test]
    fn the_leash_is_in_one_place_only() {
        let recipe = recipe(&["algorithm.kl.place=reward"]);
        assert_eq!((recipe.kl_in_loss(), recipe.kl_in_reward()), (0.0, 0.01));
    }
}
