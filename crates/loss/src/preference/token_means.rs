//! Means over the tokens in which two answers differ.

use tch::Tensor;

use crate::preference::span::{check_spans, column_mask};
use crate::{LossError, check};

/// Scores of two answers' tokens, and per-pair means over the span in which they differ.
pub(super) struct TokenMeans {
    /// `[P, T]`, 0 outside the spans.
    pub better: Tensor,
    /// `[P, T]`, 0 outside the spans.
    pub worse: Tensor,
    /// `[P, T]`, true within the spans.
    inside: Tensor,
    /// `[P]` tokens of each span.
    counts: Tensor,
}

impl TokenMeans {
    pub(super) fn new(
        function: &'static str,
        better: &Tensor,
        worse: &Tensor,
        spans: &[(i64, i64)],
    ) -> Result<Self, LossError> {
        let size = better.size();
        let &[rows, width] = size.as_slice() else {
            let expected = "[P, T]";
            return Err(LossError::Rank { function, argument: "better", expected, got: size });
        };
        check_spans(function, spans, rows, width)?;
        let kind = check::maths_kind(better);
        let bounds: Vec<(i64, i64)> =
            spans.iter().map(|(first, last)| (*first, last + 1)).collect();
        let inside = column_mask(&bounds, width, better);
        let outside = inside.logical_not();
        let within = |t: &Tensor| t.to_kind(kind).masked_fill(&outside, 0.0);
        let counts = inside.sum_dim_intlist([-1i64].as_slice(), false, kind);
        Ok(Self { better: within(better), worse: within(worse), inside, counts })
    }

    /// `[P]` means of `values` `[P, T]` over each pair's span.
    pub(super) fn of(&self, values: &Tensor) -> Tensor {
        let kind = values.kind();
        let inside = values.masked_fill(&self.inside.logical_not(), 0.0);
        inside.sum_dim_intlist([-1i64].as_slice(), false, kind) / &self.counts
    }

    /// `[P]` means of the squares of both answers' scores.
    pub(super) fn square(&self) -> Tensor {
        (self.of(&self.better.square()) + self.of(&self.worse.square())) * 0.5
    }
}

/// `[P]` scores at each row's end.
pub(super) fn at_ends(
    function: &'static str,
    scores: &Tensor,
    ends: &[i64],
) -> Result<Tensor, LossError> {
    let size = scores.size();
    let &[rows, width] = size.as_slice() else {
        let expected = "[P, T]";
        return Err(LossError::Rank { function, argument: "scores", expected, got: size });
    };
    let spans: Vec<(i64, i64)> = ends.iter().map(|end| (*end, *end)).collect();
    check_spans(function, &spans, rows, width)?;
    let index = Tensor::from_slice(ends).to_device(scores.device()).unsqueeze(-1);
    Ok(scores.to_kind(check::maths_kind(scores)).gather(1, &index, false).squeeze_dim(-1))
}
