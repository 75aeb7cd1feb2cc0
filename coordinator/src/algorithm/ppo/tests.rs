use plumb_config::Override;
use plumb_domain::{Epoch, PolicyVersion};
use plumb_proto::object::ObjectRef;
use plumb_proto::rollout::SampleInfo;

use super::*;
use crate::ports::Generated;

/// A recipe of a `ppo` or, with a constraint on "harm", `ppo_lag` stage.
pub(in crate::algorithm) fn recipe(lagrange: bool, set: &[&str]) -> Recipe {
    let kind = if lagrange { "kind = \"ppo_lag\"" } else { "kind = \"ppo\"" };
    let text = include_str!("../../stage/testdata/recipe.toml");
    let mut text = text.replace("kind = \"grpo\"", kind)
        + "[algorithm.critic]\noptimizer = { learning_rate = 0.5 }\n";
    if lagrange {
        text += "[[reward.component]]\nname = \"harm\"\nkind = \"rule\"\n\
                 rule = { rule = \"length\", min = 1 }\n[algorithm.lagrange]\ncost = \"harm\"\n";
    }
    let all = ["algorithm.advantage=gae"].into_iter().chain(set.iter().copied());
    let set: Vec<Override> = all.map(|s| s.parse().unwrap()).collect();
    Recipe::from_toml(&text, std::path::Path::new("recipe.toml"), &set).unwrap()
}

/// Samples `p/0`, `p/1`, .. of one prompt of label safety, whose reward is 1.5 times `score`, and
/// their costs; a sample without a cost has none.
pub(in crate::algorithm) fn batch(
    scores: &[(f64, Option<f64>)],
) -> (Generation, Vec<SampleScores>) {
    let id = |i: usize| format!("p/{i}");
    let info = |i| SampleInfo { sample_id: id(i), response_tokens: 2, ..SampleInfo::default() };
    let group = Generated {
        prompt_id: "p".into(),
        label: "safety".into(),
        owner: "rollout-0".into(),
        owner_epoch: Epoch(0),
        object: ObjectRef::default(),
        samples: (0..scores.len()).map(info).collect(),
    };
    let all = scores.iter().enumerate().map(|(i, (score, cost))| SampleScores {
        sample_id: id(i),
        scores: [
            ("style".to_owned(), Ok(*score)),
            ("safe".to_owned(), Ok(*score)),
            ("harm".to_owned(), cost.ok_or_else(|| "timeout".to_owned())),
        ]
        .into(),
    });
    let generation = Generation { groups: vec![group], policy_version: PolicyVersion(0) };
    (generation, all.collect())
}

/// A KL of 0.5 a token.
pub(in crate::algorithm) fn reference() -> ReferenceLogps {
    let kl_sum = [("p/0".to_owned(), 1.0), ("p/1".to_owned(), 1.0)].into();
    ReferenceLogps { objects: Vec::new(), kl_sum, tokens: 4 }
}

pub(in crate::algorithm) fn scores_of(plan: &CriticPlan) -> Vec<(&str, f64)> {
    plan.signal.scores.iter().map(|s| (s.sample_id.as_str(), s.score)).collect()
}

#[test]
fn the_critic_gets_the_mixed_rewards_and_every_setting() {
    let set = [
        "algorithm.kl.place=reward",
        "algorithm.kl.coef=0.02",
        "algorithm.kl.kind=k1",
        "algorithm.gamma=0.9",
        "algorithm.gae={ lambda = 0.8, reward_clip = 50.0, whiten = true }",
        "algorithm.critic.warmup_steps=1",
    ];
    let ppo = Ppo::new(&recipe(false, &set));
    let (generation, scores) = batch(&[(1.0, None), (3.0, None)]);
    let plan = ppo.plan(StepId(0), &generation, &scores, &reference()).unwrap();
    let [critic] = plan.critics.as_slice() else { panic!("{:?}", plan.critics) };
    assert_eq!(scores_of(critic), [("p/0", 1.5), ("p/1", 4.5)]);
    let s = &critic.signal;
    assert_eq!((s.kind.as_str(), s.kl_kind.as_str()), ("reward", "k1"));
    assert_eq!((s.kl_coef, s.clip, s.gamma, s.lambda), (0.02, 50.0, 0.9, 0.8));
    assert_eq!((critic.role, critic.learning_rate), (Role::Critic, 0.5));
    assert!(plan.whiten && plan.freeze_policy, "the first step warms the critic up");
    assert_eq!(plan.metrics["reward/mean"], 3.0);
    let next = ppo.plan(StepId(1), &generation, &scores, &reference()).unwrap();
    assert!(!next.freeze_policy);
    assert_eq!(ppo.loss().kl_coef, 0.0, "the KL is in the reward");
}

#[test]
fn kl_in_the_loss_is_not_in_the_reward() {
    let ppo = Ppo::new(&recipe(false, &["algorithm.kl.coef=0.3", "algorithm.kl.place=loss"]));
    let (generation, scores) = batch(&[(1.0, None)]);
    let plan = ppo.plan(StepId(0), &generation, &scores, &reference()).unwrap();
    assert_eq!((plan.critics[0].signal.kl_coef, ppo.loss().kl_coef), (0.0, 0.3));
}

#[test]
fn an_adaptive_coefficient_follows_the_kl_and_is_restored_exactly() {
    let set = [
        "algorithm.kl.place=reward",
        "algorithm.kl.coef=0.1",
        "algorithm.kl.target=0.1",
        "algorithm.kl.horizon=10.0",
    ];
    let ppo = Ppo::new(&recipe(false, &set));
    let (generation, scores) = batch(&[(1.0, None), (3.0, None)]);
    let coef = |ppo: &Ppo, step| {
        let plan = ppo.plan(StepId(step), &generation, &scores, &reference()).unwrap();
        plan.critics[0].signal.kl_coef
    };
    // Too high by far: 20 % on 2 of 10 samples.
    assert_eq!(coef(&ppo, 0), 0.1);
    assert_eq!(coef(&ppo, 0), 0.1, "a replay of the step");
    let state: Value = serde_json::from_str(&ppo.state().to_string()).unwrap();
    let second = coef(&ppo, 1);
    assert!((second - 0.1 * (1.0 + 0.2 * 2.0 / 10.0)).abs() < 1e-15, "{second}");
    let resumed = Ppo::new(&recipe(false, &set));
    resumed.restore(&state).unwrap();
    assert_eq!(coef(&resumed, 1).to_bits(), second.to_bits());
    ppo.restore(&Value::Null).unwrap();
    assert_eq!(coef(&ppo, 0), 0.1);
}
