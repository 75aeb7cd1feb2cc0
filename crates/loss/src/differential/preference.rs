//! Losses on pairs and texts against loops over plain numbers.

use proptest::prelude::*;
use tch::{Kind, Tensor};

use crate::preference::{
    Cost, Margin, Objective, PairValues, Pairwise, Pop, PopFixed, Preference, SafetyLabels,
    TokenPairs, Window, cost, cost_tokens, pairwise, pairwise_tokens, pop, pop_fixed, preference,
    sum_log_probs,
};
use crate::scores::Pooling;
use crate::supervised::{CausalLm, causal_lm};

fn close(a: f64, b: f64) -> bool {
    (a - b).abs() <= 1e-10 * (1.0 + a.abs().max(b.abs()))
}

fn number(loss: &Tensor) -> f64 {
    loss.double_value(&[])
}

/// `-ln sigmoid(x)`.
fn surprise(x: f64) -> f64 {
    if x > 0.0 { (-x).exp().ln_1p() } else { x.exp().ln_1p() - x }
}

fn sum(values: impl Iterator<Item = f64>) -> f64 {
    values.sum()
}

const WIDTH: usize = 6;

/// One pair: token scores of both answers, first difference, ends, is each safe?
#[derive(Debug, Clone)]
struct Row {
    first: Vec<f64>,
    second: Vec<f64>,
    span: (usize, usize),
    ends: (usize, usize),
    safe: (bool, bool),
}

fn rows() -> impl Strategy<Value = Vec<Row>> {
    let scores = || prop::collection::vec(-6.0f64..6.0, WIDTH);
    let places = (0..WIDTH, 0..WIDTH, 0..WIDTH);
    let row = (scores(), scores(), places, any::<bool>(), any::<bool>());
    let row = row.prop_map(|(first, second, (a, b, c), safe, other)| {
        let last = b.max(c);
        Row { first, second, span: (a.min(last), last), ends: (b, c), safe: (safe, other) }
    });
    prop::collection::vec(row, 1..6)
}

/// The rows as tensors.
struct Columns {
    first: Tensor,
    second: Tensor,
    spans: Vec<(i64, i64)>,
    ends: (Vec<i64>, Vec<i64>),
    safe: (Vec<bool>, Vec<bool>),
}

impl Columns {
    fn of(rows: &[Row]) -> Self {
        let matrix = |of: fn(&Row) -> &Vec<f64>| {
            let flat: Vec<f64> = rows.iter().flat_map(|r| of(r).iter().copied()).collect();
            Tensor::from_slice(&flat).reshape([-1, WIDTH as i64])
        };
        Self {
            first: matrix(|r| &r.first),
            second: matrix(|r| &r.second),
            spans: rows.iter().map(|r| (r.span.0 as i64, r.span.1 as i64)).collect(),
            ends: rows.iter().map(|r| (r.ends.0 as i64, r.ends.1 as i64)).unzip(),
            safe: rows.iter().map(|r| r.safe).unzip(),
        }
    }

    fn tokens(&self) -> TokenPairs<'_> {
        TokenPairs {
            better: &self.first,
            worse: &self.second,
            spans: &self.spans,
            better_end: &self.ends.0,
            worse_end: &self.ends.1,
        }
    }

    fn labels(&self) -> SafetyLabels<'_> {
        SafetyLabels { safer: &self.safe.0, unsafer: &self.safe.1 }
    }
}

impl Row {
    fn end_scores(&self) -> (f64, f64) {
        (self.first[self.ends.0], self.second[self.ends.1])
    }

    /// Mean over the span of `of(first, second)`.
    fn mean(&self, of: impl Fn(f64, f64) -> f64) -> f64 {
        let span = self.span.0..=self.span.1;
        let count = span.clone().count() as f64;
        sum(span.map(|t| of(self.first[t], self.second[t]))) / count
    }
}

/// The sign that a cost should have.
fn sign(safe: bool) -> f64 {
    if safe { -1.0 } else { 1.0 }
}

fn naive_pop(beta: f64, lambda: f64, gap: f64, other: f64) -> f64 {
    let own = 0.5 * (surprise(beta * gap) + surprise(beta * other));
    own + lambda * (surprise(beta * (gap - other)) - 2f64.ln())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1000))]

    #[test]
    fn reward_model(rows in rows(), reg in 0.0f64..0.5) {
        let columns = Columns::of(&rows);
        let n = rows.len() as f64;
        let spec = Pairwise { regularization: reg };
        let ours = pairwise_tokens(&spec, columns.tokens(), rows.len()).unwrap();
        let expected = sum(rows.iter().map(|row| {
            row.mean(|b, w| surprise(b - w) + reg * 0.5 * (b * b + w * w))
        }));
        prop_assert!(close(number(&ours.loss), expected / n));
        let correct = rows.iter().filter(|row| row.end_scores().0 > row.end_scores().1).count();
        prop_assert_eq!(ours.correct_pairs, correct);
        let ends = |of: fn((f64, f64)) -> f64| {
            Tensor::from_slice(&rows.iter().map(|r| of(r.end_scores())).collect::<Vec<f64>>())
        };
        let ours = pairwise(&spec, &ends(|e| e.0), &ends(|e| e.1), rows.len()).unwrap();
        let expected = sum(rows.iter().map(Row::end_scores).map(|(b, w)| {
            surprise(b - w) + reg * 0.5 * (b * b + w * w)
        }));
        prop_assert!(close(number(&ours.loss), expected / n));
    }

    #[test]
    fn cost_model(rows in rows(), reg in 0.0f64..0.5, sign_terms in any::<bool>()) {
        let columns = Columns::of(&rows);
        let n = rows.len() as f64;
        let spec = Cost { regularization: reg, sign_terms };
        let term = |row: &Row, s: f64, u: f64| {
            let signs = surprise(sign(row.safe.0) * s) + surprise(sign(row.safe.1) * u);
            let ranked = surprise(u - s) + reg * 0.5 * (s * s + u * u);
            if sign_terms { ranked + signs } else { ranked }
        };
        let ours = cost_tokens(&spec, columns.tokens(), columns.labels(), rows.len()).unwrap();
        let expected = sum(rows.iter().map(|row| row.mean(|s, u| term(row, s, u))));
        prop_assert!(close(number(&ours.loss), expected / n));
        let (s, u): (Vec<f64>, Vec<f64>) = rows.iter().map(Row::end_scores).unzip();
        let (s, u) = (Tensor::from_slice(&s), Tensor::from_slice(&u));
        let ours = cost(&spec, &s, &u, columns.labels(), rows.len()).unwrap();
        let expected = sum(rows.iter().map(|row| {
            let (s, u) = row.end_scores();
            term(row, s, u)
        }));
        prop_assert!(close(number(&ours.loss), expected / n));
        let mut correct = 0;
        for row in &rows {
            let (s, u) = row.end_scores();
            correct += usize::from(sign(row.safe.0) * s > 0.0);
            correct += usize::from(sign(row.safe.1) * u > 0.0);
        }
        prop_assert_eq!(ours.correct_signs, correct);
    }

    #[test]
    fn direct_losses(
        rows in prop::collection::vec(prop::array::uniform5(-5.0f64..5.0), 1..8),
        beta in 0.01f64..2.0,
        smoothing in 0.0f64..0.5,
        bounds in (-2.0f64..1.0, 0.0f64..3.0),
        lambda in 0.0f64..5.0,
    ) {
        let n = rows.len() as f64;
        let column =
            |i: usize| Tensor::from_slice(&rows.iter().map(|row| row[i]).collect::<Vec<f64>>());
        let pair = |a, b| PairValues { better: column(a), worse: column(b) };
        let margins = column(4);
        let expected_of = |loss: &dyn Fn(&[f64; 5]) -> f64| sum(rows.iter().map(loss)) / n;
        let of = |objective| {
            let spec = Preference { beta, objective };
            number(&preference(&spec, &pair(0, 1), rows.len()).unwrap().loss)
        };
        let logistic = |x: f64| (1.0 - smoothing) * surprise(x) + smoothing * surprise(-x);
        let margin = Margin::PerPair(&margins);
        let ours = of(Objective::Logistic { label_smoothing: smoothing, margin });
        let expected = expected_of(&|r| logistic(beta * (r[0] - r[1]) - r[4]));
        prop_assert!(close(ours, expected));
        let margin = Margin::CompatAllPairs(&margins);
        let ours = of(Objective::Logistic { label_smoothing: smoothing, margin });
        let expected = expected_of(&|r| {
            sum(rows.iter().map(|m| logistic(beta * (r[0] - r[1]) - m[4]))) / n
        });
        prop_assert!(close(ours, expected));
        let expected = expected_of(&|r| (r[0] - r[1] - 0.5 / beta).powi(2));
        prop_assert!(close(of(Objective::Ipo), expected));

        let (margin_min, margin_max) = bounds;
        let spec = PopFixed { beta, margin_min, margin_max };
        let ours = pop_fixed(&spec, &pair(0, 1), &pair(2, 3), rows.len()).unwrap();
        let bounded = |gap: f64| gap.max(margin_min).min(margin_max);
        let expected = expected_of(&|r| surprise(beta * (r[0] - r[1] - bounded(r[2] - r[3]))));
        prop_assert!(close(number(&ours.loss), expected));
        let ours = pop(&Pop { beta, lambda }, &pair(0, 1), &pair(2, 3), rows.len()).unwrap();
        let expected = expected_of(&|r| naive_pop(beta, lambda, r[0] - r[1], r[2] - r[3]));
        prop_assert!(close(number(&ours.loss), expected));
    }

    #[test]
    fn answer_log_probs(rows in rows()) {
        let columns = Columns::of(&rows);
        let tokens = WIDTH + 1;
        for window in [Window::Answer, Window::CompatShifted] {
            let ours = sum_log_probs(&columns.first, &columns.spans, window).unwrap();
            for (at, row) in rows.iter().enumerate() {
                let (first, last) = row.span;
                let range = match window {
                    Window::Answer => first.max(1)..last + 1,
                    Window::CompatShifted => first + 1..(last + 2).min(tokens),
                };
                let expected = sum(range.map(|token| row.first[token - 1]));
                prop_assert!(close(ours.double_value(&[at as i64]), expected), "{window:?}");
            }
        }
    }

    #[test]
    fn language_model(
        rows in prop::collection::vec(
            prop::collection::vec((-1i64..4, prop::array::uniform4(-4.0f64..4.0)), 5), 1..5,
        ),
    ) {
        let (mut expected, mut targets) = (0.0, 0);
        for row in &rows {
            for next in row.windows(2) {
                let (label, logits) = (next[1].0, next[0].1);
                if label >= 0 {
                    targets += 1;
                    let whole = sum(logits.iter().map(|z| z.exp())).ln();
                    expected += whole - logits[label as usize];
                }
            }
        }
        let labels: Vec<i64> = rows.iter().flatten().map(|(label, _)| *label).collect();
        let logits: Vec<f64> = rows.iter().flatten().flat_map(|(_, logits)| *logits).collect();
        let labels = Tensor::from_slice(&labels).reshape([-1, 5]);
        let logits = Tensor::from_slice(&logits).reshape([-1, 5, 4]);
        let spec = CausalLm { ignore_index: -1 };
        let ours = causal_lm(&spec, &logits, &labels, targets);
        if targets == 0 {
            prop_assert!(ours.is_err());
        } else {
            let ours = ours.unwrap();
            prop_assert_eq!(ours.targets, targets);
            prop_assert!(close(number(&ours.loss), expected / targets as f64));
        }
    }

    #[test]
    fn pooling(rows in prop::collection::vec(prop::collection::vec(any::<bool>(), 5), 1..6)) {
        let mask = Tensor::from_slice(&rows.concat()).reshape([-1, 5]);
        let last: Option<Vec<i64>> =
            rows.iter().map(|row| row.iter().rposition(|m| *m).map(|at| at as i64)).collect();
        let ours = Pooling::LastAttended.indices(&mask);
        match last {
            None => prop_assert!(ours.is_err()),
            Some(last) => prop_assert_eq!(Vec::<i64>::try_from(ours.unwrap()).unwrap(), last),
        }
        let counted = Pooling::CompatTokenCount.indices(&mask.to_kind(Kind::Float)).unwrap();
        let naive: Vec<i64> = rows
            .iter()
            .map(|row| (row.iter().filter(|m| **m).count() as i64 - 1).rem_euclid(5))
            .collect();
        prop_assert_eq!(Vec::<i64>::try_from(counted).unwrap(), naive);
    }
}
