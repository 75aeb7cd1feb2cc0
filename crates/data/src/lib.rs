//! Data sets: files of prompts, read whole and checked before a run spends time on them.

mod prompts;

pub use prompts::{DataError, parse_prompts, read_prompts};
