//! Values that contradict one another.

use std::collections::BTreeSet;
use std::path::Path;

use crate::schema::{Advantage, ComponentKind, GroupConfig, OldLogps, SamplingConfig, Stage};
use crate::{ConfigError, Contradiction, KlPlace, Recipe};

/// Collects contradictions.
#[derive(Default)]
struct Findings(Vec<Contradiction>);

impl Findings {
    /// Records a contradiction unless `holds`.
    fn require(&mut self, holds: bool, key: &str, problem: impl Into<String>, fix: &str) {
        if !holds {
            self.0.push(Contradiction {
                key: key.to_owned(),
                problem: problem.into(),
                fix: fix.to_owned(),
            });
        }
    }
}

impl Recipe {
    /// Every contradiction of this recipe; empty when it can run.
    #[must_use]
    pub fn validate(&self) -> Vec<Contradiction> {
        let mut found = Findings::default();
        self.check_groups(&mut found);
        self.check_sampling(&mut found);
        self.check_algorithm(&mut found);
        self.check_reward(&mut found);
        self.check_stages(&mut found);
        found.0
    }

    pub(crate) fn check(&self, path: &Path) -> Result<(), ConfigError> {
        let contradictions = self.validate();
        if contradictions.is_empty() {
            return Ok(());
        }
        Err(ConfigError::Contradiction { path: path.to_owned(), contradictions })
    }

    fn check_groups(&self, found: &mut Findings) {
        let g = &self.groups;
        let groups: [(&str, &GroupConfig); 5] = [
            ("policy", &g.policy),
            ("reference", &g.reference),
            ("rollout", &g.rollout),
            ("reward", &g.reward),
            ("reward_trainer", &g.reward_trainer),
        ];
        for (role, group) in groups {
            let key = |name: &str| format!("groups.{role}.{name}");
            let size = group.world_size;
            found.require(
                (1..=1024).contains(&size),
                &key("world_size"),
                format!("{size} processes"),
                "write 1 to 1024",
            );
            found.require(
                group.threads >= 1,
                &key("threads"),
                "0 threads cannot compute",
                "write at least 1",
            );
            found.require(
                group.cpus.is_finite() && group.cpus >= 0.0,
                &key("cpus"),
                format!("{} CPUs", group.cpus),
                "write a number >= 0",
            );
            found.require(
                group.gpus.is_finite() && group.gpus >= 0.0,
                &key("gpus"),
                format!("{} GPUs", group.gpus),
                "write a number >= 0",
            );
            found.require(
                group.backoff_secs.is_finite() && group.backoff_secs >= 0.0,
                &key("backoff_secs"),
                format!("{} s", group.backoff_secs),
                "write a number >= 0",
            );
        }
        let t = &self.timeouts;
        for (name, secs) in [
            ("collective_secs", t.collective_secs),
            ("start_secs", t.start_secs),
            ("phase_secs", t.phase_secs),
        ] {
            found.require(
                secs.is_finite() && secs > 0.0,
                &format!("timeouts.{name}"),
                format!("{secs} s"),
                "write a number > 0",
            );
        }
        found.require(
            self.engine.micro_batch_tokens >= 1,
            "engine.micro_batch_tokens",
            "0 tokens",
            "write at least 1",
        );
        found.require(
            self.checkpoint.every_steps >= 1 && self.checkpoint.keep >= 1,
            "checkpoint",
            "every_steps and keep are at least 1",
            "a lost policy rank needs a commit to go back to",
        );
    }

    fn check_sampling(&self, found: &mut Findings) {
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

    fn check_algorithm(&self, found: &mut Findings) {
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
            a.samples_per_prompt >= 2,
            "algorithm.samples_per_prompt",
            format!("a group of {} has nothing to compare with", a.samples_per_prompt),
            "write at least 2",
        );
        found.require(
            a.mini_batches >= 1 && u64::from(a.mini_batches) <= samples.max(1),
            "algorithm.mini_batches",
            format!("{} mini-batches out of {samples} samples", a.mini_batches),
            "write 1 to prompts_per_step x samples_per_prompt",
        );
        found.require(a.epochs >= 1, "algorithm.epochs", "0 passes", "write at least 1");
        found.require(
            a.normalise_by_std || a.advantage == Advantage::Grpo,
            "algorithm.normalise_by_std",
            format!("false has no meaning for advantage = {:?}", a.advantage),
            "use advantage = \"grpo\", or leave it true",
        );
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
            a.kl.place == KlPlace::Reward || a.gamma == 1.0,
            "algorithm.gamma",
            "discounting per token has an effect only with kl.place = \"reward\"",
            "leave it 1.0, or set kl.place = \"reward\"",
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
        optimizer("algorithm.optimizer", &a.optimizer, found);
    }

    fn check_loss(&self, found: &mut Findings) {
        let loss = &self.algorithm.loss;
        let modes =
            ["token-mean", "seq-mean-token-sum", "seq-mean-token-mean", "seq-mean-token-sum-norm"];
        found.require(
            modes.contains(&loss.aggregation.as_str()),
            "algorithm.loss.aggregation",
            format!("{:?}", loss.aggregation),
            "write token-mean, seq-mean-token-sum, seq-mean-token-mean or seq-mean-token-sum-norm",
        );
        found.require(
            (loss.aggregation == "seq-mean-token-sum-norm") == (loss.norm_tokens > 0.0),
            "algorithm.loss.norm_tokens",
            format!("{} with aggregation {:?}", loss.norm_tokens, loss.aggregation),
            "give it a positive value with seq-mean-token-sum-norm, and leave it out elsewhere",
        );
        found.require(
            (0.0..1.0).contains(&loss.clip_low) && loss.clip_high >= 0.0,
            "algorithm.loss.clip_low",
            format!("clip_low {} and clip_high {}", loss.clip_low, loss.clip_high),
            "write clip_low in [0, 1) and clip_high >= 0",
        );
        found.require(
            loss.dual_clip == 0.0 || loss.dual_clip > 1.0,
            "algorithm.loss.dual_clip",
            loss.dual_clip.to_string(),
            "write 0 (off) or more than 1, for example 3.0",
        );
        found.require(
            loss.entropy_coef.is_finite(),
            "algorithm.loss.entropy_coef",
            loss.entropy_coef.to_string(),
            "write a finite number",
        );
    }

    fn check_reward(&self, found: &mut Findings) {
        let mut names = BTreeSet::new();
        for (index, c) in self.reward.component.iter().enumerate() {
            let key = format!("reward.component[{index}]");
            found.require(
                names.insert(c.name.as_str()),
                &key,
                format!("the name {:?} stands twice", c.name),
                "give each component its own name",
            );
            let model_keys = c.transform.is_some() || c.dtype.is_some() || c.input.is_some();
            match c.kind {
                ComponentKind::SequenceClassifier => found.require(
                    c.model.is_some() && c.rule.is_none(),
                    &key,
                    format!("sequence_classifier {:?} needs `model` and has no `rule`", c.name),
                    "write model = \"FOLDER\" or \"stage:NAME\"",
                ),
                ComponentKind::Rule => found.require(
                    c.rule.is_some() && c.model.is_none() && !model_keys,
                    &key,
                    format!(
                        "rule {:?} needs `rule` and has no `model`, `transform`, `input`, `dtype`",
                        c.name
                    ),
                    "write rule = { rule = \"length\", ... }",
                ),
            }
            if let Some(stage) = c.model.as_deref().and_then(|m| m.strip_prefix("stage:")) {
                let trains = |s: &Stage| matches!(s, Stage::RewardModel(r) if r.name == stage);
                found.require(
                    self.stage.iter().any(trains),
                    &format!("{key}.model"),
                    format!("no reward_model stage is named {stage:?}"),
                    "add one, or name a folder",
                );
            }
        }
        for (label, mix) in &self.reward.mix {
            for (component, weight) in mix {
                let key = format!("reward.mix.{label}.{component}");
                found.require(
                    names.contains(component.as_str()),
                    &key,
                    "no component has that name",
                    "add a [[reward.component]] or correct the name",
                );
                found.require(
                    weight.is_finite(),
                    &key,
                    format!("weight {weight}"),
                    "write a finite number",
                );
            }
        }
        for name in &names {
            let mixed = self.reward.mix.values().any(|mix| mix.contains_key(*name));
            let measured = self.stage.iter().any(|s| {
                matches!(s, Stage::Evaluate(e)
                    if e.measure.iter().any(|m| m.component.as_deref() == Some(name)))
            });
            found.require(
                mixed || measured,
                &format!("reward.component {name:?}"),
                "no mix and no measure uses it",
                "remove it, or give it a weight in a [reward.mix.LABEL]",
            );
        }
        for (label, weight) in &self.data.label_weights {
            found.require(
                weight.is_finite() && *weight >= 0.0,
                &format!("data.label_weights.{label}"),
                format!("weight {weight}"),
                "write a number >= 0",
            );
        }
    }

    fn check_stages(&self, found: &mut Findings) {
        found.require(!self.stage.is_empty(), "stage", "no stage", "add a [[stage]]");
        let mut before: Vec<&Stage> = Vec::new();
        for (index, stage) in self.stage.iter().enumerate() {
            let key = format!("stage[{index}]");
            let name = stage.name();
            let plain = !name.is_empty()
                && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_' || c == '-');
            found.require(
                plain && !before.iter().any(|s| s.name() == name),
                &format!("{key}.name"),
                format!("{name:?} is empty, has other than A-Z a-z 0-9 _ -, or stands twice"),
                "give each stage its own plain name",
            );
            self.check_stage(stage, &key, &before, found);
            before.push(stage);
        }
    }

    fn check_stage(&self, stage: &Stage, key: &str, before: &[&Stage], found: &mut Findings) {
        let earlier =
            |kind: &str, name: &str| before.iter().any(|s| s.kind() == kind && s.name() == name);
        let has = |kind: &str| before.iter().any(|s| s.kind() == kind);
        match stage {
            Stage::Sample(s) => found.require(
                s.samples_per_prompt >= 1,
                &format!("{key}.samples_per_prompt"),
                "0 answers",
                "write at least 1",
            ),
            Stage::Label(s) => {
                found.require(
                    earlier("sample", &s.samples),
                    &format!("{key}.samples"),
                    format!("no earlier sample stage is named {:?}", s.samples),
                    "name one that stands before this stage",
                );
                found.require(
                    s.min_gap > 0.0 && (0.0..1.0).contains(&s.heldout_share),
                    &format!("{key}.min_gap"),
                    format!("min_gap {} and heldout_share {}", s.min_gap, s.heldout_share),
                    "write min_gap > 0 and heldout_share in [0, 1)",
                );
                found.require(
                    s.pairs_per_prompt >= 1,
                    &format!("{key}.pairs_per_prompt"),
                    "0 pairs",
                    "write at least 1",
                );
            }
            Stage::RewardModel(s) => {
                found.require(
                    earlier("label", &s.pairs),
                    &format!("{key}.pairs"),
                    format!("no earlier label stage is named {:?}", s.pairs),
                    "name one that stands before this stage",
                );
                found.require(
                    s.epochs >= 1 && s.pairs_per_step >= 1,
                    &format!("{key}.epochs"),
                    format!("{} epochs of {} pairs a step", s.epochs, s.pairs_per_step),
                    "write at least 1 for both",
                );
                let mlp = s.head.kind == crate::ScoreHeadKind::Mlp;
                found.require(
                    mlp != s.head.hidden_dims.is_empty(),
                    &format!("{key}.head.hidden_dims"),
                    format!("{:?} with kind {:?}", s.head.hidden_dims, s.head.kind.as_str()),
                    "give an mlp at least one width, a linear head none",
                );
                optimizer(&format!("{key}.optimizer"), &s.optimizer, found);
            }
            Stage::Grpo(_) => {
                found.require(!has("grpo"), key, "a second grpo stage", "keep one");
                for c in &self.reward.component {
                    if let Some(name) = c.model.as_deref().and_then(|m| m.strip_prefix("stage:")) {
                        found.require(
                            earlier("reward_model", name),
                            key,
                            format!("component {:?} needs stage {name:?} before it", c.name),
                            "move that stage up",
                        );
                    }
                }
            }
            Stage::Export(_) => {
                found.require(has("grpo"), key, "nothing was trained", "put it after grpo");
            }
            Stage::Evaluate(s) => {
                found.require(has("export"), key, "nothing was exported", "put it after export");
                self.check_measures(s, key, found);
            }
            Stage::Prepare(_) => {
                found.require(before.is_empty(), key, "prepare is not first", "move it to the top");
            }
        }
    }

    fn check_measures(&self, stage: &crate::EvaluateStage, key: &str, found: &mut Findings) {
        found.require(
            stage.samples_per_prompt >= 1 && !stage.measure.is_empty(),
            key,
            "no answers or no measure",
            "write samples_per_prompt >= 1 and at least one [[stage.measure]]",
        );
        let mut names = BTreeSet::new();
        for m in &stage.measure {
            let key = format!("{key}.measure {:?}", m.name);
            found.require(names.insert(&m.name), &key, "the name stands twice", "rename one");
            let kinds = usize::from(m.component.is_some())
                + usize::from(m.rule.is_some())
                + usize::from(m.reward);
            found.require(
                kinds == 1,
                &key,
                format!("{kinds} of component, rule, reward are given"),
                "give exactly one",
            );
            if let Some(component) = &m.component {
                found.require(
                    self.reward.component.iter().any(|c| c.name == *component),
                    &key,
                    format!("no component is named {component:?}"),
                    "name one of [[reward.component]]",
                );
            }
        }
    }
}

fn sampling(key: &str, s: &SamplingConfig, found: &mut Findings) {
    let params = plumb_domain::SamplingParams {
        max_new_tokens: s.max_new_tokens,
        temperature: s.temperature,
        top_p: s.top_p,
        top_k: s.top_k,
        stop: s.stop.clone(),
        ignore_eos: false,
    };
    if let Err(error) = params.validate() {
        found.require(false, &format!("{key}.{}", error.key), error.value, error.expected);
    }
}

fn optimizer(key: &str, o: &crate::OptimizerConfig, found: &mut Findings) {
    let beta = |b: f64| (0.0..1.0).contains(&b);
    let positive = |v: f64| v.is_finite() && v > 0.0;
    found.require(
        positive(o.learning_rate),
        &format!("{key}.learning_rate"),
        o.learning_rate.to_string(),
        "write a number > 0",
    );
    found.require(
        beta(o.betas[0]) && beta(o.betas[1]),
        &format!("{key}.betas"),
        format!("{:?}", o.betas),
        "write two numbers in [0, 1)",
    );
    found.require(
        positive(o.eps) && positive(o.max_grad_norm) && o.weight_decay >= 0.0,
        key,
        format!(
            "eps {}, max_grad_norm {}, weight_decay {}",
            o.eps, o.max_grad_norm, o.weight_decay
        ),
        "write eps > 0, max_grad_norm > 0, weight_decay >= 0",
    );
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) const MINIMAL: &str = r#"
name = "minimal"
seed = 1
[model]
path = "model"
dtype = "fp32"
[data]
train = "train.jsonl"
heldout = "heldout.jsonl"
[sampling]
max_new_tokens = 16
[algorithm]
advantage = "group_norm"
steps = 2
prompts_per_step = 2
samples_per_prompt = 4
optimizer = { learning_rate = 1e-4 }
[algorithm.kl]
coef = 0.01
[[reward.component]]
name = "short"
kind = "rule"
rule = { rule = "length", min = 1, max = 9 }
[reward.mix.safety]
short = 1.0
[[stage]]
kind = "prepare"
name = "prepare"
[[stage]]
kind = "grpo"
name = "train"
"#;

    fn problems(set: &[&str]) -> String {
        let overrides: Vec<crate::Override> = set.iter().map(|s| s.parse().unwrap()).collect();
        match Recipe::from_toml(MINIMAL, Path::new("r.toml"), &overrides) {
            Ok(_) => String::new(),
            Err(error) => error.to_string(),
        }
    }

    #[test]
    fn the_minimal_recipe_stands() {
        assert_eq!(problems(&[]), "");
    }

    #[test]
    fn a_contradiction_names_the_values_and_the_fix() {
        assert_eq!(
            problems(&["algorithm.samples_per_prompt=1"]),
            "recipe r.toml contradicts itself:\n  algorithm.samples_per_prompt: a group of 1 has \
             nothing to compare with; write at least 2"
        );
    }

    #[test]
    fn every_contradiction_is_found_by_its_key() {
        for (set, key) in [
            ("algorithm.mini_batches=9", "algorithm.mini_batches"),
            ("algorithm.normalise_by_std=false", "algorithm.normalise_by_std"),
            ("algorithm.gamma=0.9", "algorithm.gamma"),
            ("algorithm.loss.dual_clip=0.5", "algorithm.loss.dual_clip"),
            ("algorithm.loss.norm_tokens=5.0", "algorithm.loss.norm_tokens"),
            ("algorithm.loss.aggregation=mean", "algorithm.loss.aggregation"),
            ("algorithm.optimizer.betas=[1.0, 0.9]", "algorithm.optimizer.betas"),
            ("sampling.temperature=0.0", "sampling.temperature"),
            ("sampling.top_p=0.0", "sampling.top_p"),
            ("rollout.max_prompt_tokens=4096", "engine.micro_batch_tokens"),
            ("groups.policy.world_size=0", "groups.policy.world_size"),
            ("reward.mix.safety.shrt=1.0", "reward.mix.safety.shrt"),
            ("reward.component.0.model=m", "reward.component[0]"),
            ("stage.0.name=train", "stage[1].name"),
            ("timeouts.phase_secs=0.0", "timeouts.phase_secs"),
            ("data.label_weights.safety=-1.0", "data.label_weights.safety"),
        ] {
            let found = problems(&[set]);
            assert!(found.contains(&format!("  {key}: ")), "{set}: {found}");
        }
    }

    #[test]
    fn current_log_probs_need_a_single_optimiser_step() {
        let found = problems(&["algorithm.old_logps=current", "algorithm.mini_batches=2"]);
        assert!(found.contains("algorithm.old_logps"), "{found}");
    }
}
