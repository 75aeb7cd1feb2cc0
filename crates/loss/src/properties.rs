//! What must hold whatever the numbers: above all that a loss does not depend on how its batch
//! was cut or laid out.

mod policy;
mod preference;

use proptest::prelude::*;
use tch::{Kind, Tensor};

use crate::aggregate::{Aggregation, Denominators, Layout, token_weights};
use crate::kl::{self, Clamps};
use crate::policy::{Batch, KlTerm, Objective, TokenSums, policy_loss, weighted_policy_loss};
use crate::preference::{Pairwise, pairwise};

/// One token: logp, old logp, advantage, reference logp, in the mask?
type Token = (f64, f64, f64, f64, bool);

const MODES: [Aggregation; 4] = [
    Aggregation::TokenMean,
    Aggregation::SeqMeanTokenSum,
    Aggregation::SeqMeanTokenMean,
    Aggregation::SeqMeanTokenSumNorm,
];

fn sequences() -> impl Strategy<Value = Vec<Vec<Token>>> {
    let token = (-4.0f64..0.0, -4.0f64..0.0, -2.0f64..2.0, -4.0f64..0.0, prop::bool::weighted(0.8));
    prop::collection::vec(prop::collection::vec(token, 1..7), 1..7)
        .prop_filter("a batch has a token", |b| b.iter().flatten().any(|t| t.4))
}

fn objective(aggregation: Aggregation) -> Objective {
    let kl = KlTerm {
        coef: 0.2,
        kind: kl::Kind::K3,
        clamps: Clamps::Verl,
        gradient: kl::Gradient::Estimate,
    };
    Objective { aggregation, kl: Some(kl), ..Objective::default() }
}

fn denominators(batch: &[Vec<Token>]) -> Denominators {
    let counts = batch.iter().map(|row| row.iter().filter(|t| t.4).count());
    Denominators::from_token_counts(counts, 11.0)
}

/// Columns of tokens as tensors, `pick`ed in the order of a batch's tokens.
struct Columns {
    logp: Tensor,
    old: Tensor,
    advantage: Tensor,
    reference: Tensor,
    mask: Tensor,
    bounds: Vec<i64>,
}

impl Columns {
    fn packed(rows: &[Vec<Token>]) -> Self {
        let mut bounds = vec![0];
        for row in rows {
            bounds.push(bounds[bounds.len() - 1] + row.len() as i64);
        }
        Self::of(&rows.concat(), bounds)
    }

    fn of(tokens: &[Token], bounds: Vec<i64>) -> Self {
        let column =
            |f: fn(&Token) -> f64| Tensor::from_slice(&tokens.iter().map(f).collect::<Vec<f64>>());
        Self {
            logp: column(|t| t.0).set_requires_grad(true),
            old: column(|t| t.1),
            advantage: column(|t| t.2),
            reference: column(|t| t.3),
            mask: column(|t| f64::from(t.4)),
            bounds,
        }
    }

    fn batch(&self) -> Batch<'_> {
        let layout = Layout::Packed { cu_seqlens: &self.bounds };
        Batch {
            ref_logp: Some(&self.reference),
            ..Batch::new(&self.logp, &self.old, &self.advantage, &self.mask, layout)
        }
    }
}

fn numbers(tensor: &Tensor) -> Vec<f64> {
    let flat = tensor.detach().to_kind(Kind::Double).reshape([-1]);
    (0..flat.size()[0]).map(|i| flat.double_value(&[i])).collect()
}

fn gradient(loss: &Tensor, of: &Tensor) -> Vec<f64> {
    numbers(&Tensor::run_backward(&[loss], &[of], false, false)[0])
}

fn close(a: &[f64], b: &[f64]) -> bool {
    a.len() == b.len() && a.iter().zip(b).all(|(a, b)| (a - b).abs() < 1e-10)
}

/// Loss, figures and gradient of a batch in one piece.
fn whole(mode: Aggregation, rows: &[Vec<Token>]) -> (TokenSums, Vec<f64>) {
    let columns = Columns::packed(rows);
    let terms = policy_loss(&objective(mode), &columns.batch(), &denominators(rows)).unwrap();
    (terms.sums, gradient(&terms.loss, &columns.logp))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn any_cut_into_micro_batches_gives_the_same_loss_figures_and_gradients(
        rows in sequences(),
        cut in 1usize..4,
    ) {
        let counts = denominators(&rows);
        for mode in MODES {
            let (sums, expected) = whole(mode, &rows);
            let (mut total, mut gradients) = (TokenSums::default(), Vec::new());
            for micro in rows.chunks(cut) {
                let columns = Columns::packed(micro);
                let terms = policy_loss(&objective(mode), &columns.batch(), &counts).unwrap();
                total += terms.sums;
                gradients.extend(gradient(&terms.loss, &columns.logp));
            }
            prop_assert!(close(&total.as_array(), &sums.as_array()), "{mode:?}");
            prop_assert!(close(&gradients, &expected), "{mode:?}");
        }
    }

    #[test]
    fn a_cut_through_sequences_with_their_weights_gives_the_same_loss(
        rows in sequences(),
        chunk in 1usize..5,
    ) {
        for mode in MODES {
            let (sums, expected) = whole(mode, &rows);
            let columns = Columns::packed(&rows);
            let layout = Layout::Packed { cu_seqlens: &columns.bounds };
            let counts = denominators(&rows);
            let weights =
                token_weights(mode, &columns.mask, layout, &counts, Kind::Double).unwrap();
            let (mut total, mut gradients, mut at) = (TokenSums::default(), Vec::new(), 0);
            for tokens in rows.concat().chunks(chunk) {
                let length = tokens.len() as i64;
                let piece = Columns::of(tokens, vec![0, length]);
                let weights = weights.narrow(0, at, length);
                let terms =
                    weighted_policy_loss(&objective(mode), &piece.batch(), &weights).unwrap();
                total += terms.sums;
                gradients.extend(gradient(&terms.loss, &piece.logp));
                at += length;
            }
            prop_assert!(close(&total.as_array(), &sums.as_array()), "{mode:?}");
            prop_assert!(close(&gradients, &expected), "{mode:?}");
        }
    }

    #[test]
    fn padded_and_packed_layouts_agree_and_padding_may_hold_anything(
        rows in sequences(),
        junk in prop::sample::select(vec![f64::NAN, f64::INFINITY, 0.0]),
    ) {
        let width = rows.iter().map(Vec::len).max().unwrap() + 1;
        let padded: Vec<Token> = rows
            .iter()
            .flat_map(|row| {
                let pad = std::iter::repeat_n((junk, junk, junk, junk, false), width - row.len());
                row.iter().copied().chain(pad)
            })
            .collect();
        let columns = Columns::of(&padded, Vec::new());
        let shape = [rows.len() as i64, width as i64];
        let square = |t: &Tensor| t.reshape(shape);
        for mode in MODES {
            let (sums, expected) = whole(mode, &rows);
            let batch = Batch {
                logp: &square(&columns.logp),
                old_logp: &square(&columns.old),
                advantage: &square(&columns.advantage),
                ref_logp: Some(&square(&columns.reference)),
                entropy: None,
                weight: None,
                items: None,
                mask: &square(&columns.mask),
                layout: Layout::Padded,
            };
            let terms = policy_loss(&objective(mode), &batch, &denominators(&rows)).unwrap();
            prop_assert!(close(&terms.sums.as_array(), &sums.as_array()), "{mode:?}");
            let all = gradient(&terms.loss, &columns.logp);
            let kept: Vec<f64> = rows
                .iter()
                .enumerate()
                .flat_map(|(b, row)| all[b * width..b * width + row.len()].to_vec())
                .collect();
            prop_assert!(close(&kept, &expected), "{mode:?}");
        }
    }

    #[test]
    fn the_order_of_sequences_does_not_matter(rows in sequences(), by in 0usize..6) {
        let mut moved = rows.clone();
        moved.rotate_left(by % rows.len());
        for mode in MODES {
            let (a, b) = (whole(mode, &rows).0, whole(mode, &moved).0);
            prop_assert!(close(&a.as_array(), &b.as_array()), "{mode:?}");
        }
    }

    #[test]
    fn pairs_add_up_over_any_cut(
        pairs in prop::collection::vec((-3.0f64..3.0, -3.0f64..3.0), 1..12),
        cut in 1usize..5,
    ) {
        let spec = Pairwise { regularization: 0.01 };
        let of = |pairs: &[(f64, f64)], total: usize| {
            let better = Tensor::from_slice(&pairs.iter().map(|p| p.0).collect::<Vec<f64>>());
            let worse = Tensor::from_slice(&pairs.iter().map(|p| p.1).collect::<Vec<f64>>());
            let terms = pairwise(&spec, &better, &worse, total).unwrap();
            (terms.loss.double_value(&[]), terms.correct_pairs)
        };
        let whole = of(&pairs, pairs.len());
        let parts: Vec<_> = pairs.chunks(cut).map(|c| of(c, pairs.len())).collect();
        let loss: f64 = parts.iter().map(|p| p.0).sum();
        prop_assert!((loss - whole.0).abs() < 1e-10);
        prop_assert_eq!(parts.iter().map(|p| p.1).sum::<usize>(), whole.1);
    }
}
