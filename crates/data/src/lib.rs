//! Data sets: files of prompts, read whole and checked before a run spends time on them, and
//! safe-rlhf's samples: their text, their token ids, and how data sets are mixed and split;
//! SaFeR-Steer's dialogues and the size of their images.

mod conversation;
mod dataset_spec;
mod image_bounds;
pub mod literal;
mod mixture;
mod mixture_error;
pub mod preprocess;
pub mod prompt_row;
mod prompts;
mod raw_sample;
pub mod reference;
mod safety_dialogue;
pub mod safety_row;
mod sample_error;
mod test_split;
mod training_rows;

pub use conversation::{PROMPT_ASSISTANT, PROMPT_BEGIN, format_prompt, split_prompt_response};
pub use dataset_spec::{DatasetSpec, Proportion};
pub use image_bounds::{ImageBounds, ImagePlan};
pub use mixture::{Part, merge, select};
pub use mixture_error::MixtureError;
pub use prompts::{DataError, parse_prompts, read_prompts};
pub use raw_sample::{Input, RawSample, SafeFlags};
pub use safety_dialogue::{DialogueError, SafetyDialogue};
pub use sample_error::SampleError;
pub use test_split::{NoTest, TestSplit};
pub use training_rows::{
    Dialogue, PreferencePair, parse_dialogues, parse_preference_pairs, read_dialogues,
    read_preference_pairs,
};

#[cfg(test)]
mod paper;
#[cfg(test)]
mod properties;
