//! Scores of the tokens in which two texts differ, for token-wise score losses.
//!
//! Texts lie end to end without padding. Where one text of a pair has ended and the other has
//! not, the ended one stands with the score of its last token; safe-rlhf, which pads, takes
//! whatever score its model gives to padding there.

use plumb_loss::preference::TokenPairs;
use tch::{Device, Tensor};

/// Lengths of the parts of one pair, tokens.
#[derive(Debug, Clone, Copy)]
pub(crate) struct PairLengths {
    /// What both texts begin with.
    pub(crate) shared: usize,
    /// What only the better text has.
    pub(crate) better: usize,
    /// What only the worse text has; with `better` 0 it is not 0.
    pub(crate) worse: usize,
}

/// Where the scores of P pairs' tokens are, T columns from the first token in which a pair's texts
/// differ.
pub(crate) struct TokenGrid {
    /// Packed tokens whose scores are wanted, `[K]` i64.
    pub(crate) rows_k: Tensor,
    /// Which of the K is at each cell, `[P * T]` i64: of the better and of the worse texts.
    cells: [Tensor; 2],
    columns: i64,
    /// `0 ..= last column of the longer text` of each pair.
    spans: Vec<(i64, i64)>,
    /// Column of each text's last token: of the better and of the worse texts.
    ends: [Vec<i64>; 2],
}

impl TokenGrid {
    /// The grid of pairs that are packed one after the other, each as what is shared, the rest of
    /// the better text, the rest of the worse text.
    pub(crate) fn new(pairs: &[PairLengths], device: Device) -> Self {
        let columns = pairs.iter().map(|pair| pair.better.max(pair.worse)).max().unwrap_or(0);
        let (mut rows, mut cells, mut ends) = (Vec::new(), [vec![], vec![]], [vec![], vec![]]);
        let (mut spans, mut first) = (Vec::new(), 0usize);
        for pair in pairs {
            let branch = first + pair.shared;
            let starts = [branch, branch + pair.better];
            for (text, own) in [pair.better, pair.worse].into_iter().enumerate() {
                let at = rows.len();
                match own {
                    // The text ends where both still agree.
                    0 => rows.push((branch - 1) as i64),
                    _ => rows.extend((starts[text]..starts[text] + own).map(|row| row as i64)),
                }
                let last = own.max(1) - 1;
                cells[text].extend((0..columns).map(|column| (at + column.min(last)) as i64));
                ends[text].push(last as i64);
            }
            spans.push((0, pair.better.max(pair.worse) as i64 - 1));
            first = branch + pair.better + pair.worse;
        }
        let on_device = |values: &[i64]| Tensor::from_slice(values).to_device(device);
        Self {
            rows_k: on_device(&rows),
            cells: cells.map(|cells| on_device(&cells)),
            columns: columns as i64,
            spans,
            ends,
        }
    }

    /// Scores `[P, T]` of the better and worse texts, of the scores `[K]` of the wanted tokens.
    pub(crate) fn scores(&self, scores_k: &Tensor) -> [Tensor; 2] {
        [0, 1].map(|text| scores_k.index_select(0, &self.cells[text]).view([-1, self.columns]))
    }

    /// Scores `[P]` at the ends of the better and worse texts, of their [`TokenGrid::scores`].
    pub(crate) fn ends(&self, scores: &[Tensor; 2]) -> [Tensor; 2] {
        [0, 1].map(|text| {
            let column_p1 = Tensor::from_slice(&self.ends[text]).unsqueeze(1);
            let column_p1 = column_p1.to_device(scores[text].device());
            scores[text].gather(1, &column_p1, false).squeeze_dim(1)
        })
    }

    /// What the loss takes.
    pub(crate) fn pairs<'a>(&'a self, [better, worse]: &'a [Tensor; 2]) -> TokenPairs<'a> {
        let (spans, [better_end, worse_end]) = (&self.spans, &self.ends);
        TokenPairs { better, worse, spans, better_end, worse_end }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_ended_text_stands_with_its_last_score() {
        // Packed: a a | b b b | c ; d | e e (nothing shared but a first token; the better text
        // is only the shared one).
        let pairs = [
            PairLengths { shared: 2, better: 3, worse: 1 },
            PairLengths { shared: 1, better: 0, worse: 2 },
        ];
        let grid = TokenGrid::new(&pairs, Device::Cpu);
        let ints = |tensor: &Tensor| Vec::<i64>::try_from(tensor).unwrap();
        assert_eq!(ints(&grid.rows_k), [2, 3, 4, 5, 6, 7, 8]);
        let scores_k = Tensor::from_slice(&[0.2f32, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8]);
        let floats = |tensor: &Tensor| Vec::<f32>::try_from(tensor.reshape([-1])).unwrap();
        let scores = grid.scores(&scores_k);
        assert_eq!(floats(&scores[0]), [0.2, 0.3, 0.4, 0.6, 0.6, 0.6]);
        assert_eq!(floats(&scores[1]), [0.5, 0.5, 0.5, 0.7, 0.8, 0.8]);
        let pairs = grid.pairs(&scores);
        assert_eq!(pairs.spans, [(0, 2), (0, 1)]);
        assert_eq!(grid.ends(&scores).map(|ends| floats(&ends)), [vec![0.4, 0.6], vec![0.5, 0.8]]);
        assert_eq!((pairs.better_end, pairs.worse_end), (&[2, 0][..], &[0, 1][..]));
    }
}
