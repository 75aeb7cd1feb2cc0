//! Which tokens of a response make up which item of its list.

use crate::AlgoError;
use crate::error::same_length;

/// How many newlines a token stands for, from the text it decodes to. `\r\n` is one.
#[must_use]
pub fn newlines(piece: &str) -> usize {
    piece.matches('\n').count()
}

/// Items of a response's tokens `[T]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Segments {
    /// Index of the token's item, from 0; -1 for padding.
    pub item: Vec<i64>,
    /// Tokens of the first `rec_num` items.
    pub content: Vec<bool>,
    /// Tokens past the last of the `rec_num` items.
    pub overflow: Vec<bool>,
    rec_num: usize,
}

impl Segments {
    /// Cuts a response at its newlines. A newline belongs to the item that it ends; a token of two
    /// newlines skips an index.
    ///
    /// `newlines` `[T]` counts them in each token ([`newlines`]); `mask` `[T]` is true for response
    /// tokens, a prefix of the row (if it is none, its count is taken for the prefix's length, and
    /// `content` and `overflow` lie within it).
    ///
    /// Items here are lines of tokens; [`parse_list`](super::list::parse_list) counts only lines
    /// that hold an item, so the two differ where a line holds none.
    ///
    /// Source: Rank-GRPO `RankGRPOTrainer._segment_items_from_tokens`.
    ///
    /// # Errors
    /// [`AlgoError::Length`].
    pub fn of(newlines: &[usize], mask: &[bool], rec_num: usize) -> Result<Self, AlgoError> {
        same_length("Segments::of", "mask", newlines.len(), mask.len())?;
        let tokens = mask.iter().filter(|keep| **keep).count();
        let mut item = vec![-1; mask.len()];
        let mut current = 0i64;
        for (own, newlines) in item.iter_mut().zip(newlines).take(tokens) {
            *own = current;
            current = current.saturating_add(i64::try_from(*newlines).unwrap_or(i64::MAX));
        }
        let limit = i64::try_from(rec_num).unwrap_or(i64::MAX);
        let both = || item.iter().zip(mask);
        Ok(Self {
            content: both().map(|(i, keep)| *keep && (0..limit).contains(i)).collect(),
            overflow: both().map(|(i, keep)| *keep && *i >= limit).collect(),
            item,
            rec_num,
        })
    }

    /// Bins `[T]` for statistics of an item's tokens: the item, or `rec_num` for all overflow;
    /// padding is in bin 0 and to be masked.
    #[must_use]
    pub fn bins(&self) -> Vec<i64> {
        let overflow = i64::try_from(self.rec_num).unwrap_or(i64::MAX);
        self.item.iter().map(|item| (*item).clamp(0, overflow)).collect()
    }

    /// How many items the response has, by its newlines: the highest index plus 1.
    #[must_use]
    pub fn emitted(&self) -> usize {
        self.item.iter().max().map_or(0, |last| usize::try_from(last + 1).unwrap_or(0))
    }

    /// Tokens that the loss counts: content and overflow.
    #[must_use]
    pub fn loss_mask(&self) -> Vec<bool> {
        self.content.iter().zip(&self.overflow).map(|(c, o)| *c || *o).collect()
    }

    /// Ranks.
    #[must_use]
    pub fn rec_num(&self) -> usize {
        self.rec_num
    }
}
