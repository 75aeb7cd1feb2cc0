//! safe-rlhf's token rewards and advantages by hand.

use super::close;
use crate::AlgoError;
use crate::advantage::{Gae, Outside, response_gae};
use crate::clamped_reward::{ClampedReward, Score};

const SPEC: ClampedReward = ClampedReward { kl_coef: 0.5, clip: 2.0 };

#[test]
fn token_rewards_are_clamped_after_the_score_is_added() {
    let (logp, ref_logp) = ([-1.0, -2.0, -6.0], [-2.0, -1.0, -1.0]);
    let mask = [true, true, false];
    // d = 1, -1, -5. Reward: -0.5, 0.5 + 9 held at 2, and 2.5 outside the mask held at 2 as well.
    let reward = SPEC.tokens(Score::Reward, 9.0, &logp, &ref_logp, &mask).unwrap();
    close(&reward, &[-0.5, 2.0, 2.0]);
    // Cost: 0.5, -0.5 + 1, -2.5 held at -2.
    let cost = SPEC.tokens(Score::Cost, 1.0, &logp, &ref_logp, &mask).unwrap();
    close(&cost, &[0.5, 0.5, -2.0]);
    let empty = SPEC.tokens(Score::Cost, 1.0, &logp, &ref_logp, &[false; 3]);
    assert!(matches!(empty, Err(AlgoError::Empty { .. })));
    let free = ClampedReward { clip: f64::INFINITY, ..SPEC };
    let reward = free.tokens(Score::Reward, 9.0, &logp, &ref_logp, &mask).unwrap();
    close(&reward, &[-0.5, 9.5, 2.5]);
    let negative = ClampedReward { clip: -1.0, ..SPEC };
    let refused = negative.tokens(Score::Reward, 9.0, &logp, &ref_logp, &mask);
    assert!(matches!(refused, Err(AlgoError::Parameter { .. })));
}

#[test]
fn a_sequence_pays_for_the_response_only() {
    let (logp, ref_logp) = ([9.0, -2.0, -1.0, 7.0], [0.0, -1.0, -2.5, 0.0]);
    let mask = [true, true, true, false];
    // Positions 1 and 2: d = -1 + 1.5 = 0.5; 1 - 0.5 * 0.5 = 0.75.
    let one = SPEC.sequence(1.0, &logp, &ref_logp, &mask, 1).unwrap();
    // From 0 on: 9 more, 1 - 0.5 * 9.5 = -3.75, held at -2. From 3 on there is nothing to pay for.
    let all = SPEC.sequence(1.0, &logp, &ref_logp, &mask, 0).unwrap();
    let none = SPEC.sequence(1.0, &logp, &ref_logp, &mask, 3).unwrap();
    close(&[one, all, none], &[0.75, -2.0, 1.0]);
}

#[test]
fn advantages_start_with_the_response() {
    let spec = Gae { gamma: 0.5, lambda: 0.5, outside: Outside::Zero };
    let (rewards, values) = ([9.0, 1.0, 2.0, 8.0], [9.0, 1.0, 4.0, 8.0]);
    let mask = [true, true, true, false];
    // Position 3 counts as 0. delta_2 = 2 + 0 - 4 = -2; delta_1 = 1 + 0.5 * 4 - 1 = 2,
    // A_1 = 2 + 0.25 * -2 = 1.5. Returns: 1.5 + 1, -2 + 4, 0.
    let row = response_gae(&spec, &rewards, &values, &mask, 1).unwrap();
    close(&row.advantages, &[1.5, -2.0, 0.0]);
    close(&row.returns, &[2.5, 2.0, 0.0]);
    let nothing = response_gae(&spec, &rewards, &values, &mask, 4);
    assert!(matches!(nothing, Err(AlgoError::Empty { .. })));
    let short = response_gae(&spec, &rewards, &values[1..], &mask, 1);
    assert!(matches!(short, Err(AlgoError::Length { .. })));
}
