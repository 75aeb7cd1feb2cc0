//! What holds for every policy term, whatever the numbers.

use proptest::prelude::*;
use tch::{Kind, Tensor};

use super::{Columns, Token, close, denominators, gradient, sequences};
use crate::aggregate::{Aggregation, Layout, token_weights};
use crate::policy::{
    Batch, Cispo, Cpg, GeoMean, Gspo, LevelClip, Objective, PolicyTerm, PpoClip, RatioLevel, Sapo,
    TokenSums, policy_loss, weighted_policy_loss,
};

const TERMS: usize = 9;

fn term(index: usize) -> PolicyTerm {
    let level = |level| PolicyTerm::LevelClip(LevelClip { level, ..LevelClip::default() });
    match index {
        0 => PolicyTerm::PpoClip(PpoClip::default()),
        1 => PolicyTerm::Cpg(Cpg::default()),
        2 => PolicyTerm::Gspo(Gspo { clip_low: 0.2, clip_high: 0.2, ..Gspo::default() }),
        3 => PolicyTerm::Cispo(Cispo::default()),
        4 => PolicyTerm::Sapo(Sapo::default()),
        5 => PolicyTerm::GeoMean(GeoMean::default()),
        6 => PolicyTerm::Gpg,
        7 => level(RatioLevel::Token),
        _ => level(RatioLevel::Sequence),
    }
}

fn objective(index: usize) -> Objective {
    let aggregation = Aggregation::SeqMeanTokenMean;
    Objective { policy: term(index), aggregation, ..Objective::default() }
}

fn whole(index: usize, rows: &[Vec<Token>]) -> (TokenSums, Vec<f64>) {
    let columns = Columns::packed(rows);
    let terms = policy_loss(&objective(index), &columns.batch(), &denominators(rows)).unwrap();
    (terms.sums, gradient(&terms.loss, &columns.logp))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn whole_sequences_in_any_cut_and_order_give_the_same_loss(
        rows in sequences(),
        cut in 1usize..4,
        by in 0usize..6,
    ) {
        let counts = denominators(&rows);
        for index in 0..TERMS {
            let (sums, expected) = whole(index, &rows);
            let (mut total, mut gradients) = (TokenSums::default(), Vec::new());
            for micro in rows.chunks(cut) {
                let columns = Columns::packed(micro);
                let terms = policy_loss(&objective(index), &columns.batch(), &counts).unwrap();
                total += terms.sums;
                gradients.extend(gradient(&terms.loss, &columns.logp));
            }
            prop_assert!(close(&total.as_array(), &sums.as_array()), "{:?}", term(index));
            prop_assert!(close(&gradients, &expected), "{:?}", term(index));
            let mut moved = rows.clone();
            moved.rotate_left(by % rows.len());
            let moved = whole(index, &moved).0;
            prop_assert!(close(&moved.as_array(), &sums.as_array()), "{:?}", term(index));
        }
    }

    #[test]
    fn terms_that_do_not_span_sequences_may_be_cut_through_them(
        rows in sequences(),
        chunk in 1usize..5,
    ) {
        for index in (0..TERMS).filter(|index| !term(*index).spans_sequences()) {
            let (sums, expected) = whole(index, &rows);
            let columns = Columns::packed(&rows);
            let layout = Layout::Packed { cu_seqlens: &columns.bounds };
            let mode = Aggregation::SeqMeanTokenMean;
            let counts = denominators(&rows);
            let weights =
                token_weights(mode, &columns.mask, layout, &counts, Kind::Double).unwrap();
            let (mut total, mut gradients, mut at) = (TokenSums::default(), Vec::new(), 0);
            for tokens in rows.concat().chunks(chunk) {
                let length = tokens.len() as i64;
                let piece = Columns::of(tokens, vec![0, length]);
                let weights = weights.narrow(0, at, length);
                let terms =
                    weighted_policy_loss(&objective(index), &piece.batch(), &weights).unwrap();
                total += terms.sums;
                gradients.extend(gradient(&terms.loss, &piece.logp));
                at += length;
            }
            prop_assert!(close(&total.as_array(), &sums.as_array()), "{:?}", term(index));
            prop_assert!(close(&gradients, &expected), "{:?}", term(index));
        }
    }

    #[test]
    fn what_the_mask_leaves_out_has_no_effect(rows in sequences()) {
        let mut junk = rows.clone();
        for token in junk.iter_mut().flatten().filter(|t| !t.4) {
            *token = (f64::NAN, f64::INFINITY, f64::NAN, f64::NAN, false);
        }
        for index in 0..TERMS {
            let (a, b) = (whole(index, &rows), whole(index, &junk));
            prop_assert!(close(&a.0.as_array(), &b.0.as_array()), "{:?}", term(index));
            prop_assert!(close(&a.1, &b.1), "{:?}", term(index));
        }
    }

    #[test]
    fn the_loss_is_homogeneous_in_the_advantages(rows in sequences(), scale in 0.1f64..10.0) {
        let mut scaled = rows.clone();
        scaled.iter_mut().flatten().for_each(|t| t.2 *= scale);
        for index in 0..TERMS {
            let (a, b) = (whole(index, &rows).0.loss, whole(index, &scaled).0.loss);
            prop_assert!((a * scale - b).abs() < 1e-9, "{:?}: {a} {b}", term(index));
        }
    }

    #[test]
    fn on_the_sampling_policy_every_term_has_the_gradient_of_its_log_prob(rows in sequences()) {
        // With logp = old_logp, terms by a ratio have slope -A r = -A; CISPO and GPG -A too.
        // With one advantage a sequence, so have those by the ratio of a sequence.
        let mut on = rows.clone();
        for row in &mut on {
            let advantage = row[0].2;
            row.iter_mut().for_each(|t| (t.1, t.2) = (t.0, advantage));
        }
        let expected = whole(6, &on).1;
        for index in 0..TERMS {
            prop_assert!(close(&whole(index, &on).1, &expected), "{:?}", term(index));
        }
    }

    #[test]
    fn weights_of_one_change_nothing(rows in sequences()) {
        for index in 0..TERMS {
            let columns = Columns::packed(&rows);
            let ones = Tensor::ones_like(&columns.logp.detach());
            let batch = Batch { weight: Some(&ones), ..columns.batch() };
            let terms = policy_loss(&objective(index), &batch, &denominators(&rows)).unwrap();
            let (sums, _) = whole(index, &rows);
            prop_assert!((terms.sums.loss - sums.loss).abs() < 1e-8, "{:?}", term(index));
        }
    }
}
