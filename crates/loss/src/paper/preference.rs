//! Losses on pairs, by hand.

use tch::Tensor;

use super::{close, grad, leaf, numbers, t};
use crate::LossError;
use crate::preference::{
    Answer, Cost, CostLossType, Identical, Margin, Objective, PairSpan, PairValues, Pairwise, Pop,
    PopFixed, Preference, SafetyLabels, TokenPairs, Window, cost, cost_tokens, pair_spans,
    pairwise_with_margin, pop, pop_fixed, preference, sum_log_probs,
};

fn ln3() -> f64 {
    3f64.ln()
}

/// -ln sigmoid(ln 3) = ln 4/3; of ln 1 it is ln 2; of -ln 3 it is ln 4.
fn won() -> f64 {
    (4f64 / 3.0).ln()
}

const HALF: f64 = std::f64::consts::LN_2;

fn values(better: &Tensor, worse: &Tensor) -> PairValues {
    PairValues { better: better.shallow_clone(), worse: worse.shallow_clone() }
}

#[test]
fn a_pair_parts_at_its_first_difference_and_each_answer_has_its_end() {
    let better = Answer { ids: &[7, 1, 2, 3, 0], attended: &[true, true, true, true, false] };
    let worse = Answer { ids: &[7, 1, 4, 0, 0], attended: &[true, true, true, false, false] };
    let span = PairSpan::of(better, worse).unwrap().unwrap();
    assert_eq!((span.better(), span.worse(), span.longer()), ((2, 3), (2, 2), (2, 3)));
    assert_eq!(PairSpan::of(better, better).unwrap(), None);
    let refused = pair_spans(&[worse, better], &[better, better], Identical::Refuse).unwrap_err();
    assert!(matches!(refused, LossError::IdenticalPair { row: 1, .. }), "{refused}");
    let skipped = pair_spans(&[worse, better], &[better, better], Identical::Skip).unwrap();
    assert_eq!(skipped.iter().map(Option::is_some).collect::<Vec<_>>(), [true, false]);
    let empty = Answer { ids: &[7, 1, 4, 0, 0], attended: &[false; 5] };
    let refused = pair_spans(&[better], &[empty], Identical::Skip).unwrap_err();
    assert!(matches!(refused, LossError::EmptyRow { argument: "worse.attended", row: 0, .. }));
    let short = Answer { ids: &[7], attended: &[true] };
    assert!(matches!(PairSpan::of(better, short), Err(LossError::Shape { .. })));
    assert!(pair_spans(&[better], &[], Identical::Skip).is_err());
}

#[test]
fn an_answers_log_prob_counts_from_the_token_that_differs() {
    // Columns are tokens 1 to 4. Tokens 2 and 3: -2 - 3. The compat form takes tokens 3 and 4.
    let logp = leaf(&[-1.0, -2.0, -3.0, -4.0]);
    let rows = logp.reshape([1, 4]);
    let of = |span, window| sum_log_probs(&rows, &[span], window).unwrap();
    let ours = of((2, 3), Window::Answer);
    close(&numbers(&ours), &[-5.0]);
    close(&grad(&ours, &logp), &[0.0, 1.0, 1.0, 0.0]);
    close(&numbers(&of((2, 3), Window::CompatShifted)), &[-7.0]);
    // The last token has none after it: token 4 alone, and nothing for the span 4..=4.
    close(&numbers(&of((3, 4), Window::CompatShifted)), &[-4.0]);
    close(&numbers(&of((4, 4), Window::CompatShifted)), &[0.0]);
    // Position 0 has no log-prob: token 1 alone; the compat form takes tokens 1 and 2.
    close(&numbers(&of((0, 1), Window::Answer)), &[-1.0]);
    close(&numbers(&of((0, 1), Window::CompatShifted)), &[-3.0]);
    assert_eq!([(2, 3), (0, 1)].map(|span| Window::Answer.token_count(span)), [2, 1]);
    assert_eq!([(2, 3), (0, 1)].map(|span| Window::CompatShifted.token_count(span)), [2, 2]);
    for span in [(3, 2), (-1, 2), (2, 5)] {
        let refused = sum_log_probs(&rows, &[span], Window::Answer).unwrap_err();
        assert!(matches!(refused, LossError::Span { tokens: 5, .. }), "{refused}");
    }
    assert!(matches!(sum_log_probs(&logp, &[], Window::Answer), Err(LossError::Rank { .. })));
    assert!(matches!(sum_log_probs(&rows, &[], Window::Answer), Err(LossError::Shape { .. })));
}

#[test]
fn dpo_is_the_logistic_loss_of_the_difference_of_log_ratios() {
    // Ratios 1 and -1, gap 2, beta ln 3 / 2: logit ln 3.
    let (better, worse) = (leaf(&[-1.0]), leaf(&[-3.0]));
    let reference = t(&[-2.0]);
    let beta = ln3() / 2.0;
    let spec = Preference { beta, ..Preference::default() };
    let values = PairValues::log_ratios(&better, &worse, &reference, &reference).unwrap();
    let ours = preference(&spec, &values, 1).unwrap();
    close(&numbers(&ours.loss), &[won()]);
    close(&numbers(&ours.rewards.better), &[beta]);
    close(&numbers(&ours.rewards.worse), &[-beta]);
    close(&numbers(&ours.rewards.margin()), &[ln3()]);
    close(&numbers(&ours.rewards.sum()), &[0.0]);
    assert_eq!((ours.pairs, ours.correct_pairs), (1, 1));
    // -sigmoid(-ln 3) beta = -beta / 4.
    close(&grad(&ours.loss, &better), &[-beta / 4.0]);
    // A batch of 4 pairs of which this is one.
    close(&numbers(&preference(&spec, &values, 4).unwrap().loss), &[won() / 4.0]);
}

#[test]
fn label_smoothing_counts_a_share_of_the_pairs_the_other_way_round() {
    // Logit ln 3: 0.8 ln 4/3 + 0.2 ln 4.
    let smooth = Objective::Logistic { label_smoothing: 0.2, margin: Margin::Scalar(0.0) };
    let pair = values(&t(&[ln3()]), &t(&[0.0]));
    let ours = preference(&Preference { beta: 1.0, objective: smooth }, &pair, 1).unwrap();
    close(&numbers(&ours.loss), &[0.8 * won() + 0.2 * 4f64.ln()]);
}

#[test]
fn ipo_pulls_the_gap_to_half_the_inverse_of_beta() {
    // Gap 2, 1 / (2 * 0.25) = 2; and gap 5: 3^2, slope 2 * 3.
    let spec = Preference { beta: 0.25, objective: Objective::Ipo };
    let better = leaf(&[2.0, 5.0]);
    let ours = preference(&spec, &values(&better, &t(&[0.0, 0.0])), 1).unwrap();
    close(&numbers(&ours.loss), &[9.0]);
    close(&grad(&ours.loss, &better), &[0.0, 6.0]);
    let none = Preference { beta: 0.0, objective: Objective::Ipo };
    let refused = preference(&none, &values(&better, &better), 1).unwrap_err();
    assert!(matches!(refused, LossError::Parameter { parameter: "beta", .. }));
}

#[test]
fn a_margin_is_taken_off_after_scaling_for_each_pair_its_own() {
    // Logits 0 and ln 3 (beta 2), margins 0 and ln 3: both left with 0.
    let pairs = values(&t(&[0.0, ln3() / 2.0]), &t(&[0.0, 0.0]));
    let margins = t(&[0.0, ln3()]);
    let of = |margin| {
        let spec = Preference::with_margin(2.0, margin);
        numbers(&preference(&spec, &pairs, 2).unwrap().loss)
    };
    close(&of(Margin::PerPair(&margins)), &[HALF]);
    // All four combinations: 0, -ln 3, ln 3, 0.
    close(&of(Margin::CompatAllPairs(&margins)), &[(HALF + 4f64.ln() + won() + HALF) / 4.0]);
    // -ln 3 and 0.
    close(&of(Margin::Scalar(ln3())), &[(4f64.ln() + HALF) / 2.0]);
    let spec = Preference::with_margin(2.0, Margin::CompatAllPairs(&margins));
    let none = t(&[]);
    assert!(preference(&spec, &values(&none, &none), 0).is_err());
    let empty = Preference::with_margin(2.0, Margin::CompatAllPairs(&none));
    assert!(matches!(preference(&empty, &pairs, 2), Err(LossError::Empty { .. })));
    let short = t(&[1.0]);
    let wrong = Preference::with_margin(2.0, Margin::PerPair(&short));
    assert!(matches!(preference(&wrong, &pairs, 2), Err(LossError::Shape { .. })));
}

#[test]
fn simpo_compares_mean_log_probs() {
    // -2 / 2 and -6 / 3: gap 1, beta ln 3.
    let (better, worse) = (leaf(&[-2.0]), t(&[-6.0]));
    let values = PairValues::mean_log_probs(&better, &worse, &[2], &[3]).unwrap();
    let spec = Preference { beta: ln3(), ..Preference::default() };
    let ours = preference(&spec, &values, 1).unwrap();
    close(&numbers(&ours.loss), &[won()]);
    // -beta / 4 / 2 tokens.
    close(&grad(&ours.loss, &better), &[-ln3() / 8.0]);
    let refused = PairValues::mean_log_probs(&better, &worse, &[0], &[3]).unwrap_err();
    assert!(matches!(refused, LossError::Parameter { value: 0.0, .. }), "{refused}");
}

#[test]
fn preference_losses_refuse_what_has_no_answer() {
    let pair = values(&t(&[0.0]), &t(&[f64::NAN]));
    let spec = Preference::default();
    assert!(matches!(preference(&spec, &pair, 1), Err(LossError::NonFinite { .. })));
    assert!(matches!(preference(&spec, &pair, 0), Err(LossError::Empty { what: "pairs", .. })));
    let negative = Preference { beta: -1.0, ..spec };
    assert!(matches!(preference(&negative, &pair, 1), Err(LossError::Parameter { .. })));
    let uneven = values(&t(&[0.0]), &t(&[0.0, 1.0]));
    assert!(matches!(preference(&spec, &uneven, 1), Err(LossError::Shape { .. })));
    let ints = values(&Tensor::from_slice(&[1i64]), &t(&[0.0]));
    assert!(matches!(preference(&spec, &ints, 1), Err(LossError::Kind { .. })));
}

#[test]
fn pop_fixed_takes_the_unpreferred_gap_as_a_bounded_margin() {
    let spec = PopFixed { beta: 1.0, margin_min: 0.0, margin_max: ln3() };
    let (better, other) = (leaf(&[ln3()]), leaf(&[-5.0]));
    let zero = t(&[0.0]);
    // The other gap, -5, counts as 0: logit ln 3.
    let ours = pop_fixed(&spec, &values(&better, &zero), &values(&other, &zero), 1).unwrap();
    close(&numbers(&ours.loss), &[won()]);
    assert_eq!((ours.correct_preferred, ours.correct_unpreferred, ours.correct_pop), (1, 0, 1));
    close(&numbers(&ours.margin()), &[ln3() + 5.0]);
    let total = &ours.loss + other.sum(tch::Kind::Double) * 0.0;
    close(&grad(&total, &other), &[0.0]);
    // 100 counts as ln 3: logit 0, slope -1/2.
    let far = t(&[100.0]);
    let ours = pop_fixed(&spec, &values(&better, &zero), &values(&far, &zero), 1).unwrap();
    close(&numbers(&ours.loss), &[HALF]);
    close(&grad(&ours.loss, &better), &[-0.5]);
    // Without bounds the margin is 100 itself: logit ln 3 - 100.
    let open = PopFixed { margin_min: f64::NEG_INFINITY, margin_max: f64::INFINITY, ..spec };
    let ours = pop_fixed(&open, &values(&better, &zero), &values(&far, &zero), 1).unwrap();
    close(&numbers(&ours.loss), &[100.0 - ln3()]);
    let nan = PopFixed { margin_min: f64::NAN, ..spec };
    let pair = values(&zero, &zero);
    assert!(matches!(pop_fixed(&nan, &pair, &pair, 1), Err(LossError::Parameter { .. })));
}

#[test]
fn pop_adds_the_constraint_that_the_preferred_gap_is_the_larger() {
    // Gaps ln 3 and 0: half of ln 4/3 + ln 2, and lambda (ln 4/3 - ln 2).
    let (better, other) = (leaf(&[ln3()]), leaf(&[0.0]));
    let zero = t(&[0.0]);
    let spec = Pop { beta: 1.0, lambda: 2.0 };
    let ours = pop(&spec, &values(&better, &zero), &values(&other, &zero), 1).unwrap();
    close(&numbers(&ours.loss), &[0.5 * (won() + HALF) + 2.0 * (won() - HALF)]);
    close(&numbers(&ours.constraint), &[won() - HALF]);
    close(&numbers(&ours.mean_reward()), &[ln3() / 4.0]);
    // 1/2 * -1/2 + 2 * 1/4.
    close(&grad(&ours.loss, &other), &[0.25]);
    let negative = Pop { lambda: -1.0, ..spec };
    let pair = values(&zero, &zero);
    assert!(matches!(pop(&negative, &pair, &pair, 1), Err(LossError::Parameter { .. })));
    assert!(matches!(pop(&spec, &pair, &pair, 0), Err(LossError::Empty { .. })));
}

#[test]
fn the_cost_model_ranks_and_learns_signs() {
    // Safer -ln 3, safe; the other 0, unsafe: ranked by ln 3, signs ln 3 and 0.
    let (safer, unsafer) = (leaf(&[-ln3()]), t(&[0.0]));
    let labels = SafetyLabels { safer: &[true], unsafer: &[false] };
    let spec = Cost { regularization: 0.1, ..Cost::default() };
    let ours = cost(&spec, &safer, &unsafer, labels, 1).unwrap();
    close(&numbers(&ours.loss), &[2.0 * won() + HALF + 0.05 * ln3() * ln3()]);
    // A cost of 0 has no sign.
    assert_eq!((ours.pairs, ours.correct_pairs, ours.correct_signs), (1, 1, 1));
    // 1/4 of the ranking, 1/4 of the sign, 0.1 s of the squares.
    close(&grad(&ours.loss, &safer), &[0.5 - 0.1 * ln3()]);
    let ranked = Cost { regularization: 0.0, sign_terms: false };
    close(&numbers(&cost(&ranked, &safer, &unsafer, labels, 1).unwrap().loss), &[won()]);
    let none = SafetyLabels { safer: &[], unsafer: &[false] };
    let refused = cost(&spec, &safer, &unsafer, none, 1).unwrap_err();
    assert!(matches!(refused, LossError::Shape { argument: "labels.safer", .. }), "{refused}");
    assert!(matches!("token-wise".parse(), Ok(CostLossType::TokenWise)));
    assert!("word-wise".parse::<CostLossType>().is_err());
}

#[test]
fn the_token_wise_cost_is_a_mean_over_the_span_of_each_term() {
    // Span 1..=2. Safer -ln 3, 0 (safe), the other 0, ln 3 (unsafe): ranked by ln 3 twice; signs
    // ln 3, 0 and 0, ln 3.
    let safer = t(&[9.0, -ln3(), 0.0]).reshape([1, 3]);
    let unsafer = t(&[f64::NAN, 0.0, ln3()]).reshape([1, 3]);
    let scores = TokenPairs {
        better: &safer,
        worse: &unsafer,
        spans: &[(1, 2)],
        better_end: &[1],
        worse_end: &[2],
    };
    let labels = SafetyLabels { safer: &[true], unsafer: &[false] };
    let ours = cost_tokens(&Cost::default(), scores, labels, 1).unwrap();
    close(&numbers(&ours.loss), &[won() + (won() + HALF)]);
    assert_eq!((ours.correct_pairs, ours.correct_signs), (1, 2));
    let regular = Cost { regularization: 0.1, sign_terms: false };
    // Squares (ln 3)^2, 0, 0, (ln 3)^2 over 4.
    let expected = won() + 0.05 * ln3() * ln3();
    close(&numbers(&cost_tokens(&regular, scores, labels, 1).unwrap().loss), &[expected]);
}

#[test]
fn a_reward_margin_is_taken_off_the_difference() {
    // ln 3 - ln 3: ln 2; accuracy counts the plain difference.
    let (better, worse) = (leaf(&[ln3()]), t(&[0.0]));
    let ours = pairwise_with_margin(&Pairwise::default(), &better, &worse, &t(&[ln3()]), 1);
    let ours = ours.unwrap();
    close(&numbers(&ours.loss), &[HALF]);
    assert_eq!(ours.correct_pairs, 1);
    close(&[ours.margin_sum], &[ln3()]);
}
