//! Losses on pairs of answers of which one is better.
//!
//! Of scores that a model gives: [`pairwise`] and [`pairwise_tokens`] (reward model),
//! [`cost`] and [`cost_tokens`] (cost model, with the sign of each answer's safety).
//!
//! Of log-probs under the policy: [`PairSpan`] says where two answers part, [`sum_log_probs`]
//! adds up an answer's tokens, [`PairValues`] makes of that what each answer is worth (log-ratio
//! for DPO, mean log-prob for SimPO), and [`preference`], [`pop_fixed`] and [`pop`] are the
//! losses on those.

mod cost;
mod direct;
mod pairwise;
mod pop;
mod span;
mod token_means;
mod values;

pub use cost::{Cost, CostLossType, CostTerms, SafetyLabels, cost, cost_tokens};
pub use direct::{Margin, Objective, Preference, PreferenceTerms, preference};
pub use pairwise::{
    Pairwise, PairwiseLossType, PairwiseTerms, TokenPairs, pairwise, pairwise_tokens,
    pairwise_with_margin,
};
pub use pop::{Pop, PopFixed, PopTerms, pop, pop_fixed};
pub use span::{Answer, Identical, PairSpan, Window, pair_spans, sum_log_probs};
pub use values::{AnswerRewards, PairValues};
