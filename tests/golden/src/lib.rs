//! Reading golden files, and comparing results with them at each file's own tolerance.

mod case;
mod compare;

pub use case::{Case, Failure, Fields, GoldenFile, Outcome, Tolerance, encode, encode_all};
pub use compare::{Agreement, Mismatch, compare, holds_nan};
