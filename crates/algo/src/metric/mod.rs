//! What evaluation reports, one kind of figure a file.

mod arena;
mod batch_score;
mod multiple_choice;
mod score_pair;

pub use arena::{Arena, Cell, Match, Scores};
pub use batch_score::BatchScore;
pub use multiple_choice::{MultipleChoice, choice_log_prob};
pub use score_pair::{ScorePairError, compat_score_pair, score_pair};
