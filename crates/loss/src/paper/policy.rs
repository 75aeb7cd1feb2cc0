//! Policy terms beyond PPO, on ratios and log-probs that a hand can follow.

use tch::{Kind, Tensor};

use super::{close, grad, leaf, numbers, ratios, t};
use crate::LossError;
use crate::aggregate::{Aggregation, Denominators, Layout, aggregate};
use crate::policy::{
    Baseline, Batch, Cispo, GeoMean, Gspo, LevelClip, Objective, PolicyTerm, PolicyTokens, PpoClip,
    RatioLevel, Sapo, policy_loss, ptx, reinforce, standardized_advantages, token_losses,
};

const TWO_AND_ONE: Layout<'static> = Layout::Packed { cu_seqlens: &[0, 2, 3] };

/// Token losses of one sequence of two tokens and one of one, old log-probs 0.
fn tokens(term: PolicyTerm, logp: &Tensor, advantage: &[f64]) -> PolicyTokens {
    let (old, advantage, mask) = (logp.zeros_like(), t(advantage), logp.ones_like());
    token_losses(&term, &Batch::new(logp, &old, &advantage, &mask, TWO_AND_ONE)).unwrap()
}

fn slope(tokens: &PolicyTokens, logp: &Tensor) -> Vec<f64> {
    grad(&tokens.loss.sum(Kind::Double), logp)
}

#[test]
fn gspo_gives_every_token_the_ratio_of_its_sequence() {
    // Ratios 4 and 1: geometric mean 2, above 1.5. A = 1: -1.5, no gradient; A = -1: 2, slope 2.
    // The lone token: ratio 1.2, within.
    let logp = leaf(&ratios(&[4.0, 1.0, 1.2]));
    let spec = Gspo { clip_low: 0.5, clip_high: 0.5, ..Gspo::default() };
    let ours = tokens(PolicyTerm::Gspo(spec), &logp, &[1.0, -1.0, 1.0]);
    close(&numbers(&ours.loss), &[-1.5, 2.0, -1.2]);
    // The token's own slope, not the mean's: 2, where a mean over two tokens would give 1.
    close(&slope(&ours, &logp), &[0.0, 2.0, -1.2]);
    assert_eq!(numbers(&ours.clipped), [1.0, 0.0, 0.0]);
    close(&numbers(&ours.log_ratio), &ratios(&[4.0, 1.0, 1.2]));
    // Past the cap of 10: e^10, without gradient.
    let far = leaf(&[40.0, 40.0, 0.0]);
    let ours = tokens(PolicyTerm::Gspo(spec), &far, &[-1.0, -1.0, -1.0]);
    close(&[numbers(&ours.loss)[0] / 10f64.exp()], &[1.0]);
    close(&slope(&ours, &far), &[0.0, 0.0, 1.0]);
}

#[test]
fn cispo_weighs_the_log_prob_by_the_clipped_ratio() {
    // l = -clip(r) A logp: ratio 2 -> 1.28, 0.5 -> 0.8, 1 -> 1. Every token keeps a slope.
    let logp = leaf(&ratios(&[2.0, 0.5, 1.0]));
    let spec = Cispo { clip_high: 0.28, ..Cispo::default() };
    let ours = tokens(PolicyTerm::Cispo(spec), &logp, &[1.0, -2.0, 3.0]);
    close(&numbers(&ours.loss), &[-1.28 * 2f64.ln(), 1.6 * 0.5f64.ln(), 0.0]);
    close(&slope(&ours, &logp), &[-1.28, 1.6, -3.0]);
    assert_eq!(numbers(&ours.clipped), [1.0, 1.0, 0.0]);
}

#[test]
fn sapo_gates_the_ratio_softly() {
    // At r = 1: -A (4/tau) / 2 and slope -A 4 sigmoid'(0) r = -A.
    let logp = leaf(&[0.0, 0.0, 2f64.ln()]);
    let spec = Sapo { tau_pos: 1.0, tau_neg: 2.0, ..Sapo::default() };
    let ours = tokens(PolicyTerm::Sapo(spec), &logp, &[1.0, -1.0, 1.0]);
    // At r = 2, tau 1: 4 sigmoid(1), slope 4 s (1 - s) 2.
    let s = 1.0 / (1.0 + (-1f64).exp());
    close(&numbers(&ours.loss), &[-2.0, 1.0, -4.0 * s]);
    close(&slope(&ours, &logp), &[-1.0, 1.0, -8.0 * s * (1.0 - s)]);
    let flat = PolicyTerm::Sapo(Sapo { tau_neg: 0.0, ..Sapo::default() });
    let batch = [t(&[0.0]), t(&[0.0]), t(&[1.0]), t(&[1.0])];
    let [logp, old, advantage, mask] = &batch;
    let whole = Layout::Packed { cu_seqlens: &[0, 1] };
    let refused = token_losses(&flat, &Batch::new(logp, old, advantage, mask, whole));
    assert!(matches!(refused, Err(LossError::Parameter { parameter: "tau_neg", .. })));
}

#[test]
fn gpg_is_the_log_prob_times_the_advantage() {
    let logp = leaf(&[-1.0, -2.0, -3.0]);
    let ours = tokens(PolicyTerm::Gpg, &logp, &[2.0, -1.0, 0.0]);
    close(&numbers(&ours.loss), &[2.0, -2.0, 0.0]);
    close(&slope(&ours, &logp), &[-2.0, 1.0, 0.0]);
}

#[test]
fn the_geometric_mean_is_of_ratios_clipped_on_the_side_of_the_advantage() {
    // Log ratios 1 (A = 3: at most 0.4) and -1 (A = 1: no lower bound): mean -0.3, A_b = 2.
    let logp = leaf(&[1.0, -1.0, -1.0]);
    let ours = tokens(PolicyTerm::GeoMean(GeoMean::default()), &logp, &[3.0, 1.0, -1.0]);
    // The lone token has A < 0: log ratio at least -0.4.
    let (first, lone) = (-2.0 * (-0.3f64).exp(), (-0.4f64).exp());
    close(&numbers(&ours.loss), &[first, first, lone]);
    // As a mean over each sequence, then over sequences, the slopes are those of the sequences.
    let counts = Denominators::from_token_counts([2, 1], 1.0);
    let ones = logp.ones_like();
    let mode = Aggregation::SeqMeanTokenMean;
    let loss = aggregate(mode, &ours.loss, &ones, TWO_AND_ONE, &counts).unwrap();
    close(&numbers(&loss), &[(first + lone) / 2.0]);
    close(&grad(&loss, &logp), &[0.0, first / 2.0 / 2.0, 0.0]);
    assert_eq!(numbers(&ours.clipped), [1.0, 1.0, 0.0]);
    assert_eq!(numbers(&ours.clipped_lower), [0.0, 0.0, 1.0]);
}

#[test]
fn a_token_without_advantage_leaves_the_geometric_mean_unless_zero_counts_as_positive() {
    // A = 2 and 0: A_b = 1. sgn(0) = 0 leaves out the log ratio -1; else it stays.
    let logp = leaf(&[0.2, -1.0, 0.0]);
    let loss = |zero_is_positive| {
        let spec = GeoMean { zero_is_positive, ..GeoMean::default() };
        numbers(&tokens(PolicyTerm::GeoMean(spec), &logp, &[2.0, 0.0, 0.0]).loss)[0]
    };
    close(&[loss(false), loss(true)], &[-(0.1f64.exp()), -((-0.4f64).exp())]);
}

fn level(level: RatioLevel) -> PolicyTerm {
    PolicyTerm::LevelClip(LevelClip { level, ..LevelClip::default() })
}

#[test]
fn the_ratio_of_an_item_is_the_geometric_mean_of_its_tokens() {
    // Items 0 0 1 and, past the list of 2, one overflow bin of ratios 1 and 1/4: mean 1/2.
    let logp = leaf(&ratios(&[1.1, 1.0 / 1.1, 2.0, 1.0, 0.25]));
    let (old, mask) = (logp.zeros_like(), logp.ones_like());
    let advantage = t(&[1.0, -1.0, -1.0, 1.0, -1.0]);
    let items = Tensor::from_slice(&[0i64, 0, 1, 2, 7]);
    let layout = Layout::Packed { cu_seqlens: &[0, 5] };
    let bare = Batch::new(&logp, &old, &advantage, &mask, layout);
    let batch = Batch { items: Some(&items), ..bare };
    let term = level(RatioLevel::Item { items: 2 });
    let ours = token_losses(&term, &batch).unwrap();
    // -min(r A, clip(r) A): overflow, A = -1: max(0.5, 0.8).
    close(&numbers(&ours.loss), &[-1.0, 1.0, 2.0, -0.5, 0.8]);
    assert_eq!(numbers(&ours.clipped), [0.0, 0.0, 0.0, 0.0, 1.0]);
    // Slopes spread over the item: (-1 + 1)/2 each; 2; -0.5 / 2 each (the other is clipped).
    close(&slope(&ours, &logp), &[0.0, 0.0, 2.0, -0.25, -0.25]);
    let refused = token_losses(&term, &bare).unwrap_err();
    assert!(matches!(refused, LossError::Missing { argument: "items", .. }));
    assert!(RatioLevel::named("word", 3).is_err());
    assert_eq!(RatioLevel::named("item", 3), Ok(RatioLevel::Item { items: 3 }));
}

#[test]
fn the_ratio_of_a_level_can_be_capped() {
    // Ratio 3, A = -1, cap 2: the loss stops at 2, and so does the gradient. Ratio 1.15 under a
    // cap of 1.1 is still within the clip, whose form is then the larger: slope 1.15.
    let logp = leaf(&ratios(&[3.0, 1.15, 1.0]));
    let spec = |ratio_cap| LevelClip {
        level: RatioLevel::Token,
        ratio_cap: Some(ratio_cap),
        ..LevelClip::default()
    };
    let ours = tokens(PolicyTerm::LevelClip(spec(2.0)), &logp, &[-1.0; 3]);
    close(&numbers(&ours.loss), &[2.0, 1.15, 1.0]);
    close(&slope(&ours, &logp), &[0.0, 1.15, 1.0]);
    let ours = tokens(PolicyTerm::LevelClip(spec(1.1)), &logp, &[-1.0; 3]);
    close(&numbers(&ours.loss), &[1.2, 1.15, 1.0]);
    close(&slope(&ours, &logp), &[0.0, 1.15, 1.0]);
}

#[test]
fn an_infinite_ratio_that_is_clipped_reaches_no_gradient() {
    let advantage = [1.0, 1.0, 1.0];
    for term in [
        PolicyTerm::PpoClip(PpoClip::lightrft(0.2)),
        PolicyTerm::Gspo(Gspo { log_ratio_cap: None, ..Gspo::default() }),
        level(RatioLevel::Token),
        level(RatioLevel::Sequence),
    ] {
        let logp = leaf(&[900.0, 900.0, 0.0]);
        let ours = tokens(term, &logp, &advantage);
        assert!(numbers(&ours.loss).iter().all(|l| l.is_finite()), "{term:?}");
        assert_eq!(slope(&ours, &logp), [0.0, 0.0, -1.0], "{term:?}");
    }
}

#[test]
fn importance_weights_multiply_the_policy_term_only() {
    // -A logp w = 1 * 0.5, 2 * 2; the geometric mean of 0.5 and 2 is 1.
    let logp = leaf(&[-1.0, -2.0]);
    let (old, advantage, mask) = (t(&[-1.0, -2.0]), t(&[1.0, 1.0]), t(&[1.0, 1.0]));
    let layout = Layout::Packed { cu_seqlens: &[0, 2] };
    let weight = t(&[0.5, 2.0]);
    let batch =
        Batch { weight: Some(&weight), ..Batch::new(&logp, &old, &advantage, &mask, layout) };
    let ours = token_losses(&PolicyTerm::Gpg, &batch).unwrap();
    close(&numbers(&ours.loss), &[0.5, 4.0]);
    let ours = token_losses(&PolicyTerm::GeoMean(GeoMean::default()), &batch).unwrap();
    close(&numbers(&ours.loss), &[-1.0, -1.0]);
    let objective = Objective { policy: PolicyTerm::Gpg, ..Objective::default() };
    let counts = Denominators::from_token_counts([2], 1.0);
    let ours = policy_loss(&objective, &batch, &counts).unwrap();
    close(&grad(&ours.loss, &logp), &[-0.25, -1.0]);
}

#[test]
fn reinforce_is_the_return_above_its_baseline_times_the_sequence_log_prob() {
    // Log-probs of sequences -3 and -3; returns 2 and 1.
    let logp = leaf(&[-1.0, -2.0, -3.0]);
    let (returns, mask) = (t(&[2.0, 1.0]), t(&[1.0; 3]));
    let of = |baseline| reinforce(baseline, &logp, &returns, &mask, TWO_AND_ONE, 2);
    // -(1.5 * -3 + 0.5 * -3) / 2.
    let fixed = of(Baseline::Fixed(0.5)).unwrap();
    close(&numbers(&fixed), &[3.0]);
    close(&grad(&fixed, &logp), &[-0.75, -0.75, -0.25]);
    // Leave one out: 2 - 1 and 1 - 2.
    let rloo = of(Baseline::LeaveOneOut { samples_per_prompt: 2 }).unwrap();
    close(&numbers(&rloo), &[0.0]);
    close(&grad(&rloo, &logp), &[-0.5, -0.5, 0.5]);
    for samples_per_prompt in [0, 1, 3] {
        let refused = of(Baseline::LeaveOneOut { samples_per_prompt });
        assert!(matches!(refused, Err(LossError::Parameter { .. })), "{samples_per_prompt}");
    }
    let empty = reinforce(Baseline::Fixed(0.0), &logp, &returns, &mask, TWO_AND_ONE, 0);
    assert!(matches!(empty, Err(LossError::Empty { .. })));
}

#[test]
fn ptx_is_the_mean_negative_log_prob_times_its_coefficient() {
    let logp = leaf(&[-1.0, -3.0, f64::NAN]);
    let mask = t(&[1.0, 1.0, 0.0]);
    let counts = Denominators::from_token_counts([2, 0], 1.0);
    let loss = ptx(8.0, &logp, &mask, TWO_AND_ONE, &counts).unwrap();
    // 8 * (1 + 3) / 2.
    close(&numbers(&loss), &[16.0]);
    close(&grad(&loss, &logp), &[-4.0, -4.0, 0.0]);
    assert!(ptx(-1.0, &logp, &mask, TWO_AND_ONE, &counts).is_err());
}

#[test]
fn advantages_are_standardized_unless_they_have_no_spread() {
    // 1 and 3: mean 2, unbiased deviation sqrt 2.
    let mask = t(&[1.0, 1.0, 0.0]);
    let of = |values: &[f64], mask: &Tensor| {
        numbers(&standardized_advantages(&t(values), mask, 0.0).unwrap())
    };
    let half = 0.5f64.sqrt();
    close(&of(&[1.0, 3.0, f64::NAN], &mask), &[-half, half, 0.0]);
    close(&of(&[5.0, 5.0, 1.0], &mask), &[0.0, 0.0, 0.0]);
    close(&of(&[5.0, 7.0, 9.0], &t(&[1.0, 0.0, 0.0])), &[0.0; 3]);
    close(&of(&[5.0, 7.0, 9.0], &t(&[0.0; 3])), &[0.0; 3]);
}

#[test]
fn a_floor_turns_an_empty_batch_into_zero() {
    let (loss, none) = (t(&[1.0, 2.0, 3.0]), t(&[0.0; 3]));
    let counts = Denominators::from_token_counts([0, 0], 1.0);
    let mode = Aggregation::TokenMean;
    assert!(aggregate(mode, &loss, &none, TWO_AND_ONE, &counts).is_err());
    let zero = aggregate(mode, &loss, &none, TWO_AND_ONE, &counts.with_floor(1.0)).unwrap();
    assert_eq!(numbers(&zero), [0.0]);
    // Sequences without tokens count where they are told to: (1 + 2)/2 over 2.
    let mask = t(&[1.0, 1.0, 0.0]);
    let counts = Denominators::from_token_counts([2, 0], 1.0).with_all_sequences(2);
    let mode = Aggregation::SeqMeanTokenMean;
    let half = aggregate(mode, &loss, &mask, TWO_AND_ONE, &counts).unwrap();
    close(&numbers(&half), &[0.75]);
}
