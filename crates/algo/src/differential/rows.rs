//! Batches laid flat, worked on in vector registers, against the equations token by token. 1,000
//! random batches each, with rows shorter and longer than what is worked on at once.

use proptest::prelude::*;

use crate::advantage::{self, CrossBatch, Gae, Outside};
use crate::masked::{Moments, Whiten, standardize};
use crate::recurrence::STAGE;
use crate::returns;
use crate::token_reward::{TokenReward, penalize, token_rewards_rows};

#[derive(Debug)]
struct Batch {
    tokens: usize,
    x: Vec<f64>,
    y: Vec<f64>,
    mask: Vec<bool>,
}

/// Numbers in `[-1, 1)` about an offset; masks of single tokens, of runs, of all and of none.
fn batch() -> impl Strategy<Value = Batch> {
    let tokens = prop_oneof![1usize..200, STAGE - 3..STAGE + 4, 1usize..3 * STAGE];
    let offset = prop_oneof![Just(0.0), -3.0f64..3.0, Just(1e4)];
    (1usize..4, tokens, offset, 0usize..5, any::<u64>()).prop_map(
        |(rows, tokens, offset, kind, seed)| {
            let mut state = seed | 1;
            let mut next = || {
                state ^= state << 13;
                state ^= state >> 7;
                state ^= state << 17;
                state >> 11
            };
            let mut unit = || next() as f64 / (1u64 << 52) as f64 - 1.0;
            let x = (0..rows * tokens).map(|_| unit() + offset).collect();
            let y = (0..rows * tokens).map(|_| unit()).collect();
            let mut keep = false;
            let mask = (0..rows * tokens).map(|_| match kind {
                0 => true,
                1 => false,
                2 => next() % 2 == 0,
                _ => {
                    keep ^= next() % [20, 200][kind - 3] == 0;
                    keep
                }
            });
            let mask = mask.collect();
            Batch { tokens, x, y, mask }
        },
    )
}

impl Batch {
    fn entries(&self) -> usize {
        self.mask.len()
    }

    /// The index of the token after `t` in its row.
    fn after(&self, t: usize) -> Option<usize> {
        Some(t + 1).filter(|next| next % self.tokens != 0)
    }

    /// Numbers with NaN wherever the mask drops.
    fn poisoned(&self, values: &[f64]) -> Vec<f64> {
        values.iter().zip(&self.mask).map(|(v, m)| if *m { *v } else { f64::NAN }).collect()
    }

    fn kept(&self) -> Vec<f64> {
        self.x.iter().zip(&self.mask).filter(|(_, m)| **m).map(|(x, _)| *x).collect()
    }

    fn f32s(values: &[f64]) -> Vec<f32> {
        values.iter().map(|v| *v as f32).collect()
    }
}

/// GAE token by token: the advantage and the return of every token.
fn naive_gae(spec: &Gae, b: &Batch) -> (Vec<f64>, Vec<f64>) {
    let (mut a, mut g) = (vec![0.0; b.entries()], vec![0.0; b.entries()]);
    let (mut next_value, mut running) = (0.0, 0.0);
    for t in (0..b.entries()).rev() {
        if b.after(t).is_none() {
            (next_value, running) = (0.0, 0.0);
        }
        let zero = !b.mask[t] && spec.outside == Outside::Zero;
        let (reward, value) = if zero { (0.0, 0.0) } else { (b.x[t], b.y[t]) };
        if b.mask[t] || zero {
            running = reward + spec.gamma * next_value - value + spec.gamma * spec.lambda * running;
            next_value = value;
        }
        (a[t], g[t]) = (running, running + value);
    }
    (a, g)
}

/// Equal up to `relative` of the greatest number that took part.
fn close(got: &[f64], expected: &[f64], relative: f64) -> Result<(), TestCaseError> {
    let scale = expected.iter().fold(1.0f64, |most, v| most.max(v.abs()));
    for (t, (got, expected)) in got.iter().zip(expected).enumerate() {
        prop_assert!((got - expected).abs() <= relative * scale, "{t}: {got}, not {expected}");
    }
    prop_assert_eq!(got.len(), expected.len());
    Ok(())
}

fn widened(values: &[f32]) -> Vec<f64> {
    values.iter().map(|v| f64::from(*v)).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1000))]

    #[test]
    fn gae_of_rows_is_the_recursion(
        mut b in batch(), gamma in 0.0f64..=1.0, lambda in 0.0f64..=1.0, skip in any::<bool>(),
    ) {
        let outside = if skip { Outside::Skip } else { Outside::Zero };
        let spec = Gae { gamma, lambda, outside };
        let (a, g) = naive_gae(&spec, &b);
        let (mut got_a, mut got_g) = (b.x.clone(), b.x.clone());
        let rewards = b.poisoned(&b.x);
        let values = if skip { b.y.clone() } else { b.poisoned(&b.y) };
        advantage::gae_rows(&spec, b.tokens, &rewards, &values, &b.mask, &mut got_a, &mut got_g)?;
        close(&got_a, &a, 1e-13)?;
        close(&got_g, &g, 1e-13)?;
        // In f32 only the inputs and the results are rounded.
        let (x, y) = (Batch::f32s(&b.x), Batch::f32s(&b.y));
        (b.x, b.y) = (widened(&x), widened(&y));
        let (a, g) = naive_gae(&spec, &b);
        let (mut got_a, mut got_g) = (x.clone(), x.clone());
        advantage::gae_rows(&spec, b.tokens, &x, &y, &b.mask, &mut got_a, &mut got_g)?;
        close(&widened(&got_a), &a, 6e-8)?;
        close(&widened(&got_g), &g, 6e-8)?;
    }

    #[test]
    fn returns_of_rows_are_the_recursion(b in batch(), gamma in 0.0f64..=1.0) {
        let mut expected = vec![0.0; b.entries()];
        for t in (0..b.entries()).rev() {
            let now = if b.mask[t] { b.x[t] } else { 0.0 };
            expected[t] = now + gamma * b.after(t).map_or(0.0, |next| expected[next]);
        }
        let mut got = b.y.clone();
        returns::discounted_rows(b.tokens, &b.poisoned(&b.x), &b.mask, gamma, &mut got)?;
        close(&got, &expected, 1e-13)?;
    }

    #[test]
    fn what_is_not_finite_is_refused_wherever_it_stands(
        mut b in batch(), at in any::<prop::sample::Index>(), infinite in any::<bool>(),
    ) {
        let at = at.index(b.entries());
        b.mask[at] = true;
        let mut bad = b.x.clone();
        bad[at] = if infinite { f64::INFINITY } else { f64::NAN };
        let told = format!("rewards[{at}] is {}", bad[at]);
        // Without discounting nothing would carry it on but 0 times it.
        let spec = Gae { gamma: 0.0, lambda: 0.0, outside: Outside::Skip };
        let (mut a, mut g) = (b.x.clone(), b.x.clone());
        let gae = advantage::gae_rows(&spec, b.tokens, &bad, &b.y, &b.mask, &mut a, &mut g);
        let returns = returns::discounted_rows(b.tokens, &bad, &b.mask, 0.0, &mut a);
        for refused in [gae.unwrap_err().to_string(), returns.unwrap_err().to_string()] {
            prop_assert!(refused.contains(&told), "{refused}: not {told}");
        }
        let refused = Moments::of(&bad, &b.mask).unwrap_err().to_string();
        prop_assert!(refused.contains(&format!("values[{at}]")), "{refused}");
    }

    #[test]
    fn moments_whitening_and_norms_are_two_plain_passes(b in batch(), shift_mean in any::<bool>()) {
        let kept = b.kept();
        prop_assume!(kept.len() >= 2);
        let n = kept.len() as f64;
        let mean = kept.iter().sum::<f64>() / n;
        let squares: f64 = kept.iter().map(|x| (x - mean) * (x - mean)).sum();
        let got = Moments::of(&b.poisoned(&b.x), &b.mask)?;
        prop_assert_eq!(got.count, kept.len());
        close(&[got.mean, got.population_variance], &[mean, squares / n], 1e-12)?;
        // A token or two may have any small spread, in which the mean's own rounding shows.
        prop_assume!(squares / n > 1e-6);
        let std = (squares / (n - 1.0)).sqrt();
        let scaled = |centre: f64, std: f64, back: f64| -> Vec<f64> {
            b.x.iter().map(|x| (x - centre) / std + back).collect()
        };
        let mut x = b.x.clone();
        Whiten { shift_mean, count_epsilon: 0.0 }.apply(&mut x, &b.mask)?;
        let back = if shift_mean { 0.0 } else { mean };
        close(&x, &scaled(mean, (std * std + 1e-8).sqrt(), back), 1e-9)?;
        let mut x = b.x.clone();
        standardize(&mut x, &b.mask, 1e-9)?;
        close(&x, &scaled(mean, std + 1e-9, 0.0), 1e-9)?;
        let mut x = b.x.clone();
        advantage::cross_batch(&CrossBatch::default(), &mut x, &b.mask)?;
        close(&x, &scaled(mean, (squares / n).max(1e-8).sqrt(), 0.0), 1e-9)?;
    }

    #[test]
    fn figures_of_samples_are_laid_on_their_tokens(b in batch(), coef in -0.5f64..0.5) {
        let rows = b.entries() / b.tokens;
        let figures: Vec<f64> = (0..rows).map(|row| row as f64 - 0.5).collect();
        let mut got = b.x.clone();
        advantage::broadcast_rows(&figures, b.tokens, &b.mask, &mut got)?;
        let spread = |t: usize| if b.mask[t] { figures[t / b.tokens] } else { 0.0 };
        prop_assert_eq!(&got, &(0..b.entries()).map(spread).collect::<Vec<_>>());

        let spec = TokenReward { kl_coef: coef, reward_clip: Some((-1.0, 0.75)) };
        token_rewards_rows(&spec, b.tokens, &figures, &b.x, &b.mask, &mut got)?;
        let laid = |t: usize| {
            let row = t - t % b.tokens..t - t % b.tokens + b.tokens;
            let last = row.clone().rev().find(|t| b.mask[*t]).unwrap_or(row.end - 1);
            let reward = if t == last { figures[t / b.tokens].clamp(-1.0, 0.75) } else { 0.0 };
            reward - coef.max(0.0) * b.x[t]
        };
        close(&got, &(0..b.entries()).map(laid).collect::<Vec<_>>(), 1e-15)?;

        let mut got = b.y.clone();
        penalize(&mut got, &b.poisoned(&b.x), &b.mask, coef)?;
        let penalized = |t: usize| b.y[t] - if b.mask[t] { coef * b.x[t] } else { 0.0 };
        prop_assert_eq!(got, (0..b.entries()).map(penalized).collect::<Vec<_>>());
    }

    #[test]
    fn clip_changes_what_is_outside_and_counts_it(mut b in batch(), bound in 0.01f64..2.0) {
        b.x[0] = f64::NAN;
        let outside = b.x.iter().filter(|x| x.abs() > bound).count();
        let mut got = b.x.clone();
        let share = advantage::clip(&mut got, bound)?;
        prop_assert_eq!(share, outside as f64 / b.entries() as f64);
        prop_assert!(got[0].is_nan());
        close(&got[1..], &b.x[1..].iter().map(|x| x.clamp(-bound, bound)).collect::<Vec<_>>(), 0.0)?;
    }
}

#[test]
fn rows_must_be_whole() {
    let mask = [true; 4];
    let mut out = [0.0; 4];
    for tokens in [0, 3] {
        let told = format!("tokens = {tokens}, expected at least 1");
        let refused = returns::discounted_rows(tokens, &out.clone(), &mask, 1.0, &mut out);
        assert!(refused.unwrap_err().to_string().contains(&told));
        let refused = advantage::broadcast_rows(&[1.0], tokens, &mask, &mut out);
        assert!(refused.unwrap_err().to_string().contains(&told));
    }
    assert!(advantage::broadcast_rows(&[1.0], 2, &mask, &mut out).is_err());
    assert!(advantage::broadcast_rows::<f64>(&[], 2, &[], &mut []).is_ok());
}

/// A block whose mean is far from what came before it must not lose its variance to rounding.
#[test]
fn a_batch_that_drifts_keeps_its_variance() {
    let x: Vec<f64> = (0..8192).map(|t| (t / 2048) as f64 * 1e9 + (t % 2) as f64).collect();
    let last = Moments::of(&x[6144..], &[true; 2048]).unwrap();
    assert_eq!((last.mean, last.population_variance), (3e9 + 0.5, 0.25));
    // Means of the blocks 0, 1, 2, 3 times 1e9: population variance 1.25e18, and 1/4 within each.
    let all = Moments::of(&x, &[true; 8192]).unwrap();
    assert!((all.population_variance / 1.25e18 - 1.0).abs() < 1e-15);
    // A block of one value after one of another has no squares of its own.
    let step: Vec<f64> = (0..4096).map(|t| if t < 2048 { 0.1 } else { 7e7 }).collect();
    let of = |mask: &[bool]| Moments::of(&step, mask).unwrap().population_variance;
    let late: Vec<bool> = (0..4096).map(|t| t == 0 || t >= 2048).collect();
    let expected = 2048.0 / 2049.0 * (7e7 - 0.1f64).powi(2) / 2049.0;
    assert!((of(&late) / expected - 1.0).abs() < 1e-12);
}

/// Enough for several threads; each row alone is too little for that.
#[test]
fn a_batch_for_several_threads_is_its_rows_one_by_one() {
    const TOKENS: usize = 300_000;
    const ROWS: usize = 9;
    let x: Vec<f32> = (0..ROWS * TOKENS).map(|t| (t * 7919 % 1013) as f32 / 1013.0 - 0.4).collect();
    let y: Vec<f32> = x.iter().rev().copied().collect();
    let mask: Vec<bool> = (0..x.len()).map(|t| t % TOKENS < 250_000 && t % 1777 > 300).collect();
    let spec = Gae { gamma: 0.999, lambda: 0.97, outside: Outside::Skip };
    let (mut a, mut g, mut r) = (x.clone(), x.clone(), x.clone());
    advantage::gae_rows(&spec, TOKENS, &x, &y, &mask, &mut a, &mut g).unwrap();
    returns::discounted_rows(TOKENS, &x, &mask, 0.999, &mut r).unwrap();
    for row in (0..ROWS).map(|row| row * TOKENS..(row + 1) * TOKENS) {
        let (x, y, mask) = (&x[row.clone()], &y[row.clone()], &mask[row.clone()]);
        let (mut own_a, mut own_g) = (y.to_vec(), y.to_vec());
        advantage::gae(&spec, x, y, mask, &mut own_a, &mut own_g).unwrap();
        assert!(own_a == a[row.clone()] && own_g == g[row.clone()]);
        returns::discounted(x, mask, 0.999, &mut own_a).unwrap();
        assert!(own_a == r[row]);
    }
    let kept = || x.iter().zip(&mask).filter(|(_, keep)| **keep).map(|(x, _)| f64::from(*x));
    let n = kept().count();
    let mean = kept().sum::<f64>() / n as f64;
    let variance = kept().map(|x| (x - mean) * (x - mean)).sum::<f64>() / n as f64;
    let moments = Moments::of(&x, &mask).unwrap();
    assert_eq!(moments.count, n);
    assert!((moments.mean - mean).abs() < 1e-12);
    assert!((moments.population_variance - variance).abs() < 1e-12);
    let mut scaled = x.clone();
    standardize(&mut scaled, &mask, 0.0).unwrap();
    let scale = (variance * n as f64 / (n - 1) as f64).sqrt();
    let off = |(x, s): (&f32, &f32)| ((f64::from(*x) - mean) / scale - f64::from(*s)).abs();
    assert!(x.iter().zip(&scaled).map(off).all(|off| off < 1e-6));
    // What is told is where it stands in the whole batch, and the first of several.
    let mut bad = x.clone();
    for at in [7 * TOKENS + 400, 8 * TOKENS + 400] {
        bad[at] = f32::NAN;
    }
    let mut all = vec![true; x.len()];
    let told = format!("[{}] is NaN", 7 * TOKENS + 400);
    let gae = advantage::gae_rows(&spec, TOKENS, &bad, &y, &all, &mut a, &mut g);
    let returns = returns::discounted_rows(TOKENS, &bad, &all, 0.5, &mut r);
    let moments = Moments::of(&bad, &all).map(drop);
    for refused in [gae, returns, moments] {
        let refused = refused.unwrap_err().to_string();
        assert!(refused.contains(&told), "{refused}");
    }
    all.fill(false);
    assert!(Moments::of(&bad, &all).is_err());
}
