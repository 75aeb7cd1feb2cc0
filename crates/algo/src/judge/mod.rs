//! A judge model: what it is asked about a turn, how its reply is read, how the dialogue goes on,
//! and the scores of an evaluation with a judge. No I/O: a call's outcome comes in as an argument.
//!
//! Source: SaFeR-Steer.

mod error;
mod evaluation;
mod interaction;
mod message;
mod question;
mod record;
mod reply;
mod settings;
mod template;

pub use error::JudgeError;
pub use evaluation::{RateSummary, Rates, SampleScores, summarize};
pub use interaction::{Exchange, Interaction, Outcome, Turn};
pub use message::{Image, Message};
pub use question::{question_in_payload, question_in_text};
pub use record::Record;
pub use reply::{Dimensions, Scores, Verdict};
pub use settings::{JudgeCall, RepetitionPenalty, Settings, Unjudged};
pub use template::Template;
