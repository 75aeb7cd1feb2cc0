//! Rollout: the generation side of the training step.

pub mod engine;
pub mod progress;
pub mod random;
pub mod sampler;
pub mod stop;
pub mod weights;
