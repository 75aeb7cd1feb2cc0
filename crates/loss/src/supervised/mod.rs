//! Losses on given texts.

mod causal_lm;

pub use causal_lm::{CausalLm, CausalLmTerms, causal_lm};
