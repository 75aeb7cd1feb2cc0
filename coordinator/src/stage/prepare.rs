//! `prepare`: finds out what is missing before anything costs time.

use std::collections::BTreeSet;

use plumb_config::{PrepareStage, Recipe, Stage};
use plumb_domain::Prompt;

use super::label::parse_rule;
use super::model_source::check;
use super::rows::{check_training_stages, prompts, reported};
use super::{Figures, Outputs, StageContext};
use crate::fleet::critic::critics_of;
use crate::job::error::JobError;

pub(super) async fn run(
    stage: &PrepareStage,
    context: &StageContext,
    outputs: &mut Outputs,
) -> Result<Figures, JobError> {
    let free = context.folder.free_bytes()?;
    let needed = stage.free_disk_mib << 20;
    if free < needed {
        return Err(JobError::Input {
            what: format!("run folder {}", context.folder.root().display()),
            problem: format!("{} MiB are free, {} are needed", free >> 20, stage.free_disk_mib),
            fix: "free some space, or name a folder elsewhere with --run-dir".to_owned(),
        });
    }
    let count = |prompts: &[Prompt]| prompts.len() as f64;
    Ok([
        ("train_prompts".to_owned(), count(&outputs.train)),
        ("heldout_prompts".to_owned(), count(&outputs.heldout)),
        ("skipped_rows".to_owned(), outputs.skipped_rows as f64),
        ("free_disk_mib".to_owned(), (free >> 20) as f64),
    ]
    .into())
}

/// Reads and checks all that a recipe names; every job does this, with or without the stage.
///
/// # Errors
/// The recipe key, what is wrong with what it names, and what would be right.
pub async fn inputs(context: &StageContext) -> Result<Outputs, JobError> {
    let recipe = &context.recipe;
    let (mut train, mut heldout, mut skipped_rows) = (Vec::new(), Vec::new(), 0);
    if recipe.generates() {
        for (key, sources, rows) in [
            ("data.train", &recipe.data.train, &mut train),
            ("data.heldout", &recipe.data.heldout, &mut heldout),
        ] {
            let read = prompts(context, key, sources)?;
            skipped_rows += reported(context, key, &read);
            *rows = read.rows;
        }
    }
    skipped_rows += check_training_stages(context)?;
    check_rules(recipe)?;
    check_labels(recipe, &train, &heldout)?;
    let model = check(context, "model.path", &recipe.model.path).await?;
    for component in &recipe.reward.component {
        if let Some(name) = component.model.as_deref().filter(|m| !m.starts_with("stage:")) {
            check(context, &format!("reward.component {:?} model", component.name), name).await?;
        }
    }
    for (role, critic) in critics_of(&recipe.algorithm) {
        if let Some(name) = critic.model.as_deref().filter(|m| !m.starts_with("stage:")) {
            check(context, &format!("algorithm.{role}.model"), name).await?;
        }
    }
    Ok(Outputs { model, train, heldout, skipped_rows, ..Outputs::default() })
}

/// Every rule of the recipe parses.
fn check_rules(recipe: &Recipe) -> Result<(), JobError> {
    let mut rules = Vec::new();
    for c in &recipe.reward.component {
        rules.extend(c.rule.as_ref().map(|rule| (format!("reward.component {:?}", c.name), rule)));
    }
    for stage in &recipe.stage {
        match stage {
            Stage::Label(s) => rules.push((format!("stage {:?}", s.name), &s.rule)),
            Stage::Evaluate(s) => {
                for m in &s.measure {
                    rules.extend(m.rule.as_ref().map(|r| (format!("measure {:?}", m.name), r)));
                }
            }
            _ => {}
        }
    }
    for (what, rule) in rules {
        parse_rule(rule).map_err(|problem| JobError::Input {
            what: format!("rule of {what}"),
            problem,
            fix: "see docs/rules.md for rules and their parameters".to_owned(),
        })?;
    }
    Ok(())
}

/// Every label of the data has a mix, and every label of the recipe has prompts.
fn check_labels(recipe: &Recipe, train: &[Prompt], heldout: &[Prompt]) -> Result<(), JobError> {
    let labels = |prompts: &[Prompt]| -> BTreeSet<String> {
        prompts.iter().map(|p| p.label.to_string()).collect()
    };
    let (train, heldout) = (labels(train), labels(heldout));
    let wrong = |what: String, problem: String, fix: &str| {
        Err(JobError::Input { what, problem, fix: fix.to_owned() })
    };
    for label in train.union(&heldout).filter(|_| recipe.rewards()) {
        if !recipe.reward.mix.contains_key(label) {
            return wrong(
                format!("label {label:?} of the prompts"),
                "no reward mix is for it".to_owned(),
                &format!("add [reward.mix.{label}]"),
            );
        }
    }
    if let Some(label) = recipe.data.label_weights.keys().find(|l| !train.contains(*l)) {
        return wrong(
            format!("data.label_weights.{label}"),
            "no training prompt has that label".to_owned(),
            "correct the label",
        );
    }
    for stage in &recipe.stage {
        let (name, wanted, there): (&str, Vec<&String>, _) = match stage {
            Stage::Sample(s) => (&s.name, s.labels.iter().collect(), &train),
            Stage::Evaluate(s) => {
                (&s.name, s.measure.iter().filter_map(|m| m.label.as_ref()).collect(), &heldout)
            }
            _ => continue,
        };
        if let Some(label) = wanted.into_iter().find(|l| !there.contains(*l)) {
            return wrong(
                format!("stage {name:?}"),
                format!("no prompt has the label {label:?}"),
                "correct the label",
            );
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use plumb_domain::{ChatMessage, Label, PromptId};

    fn recipe(set: &[&str]) -> Recipe {
        let set: Vec<plumb_config::Override> = set.iter().map(|s| s.parse().unwrap()).collect();
        let text = include_str!("testdata/recipe.toml");
        Recipe::from_toml(text, std::path::Path::new("r.toml"), &set).unwrap()
    }

    fn prompt(label: &str) -> Prompt {
        Prompt {
            id: PromptId::new("p").unwrap(),
            label: Label::new(label).unwrap(),
            messages: vec![ChatMessage { role: "user".into(), content: "?".into() }],
            reference: None,
        }
    }

    #[test]
    fn a_label_without_a_mix_is_named() {
        let error =
            check_labels(&recipe(&[]), &[prompt("safety")], &[prompt("poetry")]).unwrap_err();
        let text = error.to_string();
        assert!(text.contains("poetry") && text.contains("[reward.mix.poetry]"), "{text}");
    }

    #[test]
    fn a_weight_for_a_label_without_prompts_is_named() {
        let recipe = recipe(&["data.label_weights.general=1.0"]);
        let error = check_labels(&recipe, &[prompt("safety")], &[]).unwrap_err().to_string();
        assert!(error.contains("data.label_weights.general"), "{error}");
    }

    #[test]
    fn a_rule_that_does_not_parse_is_named_with_its_place() {
        let recipe = recipe(&["reward.component.0.rule={ rule = \"lenght\" }"]);
        let error = check_rules(&recipe).unwrap_err().to_string();
        assert!(error.contains("rule of reward.component \"safe\""), "{error}");
    }
}
