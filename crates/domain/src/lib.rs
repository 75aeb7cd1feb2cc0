//! The nouns of Plumbline: identities, versions and the records that cross process borders.
//!
//! Nothing here does I/O, and nothing here knows an algorithm. Records validate themselves on
//! construction, so that a value that exists is a value that makes sense.

mod id;
mod sample;
mod version;

pub use id::{AgentId, IdError, JobId, Label, PromptId, Role, SampleId, StepId, WorkerId};
pub use sample::{
    ChatMessage, FinishReason, Prompt, Sample, SampleError, SamplingError, SamplingParams,
    VersionSegment,
};
pub use version::{Epoch, PolicyVersion};
