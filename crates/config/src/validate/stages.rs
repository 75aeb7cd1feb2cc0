//! Contradictions between stages, and in each of them.

use std::collections::BTreeSet;

use super::Findings;
use crate::Recipe;
use crate::schema::Stage;

impl Recipe {
    pub(super) fn check_stages(&self, found: &mut Findings) {
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
            Stage::Sft(_) | Stage::RewardModel(_) | Stage::CostModel(_) | Stage::Dpo(_) => {
                self.check_training(stage, key, before, found);
            }
            Stage::Grpo(_) | Stage::Ppo(_) | Stage::PpoLag(_) => {
                let second = before.iter().any(|s| s.reinforces());
                found.require(!second, key, "a second stage that trains the policy", "keep one");
                for c in &self.reward.component {
                    if let Some(name) = c.model.as_deref().and_then(|m| m.strip_prefix("stage:")) {
                        found.require(
                            earlier("reward_model", name) || earlier("cost_model", name),
                            key,
                            format!("component {:?} needs stage {name:?} before it", c.name),
                            "move that stage up",
                        );
                    }
                }
            }
            Stage::Export(s) => {
                found.require(
                    !s.adapter || self.algorithm.lora.is_some(),
                    &format!("{key}.adapter"),
                    "the policy has no adapters",
                    "write an [algorithm.lora] table, or leave it out",
                );
                found.require(
                    !s.average || self.algorithm.optimizer.ema.is_some(),
                    &format!("{key}.average"),
                    "the policy has no moving average",
                    "write an [algorithm.optimizer.ema] table, or leave it out",
                );
                let trained = before.iter().any(|s| s.reinforces());
                found.require(trained, key, "nothing was trained", "put it after the training");
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
