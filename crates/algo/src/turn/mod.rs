//! Dialogues of several turns: the reward of a trajectory from the scores of its turns, its token
//! sequence with the mask of what the policy wrote, and the format a turn's answer must have.
//!
//! Source: SaFeR-Steer.

mod aggregation;
mod assembly;
pub mod compat;
mod thinking_answer;

pub use aggregation::Aggregation;
pub use assembly::{Assembly, EmptyResponse, Ending, Limits, Reply, Step, Trajectory, TurnEnd};
pub use thinking_answer::ThinkingAnswer;
