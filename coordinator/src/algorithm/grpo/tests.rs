use plumb_config::Override;
use plumb_domain::PolicyVersion;
use plumb_proto::object::ObjectRef;
use plumb_proto::rollout::SampleInfo;

use super::*;
use crate::ports::Generated;

const RECIPE: &str = include_str!("../../stage/testdata/recipe.toml");

fn recipe(set: &[&str]) -> Recipe {
    let set: Vec<Override> = set.iter().map(|s| s.parse().unwrap()).collect();
    Recipe::from_toml(RECIPE, std::path::Path::new("recipe.toml"), &set).unwrap()
}

/// Groups of samples `p0/0`, `p0/1`, ... with one score each; `None` is a failed component.
fn batch(labels: &[&str], scores: &[&[Option<f64>]]) -> (Generation, Vec<SampleScores>) {
    let mut all = Vec::new();
    let mut groups = Vec::new();
    for (p, (label, group)) in labels.iter().zip(scores).enumerate() {
        let mut samples = Vec::new();
        for (i, score) in group.iter().enumerate() {
            let id = format!("p{p}/{i}");
            samples.push(SampleInfo { sample_id: id.clone(), ..Default::default() });
            let score = score.ok_or_else(|| "timeout".to_owned());
            let scores = ["style", "safe"].map(|c| (c.to_owned(), score.clone())).into();
            all.push(SampleScores { sample_id: id, scores });
        }
        groups.push(Generated {
            prompt_id: format!("p{p}"),
            label: (*label).to_owned(),
            owner: "rollout-0".into(),
            owner_epoch: plumb_domain::Epoch(0),
            object: ObjectRef::default(),
            samples,
        });
    }
    (Generation { groups, policy_version: PolicyVersion(0) }, all)
}

#[test]
fn a_group_by_hand() {
    // Scores 1, 3 on label safety: mix safe 1.0 + style 0.5 -> rewards 1.5, 4.5; mean 3,
    // unbiased std sqrt(4.5); advantages -+ 1.5 / 2.1213.
    let (generation, scores) = batch(&["safety"], &[&[Some(1.0), Some(3.0)]]);
    let plan = Grpo::new(&recipe(&[])).plan(StepId(0), &generation, &scores).unwrap();
    let expected = 1.5 / 4.5_f64.sqrt();
    assert!((plan.advantages[1].advantage - expected).abs() < 1e-6);
    assert!((plan.advantages[0].advantage + expected).abs() < 1e-6);
    assert_eq!(plan.metrics["reward/mean"], 3.0);
    assert_eq!(plan.metrics["reward/safety/mean"], 3.0);
    assert_eq!(plan.metrics["reward/safe"], 2.0);
    assert_eq!(plan.rewards["p0/1"], 4.5);
}

#[test]
fn a_failed_reward_is_never_a_zero() {
    let (generation, scores) = batch(&["safety"], &[&[Some(1.0), None, Some(3.0)]]);
    let plan = Grpo::new(&recipe(&[])).plan(StepId(0), &generation, &scores).unwrap();
    let failed = plan.advantages.iter().find(|a| a.sample_id == "p0/1").unwrap();
    assert!(!failed.keep);
    assert_eq!(plan.metrics["reward/mean"], 3.0, "the failed sample takes no part in the mean");
    assert!((plan.metrics["reward/failed"] - 1.0 / 3.0).abs() < 1e-12);
}

#[test]
fn a_sample_left_alone_has_nothing_to_compare_with() {
    let (generation, scores) =
        batch(&["safety", "safety"], &[&[Some(1.0), None], &[Some(0.0), Some(1.0)]]);
    let plan = Grpo::new(&recipe(&[])).plan(StepId(0), &generation, &scores).unwrap();
    let kept: Vec<&str> =
        plan.advantages.iter().filter(|a| a.keep).map(|a| a.sample_id.as_str()).collect();
    assert_eq!(kept, ["p1/0", "p1/1"]);
}

#[test]
fn a_batch_without_any_reward_is_an_error_with_its_cause() {
    let (generation, scores) = batch(&["safety"], &[&[None, None]]);
    let error = Grpo::new(&recipe(&[])).plan(StepId(3), &generation, &scores).unwrap_err();
    let text = error.to_string();
    assert!(text.contains("step 3") && text.contains("timeout"), "{text}");
}

#[test]
fn a_label_without_a_mix_is_an_error_that_names_it() {
    let (generation, scores) = batch(&["poetry"], &[&[Some(1.0), Some(2.0)]]);
    let error = Grpo::new(&recipe(&[])).plan(StepId(0), &generation, &scores).unwrap_err();
    assert!(error.to_string().contains("poetry"), "{error}");
}

#[test]
fn equal_groups_are_left_out_where_wanted_but_never_all_of_them() {
    let recipe = recipe(&["algorithm.skip_equal_groups=true"]);
    let scores: [&[Option<f64>]; 2] = [&[Some(1.0), Some(1.0)], &[Some(0.0), Some(1.0)]];
    let (generation, all) = batch(&["safety", "general"], &scores);
    let plan = Grpo::new(&recipe).plan(StepId(0), &generation, &all).unwrap();
    assert_eq!(
        plan.advantages.iter().map(|a| a.keep).collect::<Vec<_>>(),
        [false, false, true, true]
    );
    assert_eq!(plan.metrics["reward/equal_groups"], 0.5);
    let (generation, all) = batch(&["safety"], &scores[..1]);
    let plan = Grpo::new(&recipe).plan(StepId(0), &generation, &all).unwrap();
    assert!(plan.advantages.iter().all(|a| a.keep && a.advantage == 0.0));
}

#[test]
fn the_leash_stands_in_the_loss_or_in_the_reward() {
    let grpo = Grpo::new(&recipe(&[]));
    assert_eq!((grpo.loss().kl_coef, grpo.token_advantage().kl_in_reward_coef), (0.05, 0.0));
    let grpo = Grpo::new(&recipe(&["algorithm.kl.place=reward"]));
    assert_eq!((grpo.loss().kl_coef, grpo.token_advantage().kl_in_reward_coef), (0.0, 0.05));
}
