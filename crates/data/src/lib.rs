//! Data sets: where rows come from ([`Source`]), what they look like ([`Schema`]), how they are
//! mixed ([`read_prompts`], [`read_supervised`], [`read_preferences`]), in what order a run goes
//! through them ([`Order`]), and what becomes of bad ones ([`Skipped`]). Text and messages only:
//! workers render chat templates and make token ids, but for safe-rlhf's own form
//! ([`preprocess`]).

mod conversation;
mod data_error;
mod dataset_spec;
mod hh_transcript;
mod image_bounds;
pub mod literal;
mod messages;
mod mix;
mod mixture;
mod mixture_error;
mod order;
mod pop_row;
mod preference_row;
pub mod preprocess;
pub mod prompt_row;
mod prompts;
mod rank_row;
mod raw_sample;
pub mod reference;
mod row;
pub mod safe_rlhf_rows;
mod safety_dialogue;
pub mod safety_row;
mod sample_error;
mod schema;
mod source;
mod supervised_row;
mod test_split;

pub use conversation::{PROMPT_ASSISTANT, PROMPT_BEGIN, format_prompt, split_prompt_response};
pub use data_error::DataError;
pub use dataset_spec::{DatasetSpec, Proportion};
pub use image_bounds::{ImageBounds, ImagePlan};
pub use messages::ROLES;
pub use mix::{
    MixSettings, Mixed, NamedRow, PartRead, read_pops, read_preferences, read_prompts,
    read_supervised,
};
pub use mixture::{Part, merge, select};
pub use mixture_error::MixtureError;
pub use order::{Batches, Order, OrderError, Position, Shard};
pub use plumb_config::PreferredBy;
pub use pop_row::PopRow;
pub use preference_row::{PairNeeds, PreferenceRow};
pub use prompts::Fallback;
pub use rank_row::RankRow;
pub use raw_sample::{Input, RawSample, SafeFlags};
pub use row::{At, Place, Row, RowFault, Skipped, SkippedRows};
pub use safety_dialogue::{DialogueError, SafetyDialogue};
pub use sample_error::SampleError;
pub use schema::{Schema, Use};
pub use source::{BATCH_ROWS, Loaded, Rows, Source};
pub use supervised_row::SupervisedRow;
pub use test_split::{NoTest, TestSplit};

#[cfg(test)]
mod fixtures;
#[cfg(test)]
mod paper;
#[cfg(test)]
mod properties;
