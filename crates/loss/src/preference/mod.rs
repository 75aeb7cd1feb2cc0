//! Losses on pairs of answers of which one is better.

mod pairwise;

pub use pairwise::{Pairwise, PairwiseTerms, TokenPairs, pairwise, pairwise_tokens};
