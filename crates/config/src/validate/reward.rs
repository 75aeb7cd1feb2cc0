//! Contradictions in components and mixes.

use std::collections::BTreeSet;

use super::Findings;
use crate::Recipe;
use crate::schema::{ComponentKind, Stage};

impl Recipe {
    pub(super) fn check_reward(&self, found: &mut Findings) {
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
                let trains = |s: &Stage| {
                    matches!(s, Stage::RewardModel(_) | Stage::CostModel(_)) && s.name() == stage
                };
                found.require(
                    self.stage.iter().any(trains),
                    &format!("{key}.model"),
                    format!("no reward_model or cost_model stage is named {stage:?}"),
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
            let cost = self.algorithm.lagrange.as_ref().is_some_and(|l| l.cost == *name);
            found.require(
                mixed || measured || cost,
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
}
