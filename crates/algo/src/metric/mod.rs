//! What evaluation reports, one kind of figure a file.

mod arena;
mod batch_score;
mod multiple_choice;
mod ranking;
mod score_pair;
mod sensitivity;

pub use arena::{Arena, Cell, Match, Scores};
pub use batch_score::BatchScore;
pub use multiple_choice::{MultipleChoice, choice_log_prob};
pub use ranking::{
    Ranking, YEAR_TOLERANCE, catalog_match_ratio, dcg_at, ndcg_at, ranking_at, recall_at,
};
pub use score_pair::{ScorePairError, compat_score_pair, score_pair};
pub use sensitivity::{Sensitivity, sensitivity_at};
