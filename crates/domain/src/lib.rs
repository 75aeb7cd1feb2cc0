//! The nouns of Plumbline: identities, versions and the records that cross process borders.
//!
//! Nothing here does I/O, and nothing here knows an algorithm; a name that recipes, workers and the
//! maths share (the kinds of KL estimate) is here with the formula it stands for. Records validate themselves on
//! construction, so that a value that exists is a value that makes sense.

mod id;
mod kl;
mod sample;
pub mod template;
pub mod text;
mod version;

pub use id::{AgentId, IdError, JobId, Label, PromptId, Role, SampleId, StepId, WorkerId};
pub use kl::{KlClamps, KlKind, UnknownKlKind};
pub use sample::{
    ChatMessage, FinishReason, Prompt, Sample, SampleError, SamplingError, SamplingParams,
    VersionSegment,
};
pub use version::{Epoch, PolicyVersion};
