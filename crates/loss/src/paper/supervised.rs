//! The language-model loss and the token a score is read from, by hand.

use tch::Tensor;

use super::{close, grad, leaf, numbers, t};
use crate::LossError;
use crate::scores::{Pooling, at_columns};
use crate::supervised::{CausalLm, causal_lm};

#[test]
fn the_language_model_loss_is_the_mean_surprise_of_the_next_tokens() {
    // Logits 0, ln 3 give 1/4 and 3/4. Targets: 1 after the first token, none after the second,
    // 0 after the third: (ln 4/3 + ln 4) / 2. The first label and the last logits have no part.
    let step = [0.0, 3f64.ln()];
    let logits = leaf(&[step, step, step, [f64::NAN, 0.0]].concat());
    let labels = Tensor::from_slice(&[1i64, 1, -100, 0]).reshape([1, 4]);
    let spec = CausalLm::default();
    assert_eq!(spec.target_count([[1i64, 1, -100, 0].as_slice()]), 2);
    let of = |targets| causal_lm(&spec, &logits.reshape([1, 4, 2]), &labels, targets);
    let ours = of(2).unwrap();
    close(&numbers(&ours.loss), &[((4f64 / 3.0).ln() + 4f64.ln()) / 2.0]);
    assert_eq!(ours.targets, 2);
    // (p - onehot) / 2.
    let expected = [0.125, -0.125, 0.0, 0.0, -0.375, 0.375, 0.0, 0.0];
    close(&grad(&ours.loss, &logits), &expected);
    assert!(matches!(of(0), Err(LossError::Empty { what: "targets", .. })));
}

#[test]
fn rows_without_a_target_add_nothing() {
    let logits = leaf(&[1.0, 2.0, 3.0, 4.0]);
    let ignored = Tensor::from_slice(&[0i64, -100]).reshape([1, 2]);
    let ours = causal_lm(&CausalLm::default(), &logits.reshape([1, 2, 2]), &ignored, 5).unwrap();
    assert_eq!((numbers(&ours.loss), ours.targets), (vec![0.0], 0));
    assert_eq!(grad(&ours.loss, &logits), [0.0; 4]);
    // One token has no next one; no token even less.
    for width in [1i64, 0] {
        let logits = Tensor::ones([2, width, 3], (tch::Kind::Double, tch::Device::Cpu));
        let labels = Tensor::zeros([2, width], (tch::Kind::Int64, tch::Device::Cpu));
        let ours = causal_lm(&CausalLm::default(), &logits, &labels, 5).unwrap();
        assert_eq!((numbers(&ours.loss), ours.targets), (vec![0.0], 0));
    }
}

#[test]
fn labels_outside_the_vocabulary_are_refused() {
    let logits = t(&[0.0; 4]).reshape([1, 2, 2]);
    for label in [-1i64, 2] {
        let labels = Tensor::from_slice(&[0, label]).reshape([1, 2]);
        let refused = causal_lm(&CausalLm::default(), &logits, &labels, 1).unwrap_err();
        assert_eq!(refused, LossError::Label { function: "causal_lm", label, vocabulary: 2 });
        // As the ignored label it is none.
        let spec = CausalLm { ignore_index: label };
        assert_eq!(causal_lm(&spec, &logits, &labels, 1).unwrap().targets, 0);
    }
    let floats = t(&[0.0, 1.0]).reshape([1, 2]);
    let refused = causal_lm(&CausalLm::default(), &logits, &floats, 1);
    assert!(matches!(refused, Err(LossError::Kind { argument: "labels", .. })));
}

#[test]
fn a_score_is_read_at_the_last_attended_token_whichever_side_the_padding_is_on() {
    let attended = t(&[1.0, 1.0, 0.0, 0.0, 1.0, 1.0, 1.0, 0.0, 1.0]).reshape([3, 3]);
    let last = Pooling::LastAttended.indices(&attended).unwrap();
    assert_eq!(Vec::<i64>::try_from(&last).unwrap(), [1, 2, 2]);
    // The count less one is right for the first row only.
    let count = Pooling::CompatTokenCount.indices(&attended).unwrap();
    assert_eq!(Vec::<i64>::try_from(&count).unwrap(), [1, 1, 1]);
    let scores = leaf(&[1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0]);
    let ours = at_columns(&scores.reshape([3, 3]), &last).unwrap();
    close(&numbers(&ours), &[2.0, 6.0, 9.0]);
    let slope = grad(&ours.sum(tch::Kind::Double), &scores);
    close(&slope, &[0.0, 1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 1.0]);
    let none = t(&[1.0, 0.0, 0.0, 0.0]).reshape([2, 2]);
    let refused = Pooling::LastAttended.indices(&none).unwrap_err();
    assert!(matches!(refused, LossError::EmptyRow { row: 1, .. }), "{refused}");
    let wrapped = Pooling::CompatTokenCount.indices(&none).unwrap();
    assert_eq!(Vec::<i64>::try_from(&wrapped).unwrap(), [0, 1]);
    assert!(matches!(at_columns(&none, &(&last + 7).narrow(0, 0, 2)), Err(LossError::Span { .. })));
    assert!(matches!(at_columns(&none, &last), Err(LossError::Shape { .. })));
    assert!(matches!(Pooling::LastAttended.indices(&t(&[1.0])), Err(LossError::Rank { .. })));
}
