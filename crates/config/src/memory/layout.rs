//! Whether the processes of a run fit on one machine, all of them together.

use std::fmt;

use super::{ModelShapes, PhaseMemory, RoleMemory, stage_memory};
use crate::Recipe;
use crate::schema::Stage;

/// What one machine has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Machine {
    /// Main memory.
    pub memory_bytes: u64,
    /// Memory of each GPU.
    pub gpu_bytes: Vec<u64>,
}

/// The processes of one stage.
#[derive(Debug, Clone, PartialEq)]
pub struct StageLayout {
    /// The stage.
    pub stage: String,
    /// Roles that work in it.
    pub roles: Vec<RoleMemory>,
    /// Roles that earlier stages left, which wait.
    pub waiting: Vec<RoleMemory>,
}

/// The processes of a run, stage by stage.
#[derive(Debug, Clone, PartialEq)]
pub struct Layout {
    /// Stages that have processes.
    pub stages: Vec<StageLayout>,
}

/// A layout that does not fit.
#[derive(Debug, Clone, PartialEq)]
pub struct Misfit {
    /// The stage that needs the most.
    pub stage: String,
    /// `memory` or `a GPU`.
    pub of: &'static str,
    /// What it needs at once.
    pub needed_bytes: u64,
    /// What there is.
    pub available_bytes: u64,
    /// Role, processes, what each holds, and when.
    pub largest: (&'static str, u64, u64, &'static str),
    /// What would help, each with what the stage would then need.
    pub remedies: Vec<(String, u64)>,
}

impl Layout {
    /// The processes of a recipe.
    #[must_use]
    pub fn new(recipe: &Recipe, shapes: &ModelShapes) -> Self {
        let mut waiting: Vec<RoleMemory> = Vec::new();
        let mut stages = Vec::new();
        for stage in &recipe.stage {
            let roles = stage_memory(recipe, stage, shapes);
            waiting.retain(|old| roles.iter().all(|role| role.role != old.role));
            let (name, kept) = (stage.name().to_owned(), stays(stage));
            if !roles.is_empty() {
                let layout =
                    StageLayout { stage: name, roles: roles.clone(), waiting: waiting.clone() };
                stages.push(layout);
            }
            if matches!(stage, Stage::Export(_)) {
                let released = ["policy", "critic", "cost_critic", "reference"];
                waiting.retain(|role| !released.contains(&role.role));
            }
            waiting.extend(roles.into_iter().filter(|role| kept.contains(&role.role)));
        }
        Self { stages }
    }

    /// The stage that needs the most of a machine, and how much.
    #[must_use]
    pub fn worst(&self, gpu: bool) -> Option<(&StageLayout, u64)> {
        self.stages.iter().map(|stage| (stage, stage.needed(gpu))).max_by_key(|(_, bytes)| *bytes)
    }

    /// Refuses a layout that needs more than the machine has.
    ///
    /// # Errors
    /// The numbers, and which changes of the recipe would lower them.
    pub fn check(
        &self,
        machine: &Machine,
        recipe: &Recipe,
        shapes: &ModelShapes,
    ) -> Result<(), Box<Misfit>> {
        let device = machine.gpu_bytes.iter().min().copied();
        for (gpu, available) in [(false, Some(machine.memory_bytes)), (true, device)] {
            let (Some(available_bytes), Some((stage, needed_bytes))) = (available, self.worst(gpu))
            else {
                continue;
            };
            if needed_bytes > available_bytes {
                return Err(Box::new(Misfit {
                    stage: stage.stage.clone(),
                    of: if gpu { "a GPU" } else { "memory" },
                    needed_bytes,
                    available_bytes,
                    largest: stage.largest(gpu),
                    remedies: remedies(recipe, shapes, stage, gpu),
                }));
            }
        }
        Ok(())
    }
}

/// Roles that a stage leaves behind for later ones.
fn stays(stage: &Stage) -> &'static [&'static str] {
    match stage {
        Stage::Grpo(_) | Stage::Ppo(_) | Stage::PpoLag(_) => {
            &["policy", "critic", "cost_critic", "reference", "rollout", "reward"]
        }
        Stage::Sample(_) => &["rollout"],
        Stage::Evaluate(_) => &["rollout", "reward"],
        _ => &[],
    }
}

impl StageLayout {
    /// Bytes that the stage needs at once: of the machine, where all processes come together, or
    /// of a GPU, which whole-device processes have alone and fractions share. One role works at a
    /// time, the others wait; new weights are sent and received at the same time.
    #[must_use]
    pub fn needed(&self, gpu: bool) -> u64 {
        let here = |role: &&RoleMemory| (role.gpus > 0.0) == gpu;
        let processes = |role: &RoleMemory| if gpu { 1 } else { role.ranks };
        let shares = |role: &RoleMemory| !gpu || role.gpus < 1.0;
        let all = || self.roles.iter().chain(&self.waiting).filter(here);
        let idle: u64 =
            all().filter(|role| shares(role)).map(|r| processes(r) * r.idle_bytes).sum();
        let above = |role: &RoleMemory, bytes: u64| {
            processes(role) * if shares(role) { bytes.saturating_sub(role.idle_bytes) } else { 0 }
        };
        let working = self.roles.iter().filter(here);
        let alone = working.clone().map(|role| above(role, role.peak_bytes())).max().unwrap_or(0);
        let of = |phases: &[PhaseMemory], name: &str| {
            phases.iter().find(|phase| phase.phase == name).map_or(0, PhaseMemory::bytes)
        };
        let sending = working.clone().map(|role| {
            let bytes = of(&role.phases, "publish").max(of(&role.phases, "receive"));
            above(role, bytes)
        });
        let roles = self.roles.iter().chain(&self.waiting);
        let offloaded: u64 = roles.map(|role| role.ranks * role.host_bytes).sum();
        let shared = idle + alone.max(sending.sum()) + if gpu { 0 } else { offloaded };
        let whole = working.filter(|role| !shares(role)).map(RoleMemory::peak_bytes).max();
        shared.max(whole.unwrap_or(0))
    }

    fn largest(&self, gpu: bool) -> (&'static str, u64, u64, &'static str) {
        let here = self.roles.iter().filter(|role| (role.gpus > 0.0) == gpu);
        let largest = here.max_by_key(|role| role.ranks * role.peak_bytes());
        largest.map_or(("none", 0, 0, "load"), |role| {
            let phase = role.worst().map_or("load", |phase| phase.phase);
            (role.role, role.ranks, role.peak_bytes(), phase)
        })
    }
}

/// Changes of the recipe that lower what this stage needs.
fn remedies(
    recipe: &Recipe,
    shapes: &ModelShapes,
    stage: &StageLayout,
    gpu: bool,
) -> Vec<(String, u64)> {
    let before = stage.needed(gpu);
    let needed = |changed: &Recipe| {
        let layout = Layout::new(changed, shapes);
        let same = layout.stages.iter().find(|s| s.stage == stage.stage)?;
        Some(same.needed(gpu))
    };
    let mut found = Vec::new();
    let mut offer = |what: String, change: &dyn Fn(&mut Recipe), over_nodes: u64| {
        let mut changed = recipe.clone();
        change(&mut changed);
        if let Some(bytes) = needed(&changed).map(|bytes| bytes / over_nodes)
            && bytes < before
        {
            found.push((what, bytes));
        }
    };
    let half = (recipe.engine.micro_batch_tokens / 2).max(1);
    offer(
        format!("engine.micro_batch_tokens = {half}"),
        &|r| r.engine.micro_batch_tokens = half,
        1,
    );
    offer("engine.recompute = true".to_owned(), &|r| r.engine.recompute = true, 1);
    offer(
        "engine.reshard_after_forward = true".to_owned(),
        &|r| r.engine.reshard_after_forward = true,
        1,
    );
    let cache = recipe.rollout.kv_cache_mib / 2;
    offer(format!("rollout.kv_cache_mib = {cache}"), &|r| r.rollout.kv_cache_mib = cache, 1);
    let largest = stage.largest(gpu).0;
    if largest == "policy" || largest == "reward_trainer" {
        let ranks = recipe_group(recipe, largest).saturating_mul(2);
        // On one machine more ranks only help where each has a GPU of its own.
        let nodes = if gpu { 1 } else { 2 };
        let place = if gpu { "" } else { " over twice the nodes" };
        offer(
            format!("groups.{largest}.world_size = {ranks}{place}"),
            &|r| set_group(r, largest, ranks),
            nodes,
        );
        offer("adapters (a lora table, rank 8)".to_owned(), &|r| with_lora(r, &stage.stage), 1);
    }
    found
}

fn recipe_group(recipe: &Recipe, role: &str) -> u32 {
    match role {
        "policy" => recipe.groups.policy.world_size,
        _ => recipe.groups.reward_trainer.world_size,
    }
}

fn set_group(recipe: &mut Recipe, role: &str, ranks: u32) {
    match role {
        "policy" => recipe.groups.policy.world_size = ranks,
        _ => recipe.groups.reward_trainer.world_size = ranks,
    }
}

/// Puts adapters of rank 8 on what a stage trains.
fn with_lora(recipe: &mut Recipe, name: &str) {
    use crate::LoraTarget::{DownProj, GateProj, KProj, OProj, QProj, UpProj, VProj};
    let lora = crate::LoraConfig {
        rank: 8,
        alpha: 16.0,
        dropout: 0.0,
        targets: vec![QProj, KProj, VProj, OProj, GateProj, UpProj, DownProj],
        adapter: None,
    };
    for stage in recipe.stage.iter_mut().filter(|stage| stage.name() == name) {
        match stage {
            Stage::Sft(s) => s.lora = Some(lora.clone()),
            Stage::Dpo(s) => s.lora = Some(lora.clone()),
            Stage::RewardModel(s) => s.lora = Some(lora.clone()),
            Stage::CostModel(s) => s.lora = Some(lora.clone()),
            Stage::Grpo(_) | Stage::Ppo(_) | Stage::PpoLag(_) => {
                recipe.algorithm.lora = Some(lora.clone());
            }
            _ => {}
        }
    }
}

fn gib(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1u32 << 30)
}

impl fmt::Display for Misfit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (role, ranks, bytes, phase) = self.largest;
        write!(
            f,
            "stage {:?} needs {:.2} GiB of {} at once, {:.2} GiB are there; the largest are {ranks} \
             x {role} with {:.2} GiB each in {phase}",
            self.stage,
            gib(self.needed_bytes),
            self.of,
            gib(self.available_bytes),
            gib(bytes)
        )?;
        for (index, (what, bytes)) in self.remedies.iter().enumerate() {
            let lead = if index == 0 { "; it would need " } else { ", " };
            write!(f, "{lead}{:.2} GiB with {what}", gib(*bytes))?;
        }
        Ok(())
    }
}

impl std::error::Error for Misfit {}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::super::shape::tests::qwen2_53m;
    use super::*;
    use crate::validate::tests::MINIMAL;

    fn recipe(set: &[&str]) -> Recipe {
        let overrides: Vec<crate::Override> = set.iter().map(|s| s.parse().unwrap()).collect();
        Recipe::from_toml(MINIMAL, std::path::Path::new("r.toml"), &overrides).unwrap()
    }

    fn shapes() -> ModelShapes {
        ModelShapes { policy: qwen2_53m(), components: BTreeMap::new() }
    }

    fn memory(gib: u64) -> Machine {
        Machine { memory_bytes: gib << 30, gpu_bytes: vec![] }
    }

    fn phase(name: &'static str, bytes: u64) -> PhaseMemory {
        PhaseMemory::new(name, &[("all", bytes)])
    }

    fn role(role: &'static str, ranks: u64, gpus: f64, idle: u64, peak: u64) -> RoleMemory {
        let phases = vec![phase("work", peak)];
        RoleMemory { role, group: "policy", ranks, gpus, phases, idle_bytes: idle, host_bytes: 0 }
    }

    #[test]
    fn one_role_works_and_the_others_wait() {
        let mut stage = StageLayout {
            stage: "train".into(),
            roles: vec![role("policy", 2, 0.0, 10, 25), role("rollout", 3, 0.0, 5, 9)],
            waiting: vec![role("reward", 1, 0.0, 4, 100)],
        };
        // Waiting: 2 x 10 + 3 x 5 + 4 = 39; the policy works above that by 2 x 15.
        assert_eq!(stage.needed(false), 39 + 30);
        assert_eq!(stage.needed(true), 0);
        // Sending and receiving come together: 2 x 10 + 3 x 7 is more than 30.
        stage.roles[0].phases.push(phase("publish", 20));
        stage.roles[1].phases.push(phase("receive", 12));
        assert_eq!(stage.needed(false), 39 + 41);
        assert_eq!(stage.largest(false), ("policy", 2, 25, "work"));
    }

    #[test]
    fn fractions_share_a_gpu_and_whole_ones_do_not() {
        let stage = |policy_gpus| StageLayout {
            stage: "train".into(),
            roles: vec![role("policy", 4, policy_gpus, 10, 25), role("rollout", 4, 0.5, 5, 9)],
            waiting: vec![],
        };
        assert_eq!(stage(0.5).needed(true), 15 + 15);
        assert_eq!(stage(1.0).needed(true), 25);
    }

    #[test]
    fn a_layout_that_cannot_fit_is_refused_with_what_would_help() {
        let recipe = recipe(&["engine.recompute=false"]);
        let layout = Layout::new(&recipe, &shapes());
        assert_eq!(layout.check(&memory(64), &recipe, &shapes()), Ok(()));
        let misfit = layout.check(&memory(1), &recipe, &shapes()).unwrap_err();
        assert_eq!((misfit.of, misfit.available_bytes), ("memory", 1 << 30));
        assert!(misfit.remedies.iter().all(|(_, bytes)| *bytes < misfit.needed_bytes));
        let text = misfit.to_string();
        for part in ["1.00 GiB are there", "lora", "groups.policy.world_size = 2 over twice"] {
            assert!(text.contains(part), "{part:?} is not in {text}");
        }
    }
}
