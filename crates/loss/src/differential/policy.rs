//! Policy terms and importance weights, token by token and sequence by sequence.

use proptest::prelude::*;
use tch::{Kind, Tensor};

use crate::aggregate::Layout;
use crate::entropy::{MaskedEntropy, high_entropy_mask};
use crate::importance::{Correction, importance_weights};
use crate::policy::{
    Baseline, Batch, Cispo, Cpg, GeoMean, Gspo, LevelClip, PolicyTerm, PpoClip, RatioLevel, Sapo,
    reinforce, token_losses,
};

/// logp, old logp, advantage, item, in the mask?
type Token = (f64, f64, f64, i64, bool);

/// A token's loss from its sequence and itself.
type Naive = Box<dyn Fn(&[Token], &Token) -> f64>;

fn rows() -> impl Strategy<Value = Vec<Vec<Token>>> {
    let token = (-4.0f64..0.0, -4.0f64..0.0, -2.0f64..2.0, -1i64..6, prop::bool::weighted(0.8));
    prop::collection::vec(prop::collection::vec(token, 0..6), 1..5)
}

fn numbers(tensor: &Tensor) -> Vec<f64> {
    let flat = tensor.detach().to_kind(Kind::Double).reshape([-1]);
    (0..flat.size()[0]).map(|i| flat.double_value(&[i])).collect()
}

fn bounds(rows: &[Vec<Token>]) -> Vec<i64> {
    let mut bounds = vec![0];
    for row in rows {
        bounds.push(bounds[bounds.len() - 1] + row.len() as i64);
    }
    bounds
}

fn column(rows: &[Vec<Token>], of: impl Fn(&Token) -> f64) -> Tensor {
    Tensor::from_slice(&rows.iter().flatten().map(of).collect::<Vec<f64>>())
}

fn ours(term: PolicyTerm, rows: &[Vec<Token>]) -> Vec<f64> {
    let items: Vec<i64> = rows.iter().flatten().map(|t| t.3).collect();
    let (logp, old) = (column(rows, |t| t.0), column(rows, |t| t.1));
    let (advantage, mask) = (column(rows, |t| t.2), column(rows, |t| f64::from(t.4)));
    let cu_seqlens = bounds(rows);
    let layout = Layout::Packed { cu_seqlens: &cu_seqlens };
    let items = Tensor::from_slice(&items);
    let batch = Batch { items: Some(&items), ..Batch::new(&logp, &old, &advantage, &mask, layout) };
    numbers(&token_losses(&term, &batch).unwrap().loss)
}

/// Each token's loss by `of(sequence, token)`, 0 outside the mask.
fn naive(rows: &[Vec<Token>], of: impl Fn(&[Token], &Token) -> f64) -> Vec<f64> {
    let token = |row: &[Token], t: &Token| if t.4 { of(row, t) } else { 0.0 };
    rows.iter().flat_map(|row| row.iter().map(|t| token(row, t)).collect::<Vec<_>>()).collect()
}

/// Mean of `of` over the masked-in tokens that `keep`s.
fn mean(row: &[Token], keep: impl Fn(&Token) -> bool, of: impl Fn(&Token) -> f64) -> f64 {
    let values: Vec<f64> = row.iter().filter(|t| t.4 && keep(t)).map(of).collect();
    if values.is_empty() { 0.0 } else { values.iter().sum::<f64>() / values.len() as f64 }
}

fn clipped(ratio: f64, advantage: f64, low: f64, high: f64) -> f64 {
    (-advantage * ratio).max(-advantage * ratio.clamp(1.0 - low, 1.0 + high))
}

fn close(a: &[f64], b: &[f64]) -> bool {
    let near = |(a, b): (&f64, &f64)| (a - b).abs() <= 1e-10 * (1.0 + b.abs());
    a.len() == b.len() && a.iter().zip(b).all(near)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1000))]

    #[test]
    fn token_terms(rows in rows()) {
        let all = |_: &Token| true;
        let cases: [(PolicyTerm, Naive); 7] = [
            (PolicyTerm::PpoClip(PpoClip::default()), Box::new(|_, t| {
                let loss = clipped((t.0 - t.1).exp(), t.2, 0.2, 0.2);
                if t.2 < 0.0 { loss.min(-t.2 * 3.0) } else { loss }
            })),
            (PolicyTerm::Cpg(Cpg::default()), Box::new(|_, t| {
                let (high, low) = (t.1 + 1.2f64.ln(), t.1 + 0.8f64.ln());
                -t.2 * if t.2 > 0.0 { t.0.min(high) } else { t.0.max(low) }
            })),
            (PolicyTerm::Cispo(Cispo::default()), Box::new(|_, t| {
                -(t.0 - t.1).exp().clamp(0.8, 1.2) * t.2 * t.0
            })),
            (PolicyTerm::Sapo(Sapo::default()), Box::new(|_, t| {
                let tau = if t.2 > 0.0 { 1.0 } else { 1.05 };
                let gate = 1.0 / (1.0 + (-tau * ((t.0 - t.1).exp() - 1.0)).exp());
                -t.2 * gate * 4.0 / tau
            })),
            (PolicyTerm::Gpg, Box::new(|_, t| -t.2 * t.0)),
            (PolicyTerm::Gspo(Gspo::default()), Box::new(move |row, t| {
                clipped(mean(row, all, |t| t.0 - t.1).exp(), t.2, 3e-4, 4e-4)
            })),
            (PolicyTerm::GeoMean(GeoMean::default()), Box::new(move |row, _| {
                let bounded = |t: &Token| match t.2 {
                    a if a > 0.0 => (t.0 - t.1).min(0.4),
                    a if a < 0.0 => (t.0 - t.1).max(-0.4),
                    _ => 0.0,
                };
                -mean(row, all, |t| t.2) * mean(row, all, bounded).exp()
            })),
        ];
        for (term, of) in cases {
            prop_assert!(close(&ours(term, &rows), &naive(&rows, of)), "{term:?}");
        }
    }

    #[test]
    fn ratio_levels(rows in rows(), cap in prop::option::of(0.5f64..3.0)) {
        let bin = |t: &Token| t.3.clamp(0, 3);
        for level in [RatioLevel::Token, RatioLevel::Sequence, RatioLevel::Item { items: 3 }] {
            let spec = LevelClip { level, ratio_cap: cap, ..LevelClip::default() };
            let expected = naive(&rows, |row, t| {
                let log = match level {
                    RatioLevel::Token => t.0 - t.1,
                    RatioLevel::Sequence => mean(row, |_| true, |t| t.0 - t.1),
                    RatioLevel::Item { .. } => mean(row, |o| bin(o) == bin(t), |t| t.0 - t.1),
                };
                let capped = log.exp().min(cap.unwrap_or(f64::INFINITY));
                -(capped * t.2).min(log.exp().clamp(0.8, 1.2) * t.2)
            });
            prop_assert!(close(&ours(PolicyTerm::LevelClip(spec), &rows), &expected), "{level:?}");
        }
    }

    #[test]
    fn corrections(rows in rows()) {
        let cu_seqlens = bounds(&rows);
        let layout = Layout::Packed { cu_seqlens: &cu_seqlens };
        let (old, rollout) = (column(&rows, |t| t.0), column(&rows, |t| t.1));
        let mask = column(&rows, |t| f64::from(t.4));
        let inside = |row: &[Token]| row.iter().filter(|t| t.4).count() as f64;
        for correction in [
            Correction::TruncatedToken { cap: 2.0 },
            Correction::TruncatedSequence { cap: 3.0 },
            Correction::IcePop { low: 0.5, high: 2.0 },
            Correction::SequenceMask { low: 0.8, high: 1.5 },
        ] {
            let expected = naive(&rows, |row, t| {
                let ratio = (t.0 - t.1).exp();
                let mean = mean(row, |_| true, |t| t.0 - t.1);
                match correction {
                    Correction::TruncatedToken { cap } => ratio.min(cap),
                    Correction::TruncatedSequence { cap } => (mean * inside(row)).exp().min(cap),
                    Correction::IcePop { low, high } => {
                        if (low..=high).contains(&ratio) { ratio } else { 0.0 }
                    }
                    Correction::SequenceMask { low, high } => {
                        f64::from(u8::from((low..=high).contains(&mean.exp())))
                    }
                }
            });
            let (weight, sums) =
                importance_weights(&correction, &old, &rollout, &mask, layout).unwrap();
            prop_assert!(close(&numbers(&weight), &expected), "{correction:?}");
            prop_assert!(close(&[sums.weight], &[expected.iter().sum()]), "{correction:?}");
        }
    }

    #[test]
    fn sequence_reinforce(
        groups in prop::collection::vec(prop::collection::vec(-3.0f64..3.0, 3), 1..4),
        logps in prop::collection::vec(-4.0f64..0.0, 9),
    ) {
        let returns = groups.concat();
        let total = returns.len();
        let logp = Tensor::from_slice(&logps[..total]).reshape([total as i64, 1]);
        let mask = logp.ones_like();
        let got = reinforce(
            Baseline::LeaveOneOut { samples_per_prompt: 3 },
            &logp,
            &Tensor::from_slice(&returns),
            &mask,
            Layout::Padded,
            total,
        )
        .unwrap();
        let mut expected = 0.0;
        for (g, group) in groups.iter().enumerate() {
            for (i, value) in group.iter().enumerate() {
                let others = (group.iter().sum::<f64>() - value) / 2.0;
                expected -= (value - others) * logps[3 * g + i] / total as f64;
            }
        }
        prop_assert!(close(&numbers(&got), &[expected]));
    }

    #[test]
    fn highest_entropies(rows in rows(), ratio in 0.01f64..0.99) {
        let cu_seqlens = bounds(&rows);
        let layout = Layout::Packed { cu_seqlens: &cu_seqlens };
        let (entropy, mask) = (column(&rows, |t| -t.0), column(&rows, |t| f64::from(t.4)));
        let kept =
            high_entropy_mask(&entropy, &mask, layout, ratio, MaskedEntropy::Excluded).unwrap();
        let expected = naive(&rows, |row, t| {
            let inside = row.iter().filter(|o| o.4);
            let higher = inside.clone().filter(|o| -o.0 > -t.0).count();
            let count = ((inside.count() as f64 * ratio) as usize).max(1);
            f64::from(u8::from(higher < count))
        });
        prop_assert_eq!(numbers(&kept), expected);
    }
}
