use proptest::prelude::*;

use super::close;
use crate::judge::{Dimensions, Scores, Verdict, question_in_text};
use crate::turn::{Aggregation, Assembly, EmptyResponse, Limits, Reply, Step, TurnEnd};

fn methods() -> Vec<Aggregation> {
    vec![
        Aggregation::Mean,
        Aggregation::MIN_MEAN,
        Aggregation::SOFT_LINEAR,
        Aggregation::Linear,
        Aggregation::HARMONIC,
        Aggregation::Last,
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn a_trajectory_s_reward_lies_among_its_turn_s_scores(
        scores in prop::collection::vec(0.01f64..2.0, 1..12),
    ) {
        let least = scores.iter().copied().fold(f64::INFINITY, f64::min);
        let most = scores.iter().copied().fold(0.0, f64::max);
        for method in methods() {
            let reward = method.reward(&scores).unwrap();
            prop_assert!((least - 1e-9..=most + 1e-9).contains(&reward), "{method:?}: {reward}");
        }
    }

    #[test]
    fn scaling_scores_scales_the_reward_and_order_matters_only_to_weights_by_turn(
        scores in prop::collection::vec(0.5f64..2.0, 1..12),
        factor in 1.0f64..20.0,
    ) {
        let scaled: Vec<f64> = scores.iter().map(|s| s * factor).collect();
        let turned: Vec<f64> = scores.iter().rev().copied().collect();
        for method in methods() {
            let reward = method.reward(&scores).unwrap();
            prop_assert!(close(method.reward(&scaled).unwrap(), reward * factor), "{method:?}");
            let by_turn = matches!(
                method,
                Aggregation::SoftLinear { .. } | Aggregation::Linear | Aggregation::Last
            );
            prop_assert!(by_turn || close(method.reward(&turned).unwrap(), reward), "{method:?}");
        }
    }

    #[test]
    fn only_the_policy_s_tokens_are_in_the_mask(
        turns in prop::collection::vec((prop::collection::vec(0u32..50, 0..4),
            prop::collection::vec(50u32..99, 0..4)), 1..6),
        response_tokens in 0usize..20,
    ) {
        let limits = Limits { response_tokens, assistant_turns: None, user_turns: None };
        let mut dialogue = Assembly::new(&[7], limits, TurnEnd::Dropped);
        for (own, user) in &turns {
            if dialogue.generated(own) != Ok(Step::Reply) {
                break;
            }
            dialogue.replied(Reply { ends: false, score: Some(1.0), tokens: user }).unwrap();
        }
        let trajectory = dialogue.finish(EmptyResponse::Empty);
        prop_assert!(trajectory.response.len() <= response_tokens);
        prop_assert_eq!(trajectory.response.len(), trajectory.mask.len());
        for (token, by_policy) in trajectory.response.iter().zip(&trajectory.mask) {
            prop_assert_eq!(*token < 50, *by_policy);
        }
    }

    #[test]
    fn no_reply_breaks_the_reading_and_its_reward_is_in_range(
        reply in r#"([{}\[\]":,]|"(safety|scores|new_question)"|[0-9]{1,2}|\PC){0,40}"#,
    ) {
        if let Ok(verdict) = Verdict::read(&reply, Dimensions::default(), Scores::Checked) {
            prop_assert!(verdict.reward.is_none_or(|r| (0.0..=10.0 + 1e-9).contains(&r)));
            prop_assert!(verdict.new_question.is_none_or(|q| !q.trim().is_empty()));
        }
        prop_assert!(question_in_text(&reply).is_ok_and(|q| q.is_none_or(|q| !q.is_empty())));
    }
}
