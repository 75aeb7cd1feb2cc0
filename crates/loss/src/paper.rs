//! Each equation on numbers small enough to check by hand, gradients included. The comment above
//! an assertion is the hand calculation.

mod divergence;
mod policy;
mod preference;
mod supervised;

use tch::{Kind, Tensor};

use crate::LossError;
use crate::aggregate::{Aggregation, Denominators, Layout, aggregate, token_weights};
use crate::kl::{self, Clamps, kl_tokens};
use crate::policy::{
    Batch, Cpg, KlTerm, Objective, PolicyTerm, PpoClip, TokenSums, cpg, policy_loss, ppo_clip,
};
use crate::preference::{Pairwise, TokenPairs, pairwise, pairwise_tokens};
use crate::value::{ValueLoss, value_loss};
use crate::{entropy::entropy, logprobs::log_probs};

fn t(values: &[f64]) -> Tensor {
    Tensor::from_slice(values)
}

fn leaf(values: &[f64]) -> Tensor {
    t(values).set_requires_grad(true)
}

fn grad(loss: &Tensor, of: &Tensor) -> Vec<f64> {
    numbers(&Tensor::run_backward(&[loss], &[of], false, false)[0])
}

fn numbers(tensor: &Tensor) -> Vec<f64> {
    let flat = tensor.detach().to_kind(Kind::Double).reshape([-1]);
    (0..flat.size()[0]).map(|i| flat.double_value(&[i])).collect()
}

#[track_caller]
fn close(got: &[f64], expected: &[f64]) {
    assert_eq!(got.len(), expected.len(), "{got:?} vs {expected:?}");
    for (g, e) in got.iter().zip(expected) {
        assert!((g - e).abs() < 1e-9, "{got:?} vs {expected:?}");
    }
}

/// Log of a ratio, so that tests can speak of ratios.
fn ratios(values: &[f64]) -> Vec<f64> {
    values.iter().map(|r: &f64| r.ln()).collect()
}

#[test]
fn the_four_aggregations_weigh_tokens_as_defined() {
    // Two sequences of 1 and 3 tokens (and one of none), losses 4 | 1 2 3 | -.
    let loss = t(&[4.0, 9.0, 9.0, 1.0, 2.0, 3.0, 9.0, 9.0, 9.0]).reshape([3, 3]);
    let mask = t(&[1.0, 0.0, 0.0, 1.0, 1.0, 1.0, 0.0, 0.0, 0.0]).reshape([3, 3]);
    let whole = Denominators::from_mask(&mask, Layout::Padded, 5.0).unwrap();
    assert_eq!(whole, Denominators::from_token_counts([1, 3, 0], 5.0));
    let of = |mode| numbers(&aggregate(mode, &loss, &mask, Layout::Padded, &whole).unwrap())[0];
    // 10/4; (4 + 6)/2; (4/1 + 6/3)/2; 10/5.
    close(&MODES.map(of), &[2.5, 5.0, 3.0, 2.0]);
    let packed = t(&[4.0, 1.0, 2.0, 3.0]);
    let ones = packed.ones_like();
    let layout = Layout::Packed { cu_seqlens: &[0, 1, 4, 4] };
    for mode in MODES {
        let padded = of(mode);
        let ours = aggregate(mode, &packed, &ones, layout, &whole).unwrap();
        close(&numbers(&ours), &[padded]);
    }
}

const MODES: [Aggregation; 4] = [
    Aggregation::TokenMean,
    Aggregation::SeqMeanTokenSum,
    Aggregation::SeqMeanTokenMean,
    Aggregation::SeqMeanTokenSumNorm,
];

#[test]
fn layouts_and_denominators_that_do_not_fit_are_refused() {
    let loss = t(&[1.0, 2.0]);
    let counts = Denominators::from_token_counts([2], 2.0);
    let of = |mask: &Tensor, layout, counts| {
        aggregate(Aggregation::TokenMean, &loss, mask, layout, counts).unwrap_err()
    };
    let ones = loss.ones_like();
    let packed = Layout::Packed { cu_seqlens: &[0, 3] };
    assert_eq!(
        of(&ones, packed, &counts).to_string(),
        "token_weights: cu_seqlens [0, 3] does not rise from 0 to 2 tokens"
    );
    assert!(matches!(of(&ones, Layout::Padded, &counts), LossError::Rank { .. }));
    let short = t(&[1.0]);
    assert!(matches!(of(&short, Layout::Padded, &counts), LossError::Shape { .. }));
    let none = Denominators::from_token_counts([], 2.0);
    let whole = Layout::Packed { cu_seqlens: &[0, 2] };
    assert!(matches!(of(&ones, whole, &none), LossError::Empty { what: "tokens", .. }));
    let no_norm = Denominators { norm_tokens: 0.0, ..counts };
    let mode = Aggregation::SeqMeanTokenSumNorm;
    let refused = token_weights(mode, &ones, whole, &no_norm, Kind::Double).unwrap_err();
    assert!(matches!(refused, LossError::Parameter { parameter: "norm_tokens", .. }));
    assert!("mean".parse::<Aggregation>().is_err());
}

#[test]
fn ppo_clips_the_ratio_and_the_gradient_with_it() {
    // Ratios 1.5 up and down. A = 1: max(-1.5, -1.28) = -1.28, clipped, no gradient.
    // A = -1: max(1.5, 1.28) = 1.5, gradient -A r = 1.5. Ratio 0.5, A = -1: max(0.5, 0.8) = 0.8.
    let logp = leaf(&ratios(&[1.5, 1.5, 0.5]));
    let old = t(&[0.0; 3]);
    let advantage = t(&[1.0, -1.0, -1.0]);
    let mask = t(&[1.0; 3]);
    let spec = PpoClip { clip_high: 0.28, ..PpoClip::default() };
    let tokens = ppo_clip(&spec, &logp, &old, &advantage, &mask).unwrap();
    close(&numbers(&tokens.loss), &[-1.28, 1.5, 0.8]);
    assert_eq!(numbers(&tokens.clipped), [1.0, 0.0, 1.0]);
    close(&grad(&tokens.loss.sum(Kind::Double), &logp), &[0.0, 1.5, 0.0]);
}

#[test]
fn dual_clip_bounds_the_loss_of_negative_advantages() {
    // Ratio 10, A = -1: the loss is 10 without, 3 with a dual clip of 3; then no gradient.
    let logp = leaf(&ratios(&[10.0, 10.0]));
    let (old, advantage, mask) = (t(&[0.0; 2]), t(&[-1.0, 1.0]), t(&[1.0; 2]));
    let tokens = ppo_clip(&PpoClip::default(), &logp, &old, &advantage, &mask).unwrap();
    close(&numbers(&tokens.loss), &[3.0, -1.2]);
    assert_eq!(numbers(&tokens.clipped_lower), [1.0, 0.0]);
    close(&grad(&tokens.loss.sum(Kind::Double), &logp), &[0.0, 0.0]);
    let off = PpoClip::lightrft(0.2);
    let tokens = ppo_clip(&off, &logp, &old, &advantage, &mask).unwrap();
    close(&numbers(&tokens.loss), &[10.0, -1.2]);
    for bad in [
        PpoClip { clip_low: -0.1, ..off },
        PpoClip { clip_high: f64::NAN, ..off },
        PpoClip { dual_clip: Some(1.0), ..off },
        PpoClip { log_ratio_bound: Some(0.0), ..off },
    ] {
        let refused = ppo_clip(&bad, &logp, &old, &advantage, &mask).unwrap_err();
        assert!(matches!(refused, LossError::Parameter { .. }), "{refused}");
    }
}

#[test]
fn the_log_ratio_is_bounded_before_exp() {
    let logp = leaf(&[900.0]);
    let (old, advantage, mask) = (t(&[0.0]), t(&[-1.0]), t(&[1.0]));
    let tokens = ppo_clip(&PpoClip::default(), &logp, &old, &advantage, &mask).unwrap();
    close(&numbers(&tokens.loss), &[3.0]);
    assert_eq!(numbers(&tokens.log_ratio), [20.0]);
    close(&grad(&tokens.loss.sum(Kind::Double), &logp), &[0.0]);
}

#[test]
fn cpg_is_the_log_prob_bounded_near_the_old_one() {
    // old 0. A = 2: -2 min(0.1, ln 1.2) = -0.2, gradient -2; past ln 1.2 the gradient is 0.
    let logp = leaf(&[0.1, 0.5, -0.5]);
    let (old, advantage, mask) = (t(&[0.0; 3]), t(&[2.0, 2.0, -1.0]), t(&[1.0; 3]));
    let tokens = cpg(&Cpg::default(), &logp, &old, &advantage, &mask).unwrap();
    close(&numbers(&tokens.loss), &[-0.2, -2.0 * 1.2f64.ln(), 0.8f64.ln()]);
    assert_eq!(numbers(&tokens.clipped), [0.0, 1.0, 1.0]);
    close(&grad(&tokens.loss.sum(Kind::Double), &logp), &[-2.0, 0.0, 0.0]);
}

/// A packed batch of two sequences, the first of which has a token outside the mask that holds
/// NaN everywhere.
struct Tokens {
    logp: Tensor,
    old: Tensor,
    advantage: Tensor,
    reference: Tensor,
    entropy: Tensor,
    mask: Tensor,
}

impl Tokens {
    fn new() -> Self {
        let nan = f64::NAN;
        Self {
            logp: leaf(&[nan, -1.0, -0.5, -2.0]),
            old: t(&[nan, -1.1, -0.7, -1.5]),
            advantage: t(&[nan, 1.0, -1.0, 0.5]),
            reference: t(&[nan, -1.5, -0.5, -1.0]),
            entropy: t(&[nan, 1.0, 2.0, 3.0]),
            mask: t(&[0.0, 1.0, 1.0, 1.0]),
        }
    }

    fn batch(&self) -> Batch<'_> {
        let layout = Layout::Packed { cu_seqlens: &[0, 2, 4] };
        Batch {
            ref_logp: Some(&self.reference),
            entropy: Some(&self.entropy),
            ..Batch::new(&self.logp, &self.old, &self.advantage, &self.mask, layout)
        }
    }
}

fn leash() -> Objective {
    let kl = KlTerm {
        coef: 0.1,
        kind: kl::Kind::K1,
        clamps: Clamps::Off,
        gradient: kl::Gradient::Estimate,
    };
    Objective { kl: Some(kl), entropy_coef: 0.01, ..Objective::default() }
}

#[test]
fn the_objective_is_policy_term_plus_kl_minus_entropy() {
    let tokens = Tokens::new();
    let counts = Denominators::from_token_counts([1, 2], 4.0);
    let ours = policy_loss(&leash(), &tokens.batch(), &counts).unwrap();
    // Ratios e^0.1, e^0.2 (above 1.2, but A < 0), e^-0.5.
    let policy = (-0.1f64.exp() + 0.2f64.exp() - 0.5 * (-0.5f64).exp()) / 3.0;
    // d = 0.5, 0, -1; entropies 1, 2, 3.
    let (kl, entropy) = (-0.5 / 3.0, 2.0);
    close(
        &[ours.sums.policy_loss, ours.sums.kl_loss, ours.sums.entropy_loss],
        &[policy, kl, entropy],
    );
    close(&numbers(&ours.loss), &[policy + 0.1 * kl - 0.01 * entropy]);
    close(&[ours.sums.tokens, ours.sums.entropy, ours.sums.reference_kl], &[3.0, 6.0, -0.5]);
    close(&[ours.sums.approx_kl_mean()], &[-(0.1 + 0.2 - 0.5) / 3.0]);
    let g = grad(&ours.loss, &tokens.logp);
    assert_eq!(g[0], 0.0, "NaN outside the mask reaches no gradient");
    close(&g[1..2], &[(-0.1f64.exp() + 0.1) / 3.0]);
}

#[test]
fn what_an_objective_needs_and_lacks_is_named() {
    let tokens = Tokens::new();
    let counts = Denominators::from_token_counts([1, 2], 4.0);
    let bare = Batch { ref_logp: None, entropy: None, ..tokens.batch() };
    let refused = policy_loss(&leash(), &bare, &counts).unwrap_err();
    assert_eq!(
        refused.to_string(),
        "policy_loss: ref_logp is missing, needed because the objective has a KL term"
    );
    let entropic = Objective { kl: None, ..leash() };
    let refused = policy_loss(&entropic, &bare, &counts).unwrap_err();
    assert!(matches!(refused, LossError::Missing { argument: "entropy", .. }));
    let inside = t(&[1.0; 4]);
    let nan = Batch { mask: &inside, ..tokens.batch() };
    let refused = policy_loss(&leash(), &nan, &counts).unwrap_err();
    assert!(matches!(refused, LossError::NonFinite { .. }), "{refused}");
    let wide = t(&[0.0; 3]);
    let refused = policy_loss(&leash(), &Batch { old_logp: &wide, ..tokens.batch() }, &counts);
    assert_eq!(refused.unwrap_err().to_string(), "ppo_clip: old_logp has shape [3], expected [4]");
}

#[test]
fn a_micro_batch_without_tokens_contributes_nothing() {
    let tokens = Tokens::new();
    let none = t(&[0.0; 4]);
    let counts = Denominators::from_token_counts([1, 2], 4.0);
    let ours = policy_loss(&leash(), &Batch { mask: &none, ..tokens.batch() }, &counts).unwrap();
    assert_eq!(ours.sums, TokenSums::default());
    assert_eq!(ours.sums.clip_fraction(), 0.0);
    assert_eq!(grad(&ours.loss, &tokens.logp), [0.0; 4]);
}

#[test]
fn kl_estimates_and_their_gradients() {
    // d = ln 2. k1: d, gradient 1. |d|: 1. k2: d^2/2, d. k3: 1/2 - 1 + d, gradient 1 - 1/2.
    let ln2 = 2f64.ln();
    for (name, value, slope) in [
        ("k1", ln2, 1.0),
        ("abs", ln2, 1.0),
        ("mse", ln2 * ln2 / 2.0, ln2),
        ("low_var_kl", ln2 - 0.5, 0.5),
    ] {
        let logp = leaf(&[0.0]);
        let tokens = kl_tokens(name.parse().unwrap(), Clamps::Off, &logp, &t(&[-ln2])).unwrap();
        close(&numbers(&tokens), &[value]);
        close(&grad(&tokens, &logp), &[slope]);
    }
    let far = leaf(&[-30.0]);
    let tokens = kl_tokens(kl::Kind::K3, Clamps::Verl, &far, &t(&[0.0])).unwrap();
    assert_eq!((numbers(&tokens), grad(&tokens, &far)), (vec![10.0], vec![0.0]));
    assert!("full".parse::<kl::Kind>().is_err());
}

#[test]
fn log_probs_and_entropy_of_a_small_vocabulary() {
    // Logits 0, ln 3: p = 1/4, 3/4.
    let logits = leaf(&[0.0, 3f64.ln()]);
    let ids = Tensor::from_slice(&[1i64]);
    let rows = logits.reshape([1, 2]);
    let logp = log_probs(&rows, &ids).unwrap();
    close(&numbers(&logp), &[0.75f64.ln()]);
    close(&grad(&logp.sum(Kind::Double), &logits), &[-0.25, 0.25]);
    let h = entropy(&logits.reshape([1, 2])).unwrap();
    close(&numbers(&h), &[-0.25 * 0.25f64.ln() - 0.75 * 0.75f64.ln()]);
    let floats = t(&[1.0]);
    assert!(matches!(log_probs(&rows, &floats), Err(LossError::Kind { argument: "ids", .. })));
    assert!(matches!(log_probs(&rows, &ids.repeat([2])), Err(LossError::Shape { .. })));
    let half = rows.to_kind(Kind::BFloat16);
    assert_eq!(log_probs(&half, &ids).unwrap().kind(), Kind::Float);
}

#[test]
fn the_value_loss_takes_the_worse_of_plain_and_clipped() {
    // v 2, old 0, R 3, clip 0.5: plain 1, clipped (0.5 - 3)^2 = 6.25: half of it, no gradient.
    let values = leaf(&[2.0, f64::NAN]);
    let (old, returns, mask) = (t(&[0.0, 1.0]), t(&[3.0, 1.0]), t(&[1.0, 0.0]));
    let layout = Layout::Packed { cu_seqlens: &[0, 2] };
    let counts = Denominators::from_token_counts([1], 1.0);
    let of = |spec: ValueLoss| {
        value_loss(&spec, &values, &old, &returns, &mask, layout, &counts).unwrap()
    };
    let clipped = of(ValueLoss::default());
    close(&numbers(&clipped.loss), &[3.125]);
    assert_eq!(clipped.clipped_tokens, 1.0);
    assert_eq!(grad(&clipped.loss, &values), [0.0, 0.0]);
    let plain = of(ValueLoss { clip: None, ..ValueLoss::default() });
    close(&numbers(&plain.loss), &[0.5]);
    close(&grad(&plain.loss, &values), &[-1.0, 0.0]);
}

#[test]
fn pairs_are_ranked_by_the_logistic_of_their_margin() {
    // Margins 0 and ln 3: -ln 1/2 and -ln 3/4; squares 1 + 1 + (ln 3)^2 + 0 over 4.
    let ln3 = 3f64.ln();
    let (better, worse) = (leaf(&[1.0, ln3]), t(&[1.0, 0.0]));
    let spec = Pairwise { regularization: 0.1 };
    let ours = pairwise(&spec, &better, &worse, 2).unwrap();
    let expected = (2f64.ln() - 0.75f64.ln()) / 2.0 + 0.1 * (2.0 + ln3 * ln3) / 4.0;
    close(&numbers(&ours.loss), &[expected]);
    assert_eq!((ours.pairs, ours.correct_pairs), (2, 1));
    close(&[ours.margin_sum], &[ln3]);
    // -sigmoid(-margin)/2 + 0.1 * 2 b / 4.
    close(&grad(&ours.loss, &better), &[-0.25 + 0.05, -0.125 + 0.05 * ln3]);
    assert!(matches!(pairwise(&spec, &better, &worse, 0), Err(LossError::Empty { .. })));
    let nan = t(&[f64::NAN, 0.0]);
    assert!(matches!(pairwise(&spec, &better, &nan, 2), Err(LossError::NonFinite { .. })));
}

#[test]
fn token_wise_pairs_are_ranked_over_the_span_in_which_they_differ() {
    // Span 1..=2 of margins 0 and ln 3: mean of -ln 1/2 and -ln 3/4.
    let better = t(&[9.0, 1.0, 3f64.ln()]).reshape([1, 3]);
    let worse = t(&[-9.0, 1.0, 0.0]).reshape([1, 3]);
    let scores = |spans| TokenPairs {
        better: &better,
        worse: &worse,
        spans,
        better_end: &[2],
        worse_end: &[2],
    };
    let spec = Pairwise::default();
    let ours = pairwise_tokens(&spec, scores(&[(1, 2)]), 1).unwrap();
    close(&numbers(&ours.loss), &[(2f64.ln() - 0.75f64.ln()) / 2.0]);
    assert_eq!(ours.correct_pairs, 1);
    for spans in &[[(2, 1)], [(0, 3)], [(-1, 1)]] {
        let refused = pairwise_tokens(&spec, scores(spans), 1).unwrap_err();
        assert!(matches!(refused, LossError::Span { .. }), "{refused}");
    }
}

#[test]
fn the_policy_term_can_be_cpg() {
    let tokens = Tokens::new();
    let counts = Denominators::from_token_counts([1, 2], 4.0);
    let objective = Objective { policy: PolicyTerm::Cpg(Cpg::default()), ..Objective::default() };
    let ours = policy_loss(&objective, &tokens.batch(), &counts).unwrap();
    // -1 * -1.0; 1 * max(-0.5, -0.7 + ln 0.8); -0.5 * min(-2, ...).
    close(&[ours.sums.loss], &[(1.0 - 0.5 + 1.0) / 3.0]);
}
