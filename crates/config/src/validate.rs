//! Values that contradict one another.

mod advantage;
mod algorithm;
mod critic;
mod data;
mod lora;
mod loss;
mod offload;
mod optimizer;
mod reward;
mod stages;
mod training;

use std::path::Path;

use crate::schema::GroupConfig;
use crate::{ConfigError, Contradiction, Recipe};

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
        self.check_sections(&mut found);
        self.check_offload(&mut found);
        if self.generates() {
            self.check_data(&mut found);
            self.check_sampling(&mut found);
        }
        if self.reinforces() {
            self.check_algorithm(&mut found);
            self.check_advantage(&mut found);
            self.check_critics(&mut found);
        }
        if self.rewards() {
            self.check_reward(&mut found);
        }
        self.check_stages(&mut found);
        found.0
    }

    /// Tables that no stage would read.
    fn check_sections(&self, found: &mut Findings) {
        let generates = self.generates();
        let given = !(self.data.train.is_empty() && self.data.heldout.is_empty());
        found.require(
            !generates || !(self.data.train.is_empty() || self.data.heldout.is_empty()),
            "data",
            "train or heldout is missing, and a stage answers prompts",
            "give both files of prompts",
        );
        let idle = [
            ("data", given || !self.data.label_weights.is_empty(), generates, "generates"),
            ("sampling", self.sampling != Default::default(), generates, "generates"),
            (
                "algorithm",
                self.algorithm != Default::default(),
                self.reinforces(),
                "is grpo, ppo or ppo_lag",
            ),
            (
                "reward",
                self.reward != Default::default(),
                self.rewards(),
                "is grpo, ppo, ppo_lag or evaluate",
            ),
        ];
        for (key, given, used, what) in idle {
            found.require(
                used || !given,
                key,
                format!("no stage {what}, so nothing reads it"),
                "remove it, or add the stage",
            );
        }
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
        let groups: [(&str, &GroupConfig); 7] = [
            ("policy", &g.policy),
            ("critic", &g.critic),
            ("cost_critic", &g.cost_critic),
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
            "a lost rank needs a commit to go back to",
        );
        found.require(
            self.checkpoint.keep_best.is_some() == self.checkpoint.best.is_some(),
            "checkpoint.keep_best",
            "keep_best and best are given together",
            "write for example keep_best = \"heldout_loss\" and best = \"lowest\"",
        );
    }
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
             nothing to compare with for advantage = \"group_norm\"; write at least 2, or take \
             reinforce, reinforce_plus_plus, cpgd or gae"
        );
    }

    #[test]
    fn every_contradiction_is_found_by_its_key() {
        for (set, key) in [
            ("algorithm.mini_batches=9", "algorithm.mini_batches"),
            ("algorithm.normalise_by_std=false", "algorithm.normalise_by_std"),
            ("algorithm.advantage_epsilon=1e-6", "algorithm.advantage_epsilon"),
            ("algorithm.gpg_norm=2.0", "algorithm.gpg_norm"),
            ("algorithm.cpgd_weight=centre", "algorithm.cpgd_weight"),
            ("algorithm.samples_per_prompt=0", "algorithm.samples_per_prompt"),
            ("algorithm.gamma=0.9", "algorithm.gamma"),
            ("algorithm.loss.dual_clip=0.5", "algorithm.loss.dual_clip"),
            ("algorithm.loss.clip_low=-0.1", "algorithm.loss.clip_low"),
            ("algorithm.loss.tau_pos=2.0", "algorithm.loss.tau_pos"),
            ("algorithm.loss.importance.kind=icepop", "algorithm.loss.importance.kind"),
            ("algorithm.loss.importance.cap=2.0", "algorithm.loss.importance.kind"),
            ("algorithm.loss.norm_tokens=5.0", "algorithm.loss.norm_tokens"),
            ("algorithm.loss.aggregation=mean", "algorithm.loss.aggregation"),
            ("algorithm.optimizer.betas=[1.0, 0.9]", "algorithm.optimizer.betas"),
            ("sampling.temperature=0.0", "sampling.temperature"),
            ("sampling.top_p=0.0", "sampling.top_p"),
            ("sampling.min_p=1.5", "sampling.min_p"),
            ("sampling.min_new_tokens=100000", "sampling.min_new_tokens"),
            ("rollout.prefill_tokens=0", "rollout.prefill_tokens"),
            ("rollout.max_prompt_tokens=4096", "engine.micro_batch_tokens"),
            ("groups.policy.world_size=0", "groups.policy.world_size"),
            (
                "algorithm.lora={ rank = 4, alpha = 8.0 }\u{0}groups.reference.world_size=2",
                "groups.reference",
            ),
            ("reward.mix.safety.shrt=1.0", "reward.mix.safety.shrt"),
            ("reward.component.0.model=m", "reward.component[0]"),
            ("stage.0.name=train", "stage[1].name"),
            ("timeouts.phase_secs=0.0", "timeouts.phase_secs"),
            ("checkpoint.keep=0", "checkpoint"),
            ("checkpoint.keep_best=heldout_loss", "checkpoint.keep_best"),
            ("checkpoint.best=lowest", "checkpoint.keep_best"),
            ("data.label_weights.safety=-1.0", "data.label_weights.safety"),
            ("data.train=[]", "data.train"),
            ("data.heldout=\"\"", "data.heldout"),
            ("engine.offload.parameters=true", "engine.offload.parameters"),
            ("engine.offload.optimizer=true", "engine.offload"),
            ("data.train=[\"a.jsonl\", \"a.jsonl\"]", "data.train"),
            ("data.dataset_labels.alpaca=general", "data.dataset_labels.alpaca"),
        ] {
            let found = problems(&set.split('\u{0}').collect::<Vec<_>>());
            assert!(found.contains(&format!("  {key}: ")), "{set}: {found}");
        }
    }

    #[test]
    fn every_loss_stands_with_its_own_keys_only() {
        let choice = |kind: &str| format!("algorithm.loss.kind={kind}");
        for (kind, more) in [
            ("ppo_clip", "algorithm.loss.dual_clip=3.0"),
            ("gspo", "algorithm.loss.clip_low=0.0003"),
            ("cispo", "algorithm.loss.clip_low=1.0"),
            ("sapo", "algorithm.loss.tau_neg=2.0"),
            ("geo_mean", "algorithm.loss.clip_high=0.4"),
            ("gpg", "algorithm.loss.aggregation=token-mean"),
            ("cpg", "algorithm.loss.entropy_coef=0.01"),
        ] {
            assert_eq!(problems(&[&choice(kind), more]), "", "{kind}");
        }
        for (kind, more, key) in [
            ("gspo", "algorithm.loss.dual_clip=3.0", "algorithm.loss.dual_clip"),
            ("sapo", "algorithm.loss.clip_low=0.1", "algorithm.loss.clip_low"),
            ("gpg", "algorithm.loss.clip_high=0.3", "algorithm.loss.clip_low"),
            ("cpg", "algorithm.loss.clip_high=0.3", "algorithm.loss.clip_low"),
            ("geo_mean", "algorithm.loss.aggregation=token-mean", "algorithm.loss.aggregation"),
        ] {
            let found = problems(&[&choice(kind), more]);
            assert!(found.contains(&format!("  {key}: ")), "{kind}: {found}");
        }
        let corrected = ["algorithm.loss.importance.kind=truncated_token"];
        let cap = "algorithm.loss.importance.cap=2.0";
        let found = problems(&[corrected[0], cap]);
        assert!(found.contains("every weight is 1"), "{found}");
        assert_eq!(problems(&[corrected[0], cap, "algorithm.old_logps=recompute"]), "");
    }

    #[test]
    fn every_advantage_stands_with_its_own_keys_only() {
        for (name, more) in [
            ("group_norm", ""),
            ("grpo", "algorithm.advantage_epsilon=1e-5"),
            ("grpo", "algorithm.normalise_by_std=false"),
            ("grpo_passk", "algorithm.advantage_epsilon=0.0"),
            ("grpo_passk", "algorithm.normalise_by_std=false"),
            ("rloo", "algorithm.skip_equal_groups=true"),
            ("reinforce_baseline", ""),
            ("reinforce", "algorithm.samples_per_prompt=1"),
            ("reinforce_plus_plus", "algorithm.samples_per_prompt=1"),
            ("reinforce_plus_plus_baseline", ""),
            ("opo", "algorithm.skip_equal_groups=true"),
            ("gpg", "algorithm.gpg_norm=2.0"),
            ("cpgd", "algorithm.cpgd_weight=std"),
            ("gdpo", "algorithm.advantage_epsilon=1e-3"),
        ] {
            let choice = format!("algorithm.advantage={name}");
            let set = [choice.as_str(), more];
            let set = if more.is_empty() { &set[..1] } else { &set[..] };
            assert_eq!(problems(set), "", "{name} {more}");
        }
        for (set, key) in [
            (["grpo", "algorithm.advantage_epsilon=-1.0"], "advantage_epsilon"),
            (["reinforce", "algorithm.skip_equal_groups=true"], "skip_equal_groups"),
            (["gdpo", "algorithm.skip_equal_groups=true"], "skip_equal_groups"),
            (["opo", "algorithm.samples_per_prompt=1"], "samples_per_prompt"),
            (["gdpo", "algorithm.samples_per_prompt=1"], "samples_per_prompt"),
            (["reinforce_plus_plus", "algorithm.kl.place=reward"], "advantage"),
            (["reinforce_plus_plus_baseline", "algorithm.kl.place=reward"], "advantage"),
            (["gpg", "algorithm.gpg_norm=0.0"], "gpg_norm"),
            (["gpg", "algorithm.normalise_by_std=false"], "normalise_by_std"),
        ] {
            let choice = format!("algorithm.advantage={}", set[0]);
            let found = problems(&[&choice, set[1]]);
            assert!(found.contains(&format!("  algorithm.{key}: ")), "{set:?}: {found}");
        }
        for keys in
            [["grpo", "algorithm.normalise_by_std=false"], ["cpgd", "algorithm.cpgd_weight=centre"]]
        {
            let choice = format!("algorithm.advantage={}", keys[0]);
            let found = problems(&[&choice, keys[1], "algorithm.advantage_epsilon=1e-6"]);
            assert!(found.contains("  algorithm.advantage_epsilon: "), "{keys:?}: {found}");
        }
    }

    #[test]
    fn current_log_probs_need_a_single_optimiser_step() {
        let found = problems(&["algorithm.old_logps=current", "algorithm.mini_batches=2"]);
        assert!(found.contains("algorithm.old_logps"), "{found}");
    }
}
