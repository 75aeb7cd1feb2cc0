//! Reading golden files, and comparing results with them at each file's own tolerance.

mod case;
mod compare;
mod order;

pub use case::{Case, Failure, Fields, GoldenFile, Outcome, Tolerance, encode, encode_all};
pub use compare::{Agreement, Mismatch, compare, holds_nan};
pub use order::Order;
