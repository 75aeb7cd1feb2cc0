//! Where two answers to a prompt part, and the log-prob of what follows.

use tch::Tensor;

use crate::{LossError, check};

/// One row of a batch: a prompt and an answer.
#[derive(Debug, Clone, Copy)]
pub struct Answer<'a> {
    /// Token ids, padded to the batch's width.
    pub ids: &'a [i64],
    /// True for tokens that are no padding.
    pub attended: &'a [bool],
}

/// The tokens in which the answers of a pair differ. Indices are into the padded rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PairSpan {
    /// First position at which the rows differ.
    pub first_difference: i64,
    /// Last attended position of the better answer.
    pub better_last: i64,
    /// Last attended position of the worse answer.
    pub worse_last: i64,
}

impl PairSpan {
    /// Of one pair; `None` where the rows hold the same ids, so that there is nothing to prefer.
    ///
    /// Source: safe-rlhf and HC-RLHF trainers. Rows are compared with their padding.
    ///
    /// # Errors
    /// [`LossError::Shape`] for rows of different width, [`LossError::EmptyRow`] for an answer
    /// without an attended token.
    pub fn of(better: Answer<'_>, worse: Answer<'_>) -> Result<Option<Self>, LossError> {
        const F: &str = "PairSpan::of";
        let width = better.ids.len();
        for (argument, got) in [
            ("better.attended", better.attended.len()),
            ("worse.ids", worse.ids.len()),
            ("worse.attended", worse.attended.len()),
        ] {
            if got != width {
                let (expected, got) = (vec![width as i64], vec![got as i64]);
                return Err(LossError::Shape { function: F, argument, expected, got });
            }
        }
        let Some(first) = better.ids.iter().zip(worse.ids).position(|(b, w)| b != w) else {
            return Ok(None);
        };
        let last = |answer: Answer<'_>, argument| {
            let last = answer.attended.iter().rposition(|attended| *attended);
            last.map(|at| at as i64).ok_or(LossError::EmptyRow { function: F, argument, row: 0 })
        };
        Ok(Some(Self {
            first_difference: first as i64,
            better_last: last(better, "better.attended")?,
            worse_last: last(worse, "worse.attended")?,
        }))
    }

    /// First difference and last token of the better answer.
    #[must_use]
    pub fn better(&self) -> (i64, i64) {
        (self.first_difference, self.better_last)
    }

    /// First difference and last token of the worse answer.
    #[must_use]
    pub fn worse(&self) -> (i64, i64) {
        (self.first_difference, self.worse_last)
    }

    /// First difference and last token of the longer answer.
    #[must_use]
    pub fn longer(&self) -> (i64, i64) {
        (self.first_difference, self.better_last.max(self.worse_last))
    }
}

/// What to do with a pair whose rows hold the same ids.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Identical {
    /// [`LossError::IdenticalPair`]. safe-rlhf.
    #[default]
    Refuse,
    /// The pair has no span; leave it out of the batch and of the count of pairs. HC-RLHF.
    Skip,
}

/// [`PairSpan::of`] for a batch; `None` only with [`Identical::Skip`].
///
/// # Errors
/// As [`PairSpan::of`] with the row's number; [`LossError::Shape`] for batches of different size;
/// [`LossError::IdenticalPair`].
pub fn pair_spans(
    better: &[Answer<'_>],
    worse: &[Answer<'_>],
    identical: Identical,
) -> Result<Vec<Option<PairSpan>>, LossError> {
    const F: &str = "pair_spans";
    if better.len() != worse.len() {
        let (expected, got) = (vec![better.len() as i64], vec![worse.len() as i64]);
        return Err(LossError::Shape { function: F, argument: "worse", expected, got });
    }
    let pairs = better.iter().zip(worse).enumerate();
    let span = |(row, (b, w)): (usize, (&Answer<'_>, &Answer<'_>))| match PairSpan::of(*b, *w) {
        Ok(None) if identical == Identical::Refuse => {
            Err(LossError::IdenticalPair { function: F, row })
        }
        Err(LossError::EmptyRow { argument, .. }) => {
            Err(LossError::EmptyRow { function: F, argument, row })
        }
        other => other,
    };
    pairs.map(span).collect()
}

/// Which tokens of an answer count towards its log-prob.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Window {
    /// All from the first that differs to the last: `first ..= last`. Position 0, which nothing
    /// predicts, is left out.
    #[default]
    Answer,
    /// safe-rlhf and HC-RLHF apply the slice `first .. last + 1` to log-probs that start with
    /// those of token 1, so that the tokens `first + 1 ..= last + 1` count: the first token that
    /// differs does not, and the one after the last (padding) does, where the row has one. As a
    /// length (SimPO) they take `last + 1 - first`.
    CompatShifted,
}

impl Window {
    /// Columns of `[P, T - 1]` log-probs (column j is token j + 1) that count, end exclusive.
    fn columns(self, (first, last): (i64, i64), tokens: i64) -> (i64, i64) {
        match self {
            Self::Answer => (first.max(1) - 1, last),
            Self::CompatShifted => (first, (last + 1).min(tokens - 1)),
        }
    }

    /// Number of tokens that an answer is long, which SimPO divides by.
    #[must_use]
    pub fn token_count(self, (first, last): (i64, i64)) -> i64 {
        match self {
            Self::Answer => last - first.max(1) + 1,
            Self::CompatShifted => last + 1 - first,
        }
    }
}

/// `[P]` log-probs of answers: the sum over each row's window.
///
/// `logp` is `[P, T - 1]`, column j the log-prob of token j + 1; `spans` holds each row's first
/// and last token, within `0 .. T`. Gradients flow to the columns in the window only; whatever
/// the others hold has no effect.
///
/// # Errors
/// [`LossError::Rank`], [`LossError::Kind`], [`LossError::Shape`] for arguments that do not fit;
/// [`LossError::Span`] for a span that is empty or leaves the row (also where one answer is the
/// beginning of the other: it has no token of its own).
pub fn sum_log_probs(
    logp: &Tensor,
    spans: &[(i64, i64)],
    window: Window,
) -> Result<Tensor, LossError> {
    const F: &str = "sum_log_probs";
    check::float(F, "logp", logp)?;
    let size = logp.size();
    let &[rows, columns] = size.as_slice() else {
        let expected = "[P, T - 1]";
        return Err(LossError::Rank { function: F, argument: "logp", expected, got: size });
    };
    let columns_of = |span: &(i64, i64)| window.columns(*span, columns + 1);
    check_spans(F, spans, rows, columns + 1)?;
    let kept: Vec<(i64, i64)> = spans.iter().map(columns_of).collect();
    let kind = check::maths_kind(logp);
    let outside = column_mask(&kept, columns, logp).logical_not();
    let inside = logp.to_kind(kind).masked_fill(&outside, 0.0);
    Ok(inside.sum_dim_intlist([-1i64].as_slice(), false, kind))
}

/// Every row has a span `first ..= last` that is not empty and within `0 .. tokens`.
pub(super) fn check_spans(
    function: &'static str,
    spans: &[(i64, i64)],
    rows: i64,
    tokens: i64,
) -> Result<(), LossError> {
    if spans.len() as i64 != rows {
        let (expected, got) = (vec![rows], vec![spans.len() as i64]);
        return Err(LossError::Shape { function, argument: "spans", expected, got });
    }
    match spans.iter().find(|(first, last)| *first < 0 || first > last || *last >= tokens) {
        None => Ok(()),
        Some(&(first, last)) => Err(LossError::Span { function, first, last, tokens }),
    }
}

/// `[P, columns]`, true where row p's column is in `bounds[p].0 .. bounds[p].1`.
pub(super) fn column_mask(bounds: &[(i64, i64)], columns: i64, like: &Tensor) -> Tensor {
    let device = like.device();
    let column = |pick: fn(&(i64, i64)) -> i64| {
        let values: Vec<i64> = bounds.iter().map(pick).collect();
        Tensor::from_slice(&values).to_device(device).unsqueeze(-1)
    };
    let at = Tensor::arange(columns, (tch::Kind::Int64, device)).unsqueeze(0);
    at.ge_tensor(&column(|b| b.0)).logical_and(&at.lt_tensor(&column(|b| b.1)))
}
