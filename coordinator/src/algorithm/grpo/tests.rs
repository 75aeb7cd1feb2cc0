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
            let response_tokens = i as u32 + 1;
            samples.push(SampleInfo {
                sample_id: id.clone(),
                response_tokens,
                ..Default::default()
            });
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
    let plan = Grpo::new(&recipe(&[]))
        .plan(StepId(0), &generation, &scores, &ReferenceLogps::default())
        .unwrap();
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
    let plan = Grpo::new(&recipe(&[]))
        .plan(StepId(0), &generation, &scores, &ReferenceLogps::default())
        .unwrap();
    let failed = plan.advantages.iter().find(|a| a.sample_id == "p0/1").unwrap();
    assert!(!failed.keep);
    assert_eq!(plan.metrics["reward/mean"], 3.0, "the failed sample takes no part in the mean");
    assert!((plan.metrics["reward/failed"] - 1.0 / 3.0).abs() < 1e-12);
}

#[test]
fn a_sample_left_alone_has_nothing_to_compare_with() {
    let (generation, scores) =
        batch(&["safety", "safety"], &[&[Some(1.0), None], &[Some(0.0), Some(1.0)]]);
    let plan = Grpo::new(&recipe(&[]))
        .plan(StepId(0), &generation, &scores, &ReferenceLogps::default())
        .unwrap();
    let kept: Vec<&str> =
        plan.advantages.iter().filter(|a| a.keep).map(|a| a.sample_id.as_str()).collect();
    assert_eq!(kept, ["p1/0", "p1/1"]);
}

#[test]
fn a_batch_without_any_reward_is_an_error_with_its_cause() {
    let (generation, scores) = batch(&["safety"], &[&[None, None]]);
    let error = Grpo::new(&recipe(&[]))
        .plan(StepId(3), &generation, &scores, &ReferenceLogps::default())
        .unwrap_err();
    let text = error.to_string();
    assert!(text.contains("step 3") && text.contains("timeout"), "{text}");
}

#[test]
fn a_label_without_a_mix_is_an_error_that_names_it() {
    let (generation, scores) = batch(&["poetry"], &[&[Some(1.0), Some(2.0)]]);
    let error = Grpo::new(&recipe(&[]))
        .plan(StepId(0), &generation, &scores, &ReferenceLogps::default())
        .unwrap_err();
    assert!(error.to_string().contains("poetry"), "{error}");
}

#[test]
fn equal_groups_are_left_out_where_wanted_but_never_all_of_them() {
    let recipe = recipe(&["algorithm.skip_equal_groups=true"]);
    let scores: [&[Option<f64>]; 2] = [&[Some(1.0), Some(1.0)], &[Some(0.0), Some(1.0)]];
    let (generation, all) = batch(&["safety", "general"], &scores);
    let plan =
        Grpo::new(&recipe).plan(StepId(0), &generation, &all, &ReferenceLogps::default()).unwrap();
    assert_eq!(
        plan.advantages.iter().map(|a| a.keep).collect::<Vec<_>>(),
        [false, false, true, true]
    );
    assert_eq!(plan.metrics["reward/equal_groups"], 0.5);
    let (generation, all) = batch(&["safety"], &scores[..1]);
    let plan =
        Grpo::new(&recipe).plan(StepId(0), &generation, &all, &ReferenceLogps::default()).unwrap();
    assert!(plan.advantages.iter().all(|a| a.keep && a.advantage == 0.0));
}

#[test]
fn the_leash_stands_in_the_loss_or_in_the_reward() {
    let grpo = Grpo::new(&recipe(&[]));
    assert_eq!((grpo.loss().kl_coef, grpo.token_advantage().kl_in_reward_coef), (0.05, 0.0));
    let grpo = Grpo::new(&recipe(&["algorithm.kl.place=reward"]));
    assert_eq!((grpo.loss().kl_coef, grpo.token_advantage().kl_in_reward_coef), (0.0, 0.05));
}

#[test]
fn the_loss_travels_with_its_settings() {
    let loss = Grpo::new(&recipe(&[])).loss();
    assert_eq!((loss.kind.as_str(), loss.importance), ("ppo_clip", None));
    let loss = Grpo::new(&recipe(&[
        "algorithm.loss.kind=sapo",
        "algorithm.loss.tau_neg=2.0",
        "algorithm.old_logps=recompute",
        "algorithm.loss.importance.kind=icepop",
        "algorithm.loss.importance.low=0.5",
        "algorithm.loss.importance.high=5.0",
    ]))
    .loss();
    assert_eq!((loss.kind.as_str(), loss.tau_pos, loss.tau_neg), ("sapo", 1.0, 2.0));
    let importance = loss.importance.unwrap();
    assert_eq!((importance.kind.as_str(), importance.low, importance.high), ("icepop", 0.5, 5.0));
}

/// Advantages of two groups under a recipe's settings. Rewards are 1.5 times the scores on label
/// safety and the scores themselves on general; the answers of a group have 1, 2, 3 tokens.
fn advantages(set: &[&str], scores: &[&[f64]]) -> Vec<f64> {
    let scores: Vec<Vec<Option<f64>>> =
        scores.iter().map(|group| group.iter().map(|s| Some(*s)).collect()).collect();
    let groups: Vec<&[Option<f64>]> = scores.iter().map(Vec::as_slice).collect();
    let (generation, all) = batch(&["safety", "general"][..groups.len()], &groups);
    let plan = Grpo::new(&recipe(set))
        .plan(StepId(0), &generation, &all, &ReferenceLogps::default())
        .unwrap();
    assert!(plan.advantages.iter().all(|a| a.keep));
    plan.advantages.iter().map(|a| a.advantage).collect()
}

#[track_caller]
fn close(got: &[f64], expected: &[f64]) {
    let near = got.iter().zip(expected).all(|(g, e)| (g - e).abs() < 1e-3);
    assert!(got.len() == expected.len() && near, "{got:?} vs {expected:?}");
}

#[test]
fn each_advantage_of_a_recipe_reaches_the_plan() {
    // Rewards 1.5, 4.5 (1 and 2 tokens) and 0, 2.
    let scores: [&[f64]; 2] = [&[1.0, 3.0], &[0.0, 2.0]];
    let of = |set: &[&str]| advantages(set, &scores);
    let half = 0.5f64.sqrt();
    close(&of(&["algorithm.advantage=grpo"]), &[-half, half, -half, half]);
    let plain = ["algorithm.advantage=grpo", "algorithm.normalise_by_std=false"];
    close(&of(&plain), &[-1.5, 1.5, -1.0, 1.0]);
    // Standard deviations sqrt 4.5 and sqrt 2, + 1: 1.5 / 3.1213, 1 / 2.4142.
    let wide = ["algorithm.advantage=grpo", "algorithm.advantage_epsilon=1.0"];
    close(&of(&wide), &[-0.4806, 0.4806, -0.4142, 0.4142]);
    // Leads 3 and 2 over the same standard deviations.
    close(&of(&["algorithm.advantage=grpo_passk"]), &[0.0, 2f64.sqrt(), 0.0, 2f64.sqrt()]);
    close(&of(&["algorithm.advantage=rloo"]), &[-3.0, 3.0, -2.0, 2.0]);
    close(&of(&["algorithm.advantage=reinforce_baseline"]), &[-1.5, 1.5, -1.0, 1.0]);
    close(&of(&["algorithm.advantage=reinforce"]), &[1.5, 4.5, 0.0, 2.0]);
    // (1.5 + 2 * 4.5) / 3 = 3.5; (0 + 2 * 2) / 3 = 4/3.
    close(&of(&["algorithm.advantage=opo"]), &[-2.0, 1.0, -4.0 / 3.0, 2.0 / 3.0]);
    // Three of four rewards are not 0: times 4/3, over 2.
    let gpg = ["algorithm.advantage=gpg", "algorithm.gpg_norm=2.0"];
    close(&of(&gpg), &[-1.0, 1.0, -2.0 / 3.0, 2.0 / 3.0]);
    // Mean 2; population variance (0.25 + 6.25 + 4 + 0) / 4 = 2.625.
    let std = 2.625f64.sqrt();
    close(&of(&["algorithm.advantage=cpgd"]), &[-0.5 / std, 2.5 / std, -2.0 / std, 0.0]);
    let centre = ["algorithm.advantage=cpgd", "algorithm.cpgd_weight=centre"];
    close(&of(&centre), &[-0.5, 2.5, -2.0, 0.0]);
    let clip = ["algorithm.advantage=cpgd", "algorithm.cpgd_weight=compat_clip_filter"];
    close(&of(&clip), &[-1.5, 7.5, -6.0, 0.0]);
    // Six tokens 1.5, 4.5, 4.5, 0, 2, 2: mean 14.5/6, unbiased variance 15.7083/5 = 3.1417.
    let (mean, std) = (14.5 / 6.0, 3.141_67_f64.sqrt());
    let whitened = [1.5, 4.5, 0.0, 2.0].map(|r| (r - mean) / std);
    close(&of(&["algorithm.advantage=reinforce_plus_plus"]), &whitened);
    // -1.5, 1.5, 1.5, -1, 1, 1: mean 2.5/6, squares 9.75 - 6.25/6 = 8.7083, over 5.
    let (mean, std) = (2.5 / 6.0, 1.741_67_f64.sqrt());
    let whitened = [-1.5, 1.5, -1.0, 1.0].map(|r| (r - mean) / std);
    close(&of(&["algorithm.advantage=reinforce_plus_plus_baseline"]), &whitened);
    // Both components of safety have z = -+1/sqrt 2, weights 1 and 0.5; general has one of weight
    // 1: sums -+1.5/sqrt 2, -+1/sqrt 2; unbiased variance (1.125 + 1.125 + 0.5 + 0.5) / 3.
    let std = (3.25f64 / 3.0).sqrt();
    let sums = [-1.5, 1.5, -1.0, 1.0].map(|sum| sum * half / std);
    close(&of(&["algorithm.advantage=gdpo"]), &sums);
}

#[test]
fn what_does_not_compare_within_groups_takes_lone_samples() {
    let alone: [&[f64]; 2] = [&[1.0], &[2.0]];
    let one = "algorithm.samples_per_prompt=1";
    close(&advantages(&["algorithm.advantage=reinforce", one], &alone), &[1.5, 2.0]);
    close(&advantages(&["algorithm.advantage=cpgd", one], &alone), &[-1.0, 1.0]);
}
