//! Where a sequence's score is read from its tokens'.

use tch::{Kind, Tensor};

use crate::{LossError, check};

/// Which token of a row stands for the sequence.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Pooling {
    /// The last attended one, whichever side the padding is on. safe-rlhf `get_scores`.
    #[default]
    LastAttended,
    /// UPS-RM: at the number of attended tokens less one, which is the last attended token for
    /// right padding only. A row without any takes the last column.
    CompatTokenCount,
}

impl Pooling {
    /// `[B]` i64 column of each row's token.
    ///
    /// `attended` is `[B, T]`, bool or 0/1, non-zero for tokens that are no padding.
    ///
    /// # Errors
    /// [`LossError::Rank`] for a mask that is not `[B, T]` or is without columns;
    /// [`LossError::EmptyRow`] for a row without attended tokens ([`Pooling::LastAttended`]).
    pub fn indices(self, attended: &Tensor) -> Result<Tensor, LossError> {
        const F: &str = "Pooling::indices";
        let size = attended.size();
        let (&[_, width], true) = (size.as_slice(), size.last() > Some(&0)) else {
            let expected = "[B, T] with T at least 1";
            return Err(LossError::Rank { function: F, argument: "attended", expected, got: size });
        };
        let attended = check::mask(F, &size, attended)?.to_kind(Kind::Int64);
        if self == Self::CompatTokenCount {
            let counts = attended.sum_dim_intlist([-1i64].as_slice(), false, Kind::Int64);
            return Ok((counts - 1).remainder(width));
        }
        if size[0] == 0 {
            return Ok(Tensor::zeros([0], (Kind::Int64, attended.device())));
        }
        let column = Tensor::arange_start(1, width + 1, (Kind::Int64, attended.device()));
        let (last, _) = (attended * column).max_dim(-1, false);
        if last.min().int64_value(&[]) == 0 {
            let row = last.argmin(-1, false).int64_value(&[]) as usize;
            return Err(LossError::EmptyRow { function: F, argument: "attended", row });
        }
        Ok(last - 1)
    }
}

/// `[B]` or `[B, H]`: each row of `values` (`[B, T]` or `[B, T, H]`) at its own column.
///
/// Gradients flow to the columns that were read.
///
/// # Errors
/// [`LossError::Rank`], [`LossError::Shape`], [`LossError::Kind`] for arguments that do not fit;
/// [`LossError::Span`] for a column outside the row.
pub fn at_columns(values: &Tensor, column: &Tensor) -> Result<Tensor, LossError> {
    const F: &str = "at_columns";
    let size = values.size();
    let (&[rows, width] | &[rows, width, _]) = size.as_slice() else {
        let expected = "[B, T] or [B, T, H]";
        return Err(LossError::Rank { function: F, argument: "values", expected, got: size });
    };
    check::shape(F, "column", &[rows], column)?;
    if column.kind() != Kind::Int64 {
        let (expected, got) = ("Int64", column.kind());
        return Err(LossError::Kind { function: F, argument: "column", expected, got });
    }
    if rows > 0 {
        let (least, most) = (column.min().int64_value(&[]), column.max().int64_value(&[]));
        for at in [least, most] {
            if !(0..width).contains(&at) {
                return Err(LossError::Span { function: F, first: at, last: at, tokens: width });
            }
        }
    }
    let row = Tensor::arange(rows, (Kind::Int64, values.device()));
    Ok(values.index(&[Some(row), Some(column.shallow_clone())]))
}
