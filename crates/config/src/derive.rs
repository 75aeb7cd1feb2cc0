//! What follows from a recipe: the arithmetic that `plumb explain` prints.

use crate::schema::Stage;
use crate::{KlPlace, Recipe};

/// Shape of a decoder, as far as sizes depend on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ModelShape {
    /// Parameters in all.
    pub parameters: u64,
    /// Width of the residual stream.
    pub hidden: u64,
    /// Layers.
    pub layers: u64,
    /// Key/value heads times head width.
    pub kv_width: u64,
    /// Vocabulary.
    pub vocabulary: u64,
}

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

/// Memory of one process of a role, bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RoleMemory {
    /// The role.
    pub role: &'static str,
    /// Phase of the step in which the role holds the most.
    pub phase: &'static str,
    /// Weights and, for a role that trains, gradients and moments.
    pub resident_bytes: u64,
    /// Activations, logits, gathered blocks or keys and values.
    pub working_bytes: u64,
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

/// Memory of each role, estimated from the model's shape. Allocators add some tens of MiB.
#[must_use]
pub fn memory(recipe: &Recipe, model: ModelShape) -> Vec<RoleMemory> {
    let width = recipe.model.dtype.bytes();
    let micro = u64::from(recipe.engine.micro_batch_tokens);
    let largest_block = (model.vocabulary * model.hidden).max(
        model.parameters.saturating_sub(model.vocabulary * model.hidden) / model.layers.max(1),
    );
    let shard = |ranks: u32| model.parameters.div_ceil(u64::from(ranks.max(1)));
    // Block inputs of every layer, and about 12 hidden widths inside the block being recomputed.
    let activations = micro * model.hidden * (model.layers + 12) * width;
    let policy = RoleMemory {
        role: "policy",
        phase: "update",
        // fp32 master, gradient and two moments.
        resident_bytes: shard(recipe.groups.policy.world_size) * 16,
        working_bytes: activations + largest_block * (width + 4),
    };
    let reference = RoleMemory {
        role: "reference",
        phase: "reference_logps",
        resident_bytes: shard(recipe.groups.reference.world_size) * 4,
        working_bytes: micro * model.hidden * 12 * width + largest_block * width,
    };
    let rollout = RoleMemory {
        role: "rollout",
        phase: "generate",
        // The live version and the one being received.
        resident_bytes: model.parameters * width * 2,
        working_bytes: recipe.rollout.kv_cache_mib << 20,
    };
    let classifiers = recipe.reward.component.iter().filter(|c| c.model.is_some()).count() as u64;
    let reward = RoleMemory {
        role: "reward",
        phase: "score",
        resident_bytes: model.parameters * width * classifiers,
        working_bytes: u64::from(recipe.reward.micro_batch_tokens) * model.hidden * 12 * width,
    };
    let mut roles = vec![policy];
    if recipe.needs_reference() {
        roles.push(reference);
    }
    if recipe.generates() {
        roles.push(rollout);
    }
    if recipe.rewards() {
        roles.push(reward);
    }
    roles
}

impl Recipe {
    /// Whether the step asks the reference model: KL is always measured against it, so whenever
    /// the recipe trains.
    #[must_use]
    pub fn needs_reference(&self) -> bool {
        self.stage.iter().any(Stage::reinforces)
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

/// The report that `plumb explain` prints; without a shape it leaves memory out.
#[must_use]
pub fn explain(recipe: &Recipe, model: Option<ModelShape>) -> String {
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
    if let Some(model) = model {
        let _ = writeln!(
            out,
            "model         {:.1} M parameters, {} layers, hidden {}",
            model.parameters as f64 / 1e6,
            model.layers,
            model.hidden
        );
        for role in memory(recipe, model) {
            let mib = |bytes: u64| bytes as f64 / f64::from(1u32 << 20);
            let _ = writeln!(
                out,
                "memory        {:<10} {:>8.0} MiB resident + {:>8.0} MiB in {}",
                role.role,
                mib(role.resident_bytes),
                mib(role.working_bytes),
                role.phase
            );
        }
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
    fn memory_follows_the_shards() {
        let shape =
            ModelShape { parameters: 1000, hidden: 4, layers: 2, kv_width: 4, vocabulary: 10 };
        let one = memory(&recipe(&[]), shape);
        let two = memory(&recipe(&["groups.policy.world_size=2"]), shape);
        assert_eq!(one[0].resident_bytes, 16_000);
        assert_eq!(two[0].resident_bytes, 8_000);
        assert!(explain(&recipe(&[]), Some(shape)).contains("2 prompts x 4 answers = 8 a step"));
    }

    #[test]
    fn the_leash_is_in_one_place_only() {
        let recipe = recipe(&["algorithm.kl.place=reward"]);
        assert_eq!((recipe.kl_in_loss(), recipe.kl_in_reward()), (0.0, 0.01));
    }
}
