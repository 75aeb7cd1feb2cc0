//! Rank-GRPO and Safe-Rank-GRPO: reinforcement learning of recommendation lists, where each rank has
//! a reward and an advantage of its own.
//!
//! A response is read into films ([`list`]), held against what the user wanted ([`hits`]) and what
//! the user asked to be spared ([`oracle`]), rewarded by rank ([`reward`]) and compared by rank
//! within the group ([`advantage`]); tokens get the advantage of the item they write ([`segments`],
//! [`length_shaping`]). [`trait_label`], [`ground_truth`] and [`constraint`] prepare the data.
//!
//! Indices `k` of ranks are from 0. Every function on text takes time linear in it.

pub mod advantage;
pub mod characters;
pub mod constraint;
pub mod film;
pub mod ground_truth;
pub mod hits;
pub mod length_shaping;
pub mod list;
pub mod oracle;
pub mod reward;
pub mod segments;
pub mod text;
pub mod title;
pub mod trait_label;

pub use advantage::{Combination, RankAdvantage};
pub use film::{Film, Year};
pub use ground_truth::GroundTruthFilter;
pub use hits::{Catalog, Wanted, hits};
pub use length_shaping::{LengthShaping, token_advantages};
pub use list::{Solution, parse_list};
pub use oracle::{Oracle, Verdict, normalize_title};
pub use reward::{CountReward, PenaltyDiscount, Relevance, SafetyPenalty, discounts};
pub use segments::Segments;
