use super::super::ppo::tests::{batch, recipe, reference, scores_of};
use super::*;

fn ppo_lag(set: &[&str]) -> PpoLag {
    PpoLag::new(&recipe(true, set)).unwrap()
}

#[test]
fn two_steps_by_hand() {
    let lagrange = "algorithm.lagrange={ cost = \"harm\", threshold = 1.0, initial = 2.0, \
                    learning_rate = 0.1, max = 2.5, window = 3 }";
    let algorithm = ppo_lag(&[lagrange]);
    let (generation, scores) = batch(&[(1.0, Some(2.0)), (3.0, Some(4.0))]);
    let plan = algorithm.plan(StepId(0), &generation, &scores, &reference()).unwrap();
    // J = 3: log l = log 2 + 0.1 (3 - 1) 2.
    let first = 2.0 * 0.4f64.exp();
    assert!(first > 2.5 && (plan.cost_weight - 2.5).abs() < 1e-12, "max: {}", plan.cost_weight);
    assert_eq!(plan.metrics["constraint/cost"], 3.0);
    assert_eq!(plan.metrics["constraint/episode_cost"], 3.0);
    assert!((plan.metrics["constraint/lambda"] - 2.5).abs() < 1e-12);
    let [reward, cost] = plan.critics.as_slice() else { panic!("{:?}", plan.critics) };
    assert_eq!((reward.role, cost.role), (Role::Critic, Role::CostCritic));
    assert_eq!(scores_of(reward), [("p/0", 1.5), ("p/1", 4.5)]);
    assert_eq!(scores_of(cost), [("p/0", 2.0), ("p/1", 4.0)]);
    assert_eq!(cost.signal.kind, "cost");
    // The window of three holds 4, -2, -2: J = 0 is below 1, so the multiplier falls.
    let (generation, scores) = batch(&[(1.0, Some(-2.0)), (3.0, Some(-2.0))]);
    let plan = algorithm.plan(StepId(1), &generation, &scores, &reference()).unwrap();
    assert!((plan.metrics["constraint/episode_cost"]).abs() < 1e-12);
    let second = (2.5f64.ln() - 0.1 * 2.5).exp();
    assert!((plan.cost_weight - second).abs() < 1e-12, "{} vs {second}", plan.cost_weight);
}

#[test]
fn a_sample_without_a_cost_does_not_count() {
    let algorithm = ppo_lag(&[]);
    let (generation, scores) = batch(&[(1.0, Some(2.0)), (3.0, None)]);
    let plan = algorithm.plan(StepId(0), &generation, &scores, &reference()).unwrap();
    let kept: Vec<_> = plan.advantages.iter().filter(|a| a.keep).map(|a| &a.sample_id).collect();
    assert_eq!(kept, ["p/0"]);
    assert!(plan.critics.iter().all(|critic| scores_of(critic).len() == 1));
    let (generation, scores) = batch(&[(1.0, None)]);
    let error = algorithm.plan(StepId(1), &generation, &scores, &reference()).unwrap_err();
    assert!(error.to_string().contains("no sample has both a reward and a cost"), "{error}");
}

#[test]
fn the_multiplier_waits_for_its_delay_and_is_restored_exactly() {
    let set = ["algorithm.lagrange={ cost = \"harm\", delay_steps = 1, learning_rate = 0.3 }"];
    let algorithm = ppo_lag(&set);
    let (generation, scores) = batch(&[(1.0, Some(0.1)), (3.0, Some(0.7))]);
    let lambda = |algorithm: &PpoLag, step| {
        let plan = algorithm.plan(StepId(step), &generation, &scores, &reference()).unwrap();
        plan.cost_weight
    };
    assert_eq!(lambda(&algorithm, 0), 1.0, "delayed");
    let committed: Value = serde_json::from_str(&algorithm.state().to_string()).unwrap();
    let second = lambda(&algorithm, 1);
    assert!(second > 1.0);
    assert_eq!(lambda(&algorithm, 1).to_bits(), second.to_bits(), "planned again");
    let third = lambda(&algorithm, 2);
    let resumed = ppo_lag(&set);
    resumed.restore(&committed).unwrap();
    assert_eq!(lambda(&resumed, 1).to_bits(), second.to_bits());
    assert_eq!(lambda(&resumed, 2).to_bits(), third.to_bits());
    let other = serde_json::json!({ "ppo_lag": { "lambda": 1.0 } });
    assert!(resumed.restore(&other).unwrap_err().to_string().contains("does not fit"));
}
