//! Contradictions in critics, their advantages, a constraint and the PTX loss.

use super::Findings;
use super::optimizer::optimizer;
use crate::Recipe;
use crate::schema::{Advantage, AlgorithmConfig, CriticConfig, GaeConfig, LagrangeConfig, Stage};

impl Recipe {
    pub(super) fn check_critics(&self, found: &mut Findings) {
        let a = &self.algorithm;
        self.check_kind(found);
        check_gae(a, found);
        if let Some(critic) = &a.critic {
            self.check_critic("algorithm.critic", critic, found);
            found.require(
                critic.warmup_steps < a.steps.max(1),
                "algorithm.critic.warmup_steps",
                format!("{} of {} steps, so the policy never learns", critic.warmup_steps, a.steps),
                "write less than algorithm.steps",
            );
        }
        if let Some(critic) = &a.cost_critic {
            self.check_critic("algorithm.cost_critic", critic, found);
            found.require(
                critic.warmup_steps == 0,
                "algorithm.cost_critic.warmup_steps",
                critic.warmup_steps.to_string(),
                "write it in [algorithm.critic]; it holds for both",
            );
        }
        found.require(
            a.cost_critic.is_none() || a.lagrange.is_some(),
            "algorithm.cost_critic",
            "there is no cost: [algorithm.lagrange] is missing",
            "name the cost in [algorithm.lagrange], or remove the cost critic",
        );
        if let Some(lagrange) = &a.lagrange {
            self.check_lagrange(lagrange, found);
        }
        if let Some(ptx) = &a.ptx {
            found.require(
                ptx.coef.is_finite() && ptx.coef > 0.0 && ptx.dialogues_per_step >= 1,
                "algorithm.ptx",
                format!("coef {}, {} dialogues a step", ptx.coef, ptx.dialogues_per_step),
                "write coef > 0 and dialogues_per_step >= 1, or remove the table",
            );
        }
        let idle = [
            ("groups.critic", a.critic.is_some(), &self.groups.critic),
            ("groups.cost_critic", a.lagrange.is_some(), &self.groups.cost_critic),
        ];
        for (key, used, group) in idle {
            found.require(
                used || *group == Default::default(),
                key,
                "no such critic is trained",
                "remove it, or add the critic",
            );
        }
    }

    /// The kind of the stage and the tables of the algorithm say the same.
    fn check_kind(&self, found: &mut Findings) {
        let a = &self.algorithm;
        let gae = a.advantage == Advantage::Gae;
        for (index, stage) in self.stage.iter().enumerate() {
            let (holds, problem, fix) = match stage {
                Stage::Grpo(_) => (
                    !gae && a.lagrange.is_none() && a.ptx.is_none(),
                    "a grpo stage has no critic, constraint or PTX loss",
                    "write kind = \"ppo\" or \"ppo_lag\", or take another advantage than \"gae\" \
                     and remove [algorithm.lagrange] and [algorithm.ptx]",
                ),
                Stage::Ppo(_) => (
                    gae && a.lagrange.is_none(),
                    "a ppo stage has advantage \"gae\" and no constraint",
                    "write algorithm.advantage = \"gae\", and kind = \"ppo_lag\" with a constraint",
                ),
                Stage::PpoLag(_) => (
                    gae && a.lagrange.is_some(),
                    "a ppo_lag stage has advantage \"gae\" and a constraint",
                    "write algorithm.advantage = \"gae\" and an [algorithm.lagrange] table that \
                     names the cost",
                ),
                _ => continue,
            };
            found.require(holds, &format!("stage[{index}].kind"), problem, fix);
        }
    }

    fn check_critic(&self, key: &str, critic: &CriticConfig, found: &mut Findings) {
        found.require(
            critic.value_clip.is_finite() && critic.value_clip >= 0.0,
            &format!("{key}.value_clip"),
            critic.value_clip.to_string(),
            "write 0 (off) or more",
        );
        let modes = ["token-mean", "seq-mean-token-sum", "seq-mean-token-mean"];
        found.require(
            modes.contains(&critic.aggregation.as_str()),
            &format!("{key}.aggregation"),
            format!("{:?}", critic.aggregation),
            "write token-mean, seq-mean-token-sum or seq-mean-token-mean",
        );
        let a = &self.algorithm;
        let samples = u64::from(a.prompts_per_step) * u64::from(a.samples_per_prompt);
        let mini_batches = critic.mini_batches.unwrap_or(1);
        found.require(
            (1..=samples.max(1)).contains(&u64::from(mini_batches)),
            &format!("{key}.mini_batches"),
            format!("{mini_batches} mini-batches out of {samples} samples"),
            "write 1 to prompts_per_step x samples_per_prompt",
        );
        let epochs = critic.epochs.unwrap_or(1);
        found.require(epochs >= 1, &format!("{key}.epochs"), "0 passes", "write at least 1");
        if let Some(name) = critic.model.as_deref().and_then(|m| m.strip_prefix("stage:")) {
            let stages = self.stage.iter().take_while(|stage| !stage.reinforces());
            let trains = |s: &Stage| {
                matches!(s, Stage::RewardModel(_) | Stage::CostModel(_)) && s.name() == name
            };
            found.require(
                stages.into_iter().any(trains),
                &format!("{key}.model"),
                format!("no earlier reward_model or cost_model stage is named {name:?}"),
                "add one, or name a folder",
            );
        }
        optimizer(&format!("{key}.optimizer"), &critic.optimizer, found);
        found.require(
            critic.optimizer.ema.is_none(),
            &format!("{key}.optimizer.ema"),
            "nothing reads a critic's moving average",
            "remove it",
        );
    }

    fn check_lagrange(&self, l: &LagrangeConfig, found: &mut Findings) {
        let key = |name: &str| format!("algorithm.lagrange.{name}");
        found.require(
            self.reward.component.iter().any(|c| c.name == l.cost),
            &key("cost"),
            format!("no component is named {:?}", l.cost),
            "name one of [[reward.component]]",
        );
        let counted = |mix: &std::collections::BTreeMap<String, f64>| {
            mix.get(&l.cost).is_some_and(|weight| *weight != 0.0)
        };
        found.require(
            !self.reward.mix.values().any(counted),
            &key("cost"),
            format!("{:?} has a weight in a mix too, so the cost would count twice", l.cost),
            "leave it out of [reward.mix]",
        );
        let numbers = [l.threshold, l.learning_rate];
        found.require(
            numbers.iter().all(|number| number.is_finite()) && l.learning_rate >= 0.0,
            &key("learning_rate"),
            format!("learning_rate {} and threshold {}", l.learning_rate, l.threshold),
            "write learning_rate >= 0 and a finite threshold",
        );
        found.require(
            l.initial.is_finite() && l.initial > 0.0,
            &key("initial"),
            l.initial.to_string(),
            "write a number > 0: a multiplier of 0 never moves",
        );
        found.require(
            l.max.is_none_or(|max| max >= l.initial),
            &key("max"),
            format!("{} is below initial = {}", l.max.unwrap_or_default(), l.initial),
            "raise it, or lower initial",
        );
        found.require(l.window >= 1, &key("window"), "0 answers", "write at least 1");
    }
}

fn check_gae(a: &AlgorithmConfig, found: &mut Findings) {
    let (gae, name) = (a.advantage == Advantage::Gae, a.advantage.as_str());
    found.require(
        !gae || a.critic.is_some(),
        "algorithm.advantage",
        "\"gae\" without a critic to tell values",
        "write an [algorithm.critic] table, or take another advantage",
    );
    found.require(
        gae || (a.critic.is_none() && a.gae == GaeConfig::default()),
        "algorithm.critic",
        format!("advantage = {name:?} asks no critic"),
        "write advantage = \"gae\", or remove [algorithm.critic] and [algorithm.gae]",
    );
    let GaeConfig { lambda, reward_clip, .. } = a.gae;
    found.require(
        (0.0..=1.0).contains(&lambda),
        "algorithm.gae.lambda",
        lambda.to_string(),
        "write a number in [0, 1]",
    );
    found.require(
        reward_clip.is_finite() && reward_clip >= 0.0,
        "algorithm.gae.reward_clip",
        reward_clip.to_string(),
        "write 0 (off) or more",
    );
    let kl = &a.kl;
    if let Some(target) = kl.target {
        found.require(
            gae && kl.coef > 0.0 && target > 0.0 && target.is_finite(),
            "algorithm.kl.target",
            format!("{target} with coef = {} and advantage = {name:?}", kl.coef),
            "write a target > 0 beside coef > 0 and advantage = \"gae\", or leave it out",
        );
    }
    found.require(
        kl.horizon.is_finite() && kl.horizon > 0.0,
        "algorithm.kl.horizon",
        kl.horizon.to_string(),
        "write a number of samples > 0",
    );
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::validate::tests::MINIMAL;

    const PPO_LAG: &str = r#"
[[reward.component]]
name = "harm"
kind = "rule"
rule = { rule = "length", min = 1, max = 9 }
[algorithm.critic]
optimizer = { learning_rate = 1e-4 }
[algorithm.cost_critic]
optimizer = { learning_rate = 1e-4 }
[algorithm.lagrange]
cost = "harm"
[algorithm.ptx]
train = "d.jsonl"
coef = 16.0
dialogues_per_step = 4
"#;

    fn problems(set: &[&str]) -> String {
        // The first table after the algorithm's own keys must not take them.
        let text = MINIMAL.replace("kind = \"grpo\"", "kind = \"ppo_lag\"") + PPO_LAG;
        let all = ["algorithm.advantage=gae"].into_iter().chain(set.iter().copied());
        let set: Vec<crate::Override> = all.map(|s| s.parse().unwrap()).collect();
        match Recipe::from_toml(&text, Path::new("r.toml"), &set) {
            Ok(_) => String::new(),
            Err(error) => error.to_string(),
        }
    }

    #[test]
    fn a_constrained_recipe_stands_and_reads_back_the_same() {
        assert_eq!(problems(&["algorithm.kl.target=0.1", "algorithm.gamma=0.9"]), "");
        let text = MINIMAL.replace("kind = \"grpo\"", "kind = \"ppo_lag\"") + PPO_LAG;
        let gae: crate::Override = "algorithm.advantage=gae".parse().unwrap();
        let recipe = Recipe::from_toml(&text, Path::new("r.toml"), &[gae]).unwrap();
        let again = Recipe::from_toml(&recipe.to_toml().unwrap(), Path::new("r.toml"), &[]);
        assert_eq!(again.unwrap(), recipe);
    }

    #[test]
    fn every_contradiction_is_found_by_its_key() {
        for (set, key) in [
            ("algorithm.advantage=grpo", "algorithm.critic"),
            ("algorithm.advantage=grpo", "stage[1].kind"),
            ("stage.1.kind=ppo", "stage[1].kind"),
            ("stage.1.kind=grpo", "stage[1].kind"),
            ("algorithm.lagrange.cost=safety", "algorithm.lagrange.cost"),
            ("reward.mix.safety.harm=0.5", "algorithm.lagrange.cost"),
            ("algorithm.lagrange.initial=0.0", "algorithm.lagrange.initial"),
            ("algorithm.lagrange.max=0.5", "algorithm.lagrange.max"),
            ("algorithm.lagrange.window=0", "algorithm.lagrange.window"),
            ("algorithm.lagrange.learning_rate=-1.0", "algorithm.lagrange.learning_rate"),
            ("algorithm.critic.model=stage:none", "algorithm.critic.model"),
            ("algorithm.critic.value_clip=-1.0", "algorithm.critic.value_clip"),
            ("algorithm.critic.aggregation=mean", "algorithm.critic.aggregation"),
            ("algorithm.critic.mini_batches=9", "algorithm.critic.mini_batches"),
            ("algorithm.critic.epochs=0", "algorithm.critic.epochs"),
            ("algorithm.critic.warmup_steps=2", "algorithm.critic.warmup_steps"),
            ("algorithm.cost_critic.warmup_steps=1", "algorithm.cost_critic.warmup_steps"),
            ("algorithm.critic.optimizer.ema={ decay = 0.9 }", "algorithm.critic.optimizer.ema"),
            ("algorithm.gae.lambda=1.5", "algorithm.gae.lambda"),
            ("algorithm.gae.reward_clip=-1.0", "algorithm.gae.reward_clip"),
            ("algorithm.kl.target=0.0", "algorithm.kl.target"),
            ("algorithm.ptx.coef=0.0", "algorithm.ptx"),
            ("groups.critic.world_size=0", "groups.critic.world_size"),
        ] {
            let found = problems(&[set]);
            assert!(found.contains(&format!("  {key}: ")), "{set}: {found}");
        }
    }

    #[test]
    fn critics_without_gae_and_gae_without_critics_are_refused() {
        let minimal = |set: &[&str]| {
            let set: Vec<crate::Override> = set.iter().map(|s| s.parse().unwrap()).collect();
            Recipe::from_toml(MINIMAL, Path::new("r.toml"), &set).unwrap_err().to_string()
        };
        let text = minimal(&["algorithm.advantage=gae"]);
        assert!(text.contains("\"gae\" without a critic"), "{text}");
        let text = minimal(&["groups.critic.world_size=2"]);
        assert!(text.contains("groups.critic: no such critic"), "{text}");
        let text = minimal(&["algorithm.cost_critic={ optimizer = { learning_rate = 1e-4 } }"]);
        assert!(text.contains("algorithm.cost_critic: there is no cost"), "{text}");
    }
}
