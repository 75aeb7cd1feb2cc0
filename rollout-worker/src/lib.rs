//! Rollout: the generation side of the training step.
//!
//! - [`engine`]: continuous batching over a KV cache in blocks; prefix sharing; [`engine::Native`]
//!   is the model behind it.
//! - [`sampler`], [`random`], [`stop`]: how a token is drawn, from which stream, and when a
//!   response ends.
//! - [`weights`]: from a received version to the live one.
//! - [`state`]: what the device thread owns; [`service`] serves it; [`prompt`] and [`request`]
//!   check what comes in, [`progress`] keeps what goes out.
//!
//! Invariants are numbered where they are kept: RO in [`engine`], WE in [`weights`].

pub mod engine;
pub mod groups;
pub mod progress;
pub mod prompt;
pub mod random;
pub mod rendezvous;
pub mod request;
pub mod sampler;
pub mod service;
pub mod state;
pub mod stop;
pub mod weights;

#[cfg(test)]
mod tiny_model;
