//! Which processes a stage has, and what each holds.

use std::collections::BTreeMap;

use super::engine::{EngineShape, Trained};
use super::inference::{Generator, ResidentModel, Scorer};
use super::{DecoderShape, Head, PhaseMemory, RoleMemory};
use crate::schema::{
    Component, CriticConfig, GroupConfig, OptimizerConfig, ScoreHeadConfig, Stage,
};
use crate::{LoraConfig, LoraTarget, MomentState, Recipe, derive};

/// Bytes of AdamW's two moments: in fp32, or as codes with a scale for every 256.
fn state_bytes(optimizer: &OptimizerConfig) -> f64 {
    match optimizer.state {
        MomentState::Fp32 => 8.0,
        MomentState::EightBit => 2.0 + 8.0 / 256.0,
    }
}

/// Shapes of the models that a recipe names.
#[derive(Debug, Clone, PartialEq)]
pub struct ModelShapes {
    /// `model.path`.
    pub policy: DecoderShape,
    /// Reward components by the folder that their `model` names. One that is missing, because it
    /// is fetched later, counts as large as the policy.
    pub components: BTreeMap<String, (DecoderShape, Head)>,
}

/// A stage that trains on a data set.
struct Training<'a> {
    role: &'static str,
    group: &'static str,
    head: Head,
    frozen_layers: u32,
    optimizer: &'a OptimizerConfig,
    lora: Option<&'a LoraConfig>,
    /// Rows of an optimiser step, and tokens of the longest of them.
    rows: u64,
    row_tokens: u64,
}

/// The roles that work in a stage; none for one that needs no worker.
#[must_use]
pub fn stage_memory(recipe: &Recipe, stage: &Stage, shapes: &ModelShapes) -> Vec<RoleMemory> {
    match stage {
        Stage::Grpo(_) | Stage::Ppo(_) | Stage::PpoLag(_) => {
            let a = &recipe.algorithm;
            let critics = [("critic", &a.critic), ("cost_critic", &a.cost_critic)];
            let critics = critics.into_iter().filter_map(|(name, critic)| {
                critic.as_ref().map(|config| self::critic(recipe, shapes, name, config))
            });
            let mut roles = vec![policy(recipe, shapes)];
            roles.extend(critics);
            // A policy with adapters is its own reference, without them.
            roles.extend(a.lora.is_none().then(|| reference(recipe, shapes)));
            roles.extend([rollout(recipe, shapes, true), reward(recipe, shapes)]);
            roles
        }
        Stage::Sample(_) => vec![rollout(recipe, shapes, false)],
        Stage::Evaluate(_) => vec![rollout(recipe, shapes, false), reward(recipe, shapes)],
        Stage::Prepare(_) | Stage::Label(_) | Stage::Export(_) => Vec::new(),
        _ => training(recipe, stage).map(|t| trainer(recipe, shapes, &t)).into_iter().collect(),
    }
}

fn training<'a>(recipe: &Recipe, stage: &'a Stage) -> Option<Training<'a>> {
    let micro_batch = recipe.engine.micro_batch_tokens;
    // Two answers behind one prompt are one row.
    let pair = |tokens: Option<u32>| u64::from(tokens.map_or(micro_batch, |t| t.saturating_mul(2)));
    let score = |head: &ScoreHeadConfig| Head::Score {
        hidden_widths: head.hidden_dims.iter().map(|&width| u64::from(width)).collect(),
    };
    let row = |tokens: u64| tokens.min(u64::from(micro_batch));
    Some(match stage {
        Stage::Sft(s) => Training {
            role: "policy",
            group: "policy",
            head: Head::LanguageModel,
            frozen_layers: s.frozen_layers,
            optimizer: &s.optimizer,
            lora: s.lora.as_ref(),
            rows: s.dialogues_per_step as u64,
            row_tokens: row(u64::from(s.max_tokens.unwrap_or(micro_batch))),
        },
        Stage::Dpo(s) => Training {
            role: "policy",
            group: "policy",
            head: Head::LanguageModel,
            frozen_layers: s.frozen_layers,
            optimizer: &s.optimizer,
            lora: s.lora.as_ref(),
            rows: s.pairs_per_step as u64,
            row_tokens: row(pair(s.max_tokens)),
        },
        Stage::RewardModel(s) => Training {
            role: "reward_trainer",
            group: "reward_trainer",
            head: score(&s.head),
            frozen_layers: s.frozen_layers,
            optimizer: &s.optimizer,
            lora: s.lora.as_ref(),
            rows: s.pairs_per_step as u64,
            row_tokens: row(pair(s.max_tokens)),
        },
        Stage::CostModel(s) => Training {
            role: "reward_trainer",
            group: "reward_trainer",
            head: score(&s.head),
            frozen_layers: s.frozen_layers,
            optimizer: &s.optimizer,
            lora: s.lora.as_ref(),
            rows: s.pairs_per_step as u64,
            row_tokens: row(pair(s.max_tokens)),
        },
        _ => return None,
    })
}

fn group<'a>(recipe: &'a Recipe, name: &str) -> &'a GroupConfig {
    match name {
        "reference" => &recipe.groups.reference,
        "rollout" => &recipe.groups.rollout,
        "reward" => &recipe.groups.reward,
        "reward_trainer" => &recipe.groups.reward_trainer,
        "critic" => &recipe.groups.critic,
        "cost_critic" => &recipe.groups.cost_critic,
        _ => &recipe.groups.policy,
    }
}

fn role(
    recipe: &Recipe,
    role: &'static str,
    name: &'static str,
    phases: Vec<PhaseMemory>,
    idle_bytes: u64,
) -> RoleMemory {
    let config = group(recipe, name);
    let ranks = u64::from(config.world_size.max(1));
    RoleMemory { role, group: name, ranks, gpus: config.gpus, phases, idle_bytes, host_bytes: 0 }
}

/// A role of the sharded engine, with what it offloads.
fn sharded(
    recipe: &Recipe,
    name: (&'static str, &'static str),
    phases: Vec<PhaseMemory>,
    engine: &EngineShape,
) -> RoleMemory {
    let host_bytes = engine.offloaded_bytes();
    RoleMemory { host_bytes, ..role(recipe, name.0, name.1, phases, engine.idle_bytes()) }
}

fn trainer(recipe: &Recipe, shapes: &ModelShapes, t: &Training<'_>) -> RoleMemory {
    let ranks = u64::from(group(recipe, t.group).world_size.max(1));
    let engine = EngineShape {
        head: t.head.clone(),
        step_tokens: t.rows.div_ceil(ranks) * t.row_tokens,
        longest_tokens: t.row_tokens,
        trained: trained(&shapes.policy, t.frozen_layers, t.lora),
        state_bytes: state_bytes(t.optimizer),
        ema: t.optimizer.ema.is_some(),
        ..engine(recipe, shapes, t.group)
    };
    let mut phases = engine.phases();
    phases.push(engine.export());
    sharded(recipe, (t.role, t.group), phases, &engine)
}

fn policy(recipe: &Recipe, shapes: &ModelShapes) -> RoleMemory {
    let a = &recipe.algorithm;
    let longest = longest_answer(recipe);
    let engine = EngineShape {
        step_tokens: derive::step(recipe).samples_per_rank * longest,
        longest_tokens: longest,
        trained: trained(&shapes.policy, 0, a.lora.as_ref()),
        state_bytes: state_bytes(&a.optimizer),
        ema: a.optimizer.ema.is_some(),
        ..engine(recipe, shapes, "policy")
    };
    let mut phases = engine.phases();
    phases.extend([engine.publish(), engine.checkpoint(), engine.export()]);
    sharded(recipe, ("policy", "policy"), phases, &engine)
}

fn critic(
    recipe: &Recipe,
    shapes: &ModelShapes,
    name: &'static str,
    config: &CriticConfig,
) -> RoleMemory {
    let longest = longest_answer(recipe);
    let ranks = u64::from(group(recipe, name).world_size.max(1));
    let named = config.model.as_ref().and_then(|model| shapes.components.get(model));
    let model = named.map_or(shapes.policy, |(model, _)| *model);
    let engine = EngineShape {
        model,
        head: Head::Score { hidden_widths: Vec::new() },
        step_tokens: derive::step(recipe).samples.div_ceil(ranks) * longest,
        longest_tokens: longest,
        trained: trained(&model, config.frozen_layers, None),
        state_bytes: state_bytes(&config.optimizer),
        ..engine(recipe, shapes, name)
    };
    let mut phases = engine.phases();
    phases.push(engine.checkpoint());
    sharded(recipe, (name, name), phases, &engine)
}

fn reference(recipe: &Recipe, shapes: &ModelShapes) -> RoleMemory {
    let longest = longest_answer(recipe);
    let ranks = u64::from(recipe.groups.reference.world_size.max(1));
    let samples = derive::step(recipe).samples.div_ceil(ranks);
    let engine = EngineShape {
        step_tokens: samples * longest,
        longest_tokens: longest,
        ..engine(recipe, shapes, "reference")
    };
    sharded(recipe, ("reference", "reference"), engine.phases(), &engine)
}

fn rollout(recipe: &Recipe, shapes: &ModelShapes, receives: bool) -> RoleMemory {
    let config = &recipe.rollout;
    let generator = Generator {
        model: ResidentModel {
            model: shapes.policy,
            head: Head::LanguageModel,
            compute_bytes: recipe.model.dtype.bytes(),
        },
        kv_cache_bytes: config.kv_cache_mib << 20,
        sequences: u64::from(config.max_sequences),
        sequence_tokens: longest_answer(recipe),
        prompt_tokens: u64::from(config.max_prompt_tokens),
        receives,
        cpu: recipe.groups.rollout.gpus == 0.0,
    };
    role(recipe, "rollout", "rollout", generator.phases(), generator.idle_bytes())
}

fn reward(recipe: &Recipe, shapes: &ModelShapes) -> RoleMemory {
    // Components that name one folder in one type share its weights.
    let mut models = BTreeMap::new();
    for component in &recipe.reward.component {
        if let Some(name) = &component.model {
            let dtype = component.dtype.unwrap_or(recipe.model.dtype);
            models.insert((name, dtype.bytes()), component_model(recipe, component, name, shapes));
        }
    }
    let scorer = Scorer {
        models: models.into_values().collect(),
        micro_batch_tokens: u64::from(recipe.reward.micro_batch_tokens),
        longest_tokens: longest_answer(recipe),
        cpu: recipe.groups.reward.gpus == 0.0,
    };
    role(recipe, "reward", "reward", scorer.phases(), scorer.idle_bytes())
}

fn component_model(
    recipe: &Recipe,
    component: &Component,
    name: &str,
    shapes: &ModelShapes,
) -> ResidentModel {
    let compute_bytes = component.dtype.unwrap_or(recipe.model.dtype).bytes();
    let stage = name.strip_prefix("stage:").and_then(|stage| {
        let trains = recipe.stage.iter().find(|s| s.name() == stage)?;
        Some((shapes.policy, training(recipe, trains)?.head))
    });
    let linear = || (shapes.policy, Head::Score { hidden_widths: Vec::new() });
    let found = stage.or_else(|| shapes.components.get(name).cloned());
    let (model, head) = found.unwrap_or_else(linear);
    ResidentModel { model, head, compute_bytes }
}

/// A frozen language model under the recipe's engine settings.
fn engine(recipe: &Recipe, shapes: &ModelShapes, name: &str) -> EngineShape {
    let (config, offload) = (group(recipe, name), recipe.engine.offload);
    EngineShape {
        model: shapes.policy,
        head: Head::LanguageModel,
        ranks: u64::from(config.world_size.max(1)),
        compute: recipe.model.dtype,
        reduce: recipe.engine.reduce_dtype,
        recompute: recipe.engine.recompute,
        reshard_after_forward: recipe.engine.reshard_after_forward,
        micro_batch_tokens: u64::from(recipe.engine.micro_batch_tokens),
        step_tokens: 0,
        longest_tokens: 0,
        trained: Trained::Nothing,
        state_bytes: 0.0,
        offload_optimizer: offload.optimizer && config.gpus > 0.0,
        offload_parameters: offload.parameters && config.gpus > 0.0,
        ema: false,
        cpu: config.gpus == 0.0,
    }
}

fn longest_answer(recipe: &Recipe) -> u64 {
    u64::from(recipe.rollout.max_prompt_tokens) + u64::from(recipe.sampling.max_new_tokens)
}

fn trained(model: &DecoderShape, frozen_layers: u32, lora: Option<&LoraConfig>) -> Trained {
    let frozen_layers = u64::from(frozen_layers);
    match lora {
        None => Trained::Above(frozen_layers),
        Some(lora) => {
            let widths = lora.targets.iter().map(|target| sides(model, *target));
            Trained::Adapters {
                frozen_layers,
                elements: u64::from(lora.rank) * widths.sum::<u64>(),
            }
        }
    }
}

/// Input and output width of an adapted matrix, added: A is `[rank, in]`, B `[out, rank]`.
fn sides(model: &DecoderShape, target: LoraTarget) -> u64 {
    let h = model.hidden;
    match target {
        LoraTarget::QProj | LoraTarget::OProj => h + model.q_width(),
        LoraTarget::KProj | LoraTarget::VProj => h + model.kv_width(),
        LoraTarget::GateProj | LoraTarget::UpProj | LoraTarget::DownProj => h + model.intermediate,
    }
}

#[cfg(test)]
mod tests {
    use super::super::shape::tests::qwen2_53m;
    use super::*;
    use crate::validate::tests::MINIMAL;

    pub(crate) fn recipe(set: &[&str]) -> Recipe {
        let overrides: Vec<crate::Override> = set.iter().map(|s| s.parse().unwrap()).collect();
        Recipe::from_toml(MINIMAL, std::path::Path::new("r.toml"), &overrides).unwrap()
    }

    fn shapes() -> ModelShapes {
        ModelShapes { policy: qwen2_53m(), components: BTreeMap::new() }
    }

    #[test]
    fn a_grpo_stage_has_four_roles() {
        let recipe = recipe(&["groups.policy.world_size=2", "groups.rollout.world_size=3"]);
        let stage = recipe.stage.iter().find(|s| s.kind() == "grpo").unwrap();
        let roles = stage_memory(&recipe, stage, &shapes());
        let found: Vec<_> = roles.iter().map(|r| (r.role, r.ranks)).collect();
        assert_eq!(found, [("policy", 2), ("reference", 1), ("rollout", 3), ("reward", 1)]);
        let phases: Vec<_> = roles[0].phases.iter().map(|p| p.phase).collect();
        let all =
            ["load", "forward", "head", "backward", "step", "publish", "checkpoint", "export"];
        assert_eq!(phases, all);
        for role in &roles {
            assert!(role.peak_bytes() >= role.idle_bytes, "{role:?}");
        }
    }

    #[test]
    fn critics_are_counted_and_a_policy_with_adapters_has_no_reference() {
        let mut recipe = recipe(&[]);
        recipe.groups.cost_critic.world_size = 2;
        let critic: CriticConfig = toml::from_str("optimizer = { learning_rate = 1e-5 }").unwrap();
        recipe.algorithm.critic = Some(critic.clone());
        recipe.algorithm.cost_critic = Some(critic);
        let lora = "rank = 8\nalpha = 16.0\ntargets = [\"q_proj\"]";
        recipe.algorithm.lora = Some(toml::from_str(lora).unwrap());
        let stage: Stage = toml::from_str("kind = \"ppo_lag\"\nname = \"rl\"").unwrap();
        let roles = stage_memory(&recipe, &stage, &shapes());
        let found: Vec<_> = roles.iter().map(|r| (r.role, r.ranks)).collect();
        let expected =
            [("policy", 1), ("critic", 1), ("cost_critic", 2), ("rollout", 1), ("reward", 1)];
        assert_eq!(found, expected);
        // All of a critic is trained, of the policy only its adapters.
        assert!(roles[1].peak_bytes() > roles[0].peak_bytes());
    }

    #[test]
    fn adapters_are_counted_by_their_targets() {
        let lora = LoraConfig {
            rank: 8,
            alpha: 16.0,
            dropout: 0.0,
            targets: vec![LoraTarget::QProj, LoraTarget::VProj, LoraTarget::DownProj],
            adapter: None,
        };
        // 8 x (512 + 512, 512 + 128, 1408 + 512).
        let elements = 8 * (1024 + 640 + 1920);
        let found = trained(&qwen2_53m(), 2, Some(&lora));
        assert_eq!(found, Trained::Adapters { frozen_layers: 2, elements });
    }
}
