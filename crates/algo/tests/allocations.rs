//! Batched token maths asks for no memory: none per token, and none per row.

use plumb_algo::AlgoError;
use plumb_algo::advantage::{self, CrossBatch, Gae, Outside};
use plumb_algo::masked::{Moments, standardize, whiten};
use plumb_algo::returns::discounted_rows;
use plumb_algo::token_reward::{TokenReward, penalize, token_rewards_rows};

const ROWS: usize = 3;
const TOKENS: usize = 2500;

fn allocations(run: impl FnOnce() -> Result<(), AlgoError>) -> Result<u64, AlgoError> {
    let mut result = Ok(());
    let counted = allocation_counter::measure(|| result = run());
    result.map(|()| counted.count_total)
}

#[test]
fn batched_token_maths_allocates_nothing() {
    let x: Vec<f32> = (0..ROWS * TOKENS).map(|t| (t % 7) as f32).collect();
    let mask: Vec<bool> = (0..ROWS * TOKENS).map(|t| t % TOKENS < 2000 && t % 300 > 9).collect();
    let figures = [0.5; ROWS];
    let (mut a, mut g) = (x.clone(), x.clone());
    for outside in [Outside::Skip, Outside::Zero] {
        let spec = Gae { outside, ..Gae::default() };
        let gae = || advantage::gae_rows(&spec, TOKENS, &x, &x, &mask, &mut a, &mut g);
        assert_eq!(allocations(gae), Ok(0));
    }
    assert_eq!(allocations(|| discounted_rows(TOKENS, &x, &mask, 0.9, &mut a)), Ok(0));
    assert_eq!(allocations(|| advantage::broadcast_rows(&figures, TOKENS, &mask, &mut a)), Ok(0));
    let spec = TokenReward { kl_coef: 0.1, reward_clip: None };
    let lay = || token_rewards_rows(&spec, TOKENS, &figures, &x, &mask, &mut a);
    assert_eq!(allocations(lay), Ok(0));
    assert_eq!(allocations(|| penalize(&mut a, &x, &mask, 0.1)), Ok(0));
    assert_eq!(allocations(|| Moments::of(&x, &mask).map(drop)), Ok(0));
    assert_eq!(allocations(|| whiten(&mut a, &mask, false)), Ok(0));
    assert_eq!(allocations(|| standardize(&mut a, &mask, 1e-8)), Ok(0));
    let spec = CrossBatch::default();
    assert_eq!(allocations(|| advantage::cross_batch(&spec, &mut a, &mask)), Ok(0));
    assert_eq!(allocations(|| advantage::clip(&mut a, 0.5).map(drop)), Ok(0));
    // The counter counts.
    let none: Vec<f32> = Vec::new();
    let one = || Moments::of(&[x.as_slice(), none.as_slice()].concat(), &mask).map(drop);
    assert_eq!(allocations(one), Ok(1));
}
