//! Rewards: several models and rules in one process.
//!
//! A recipe names components and, for each label, which of them count. The worker loads the
//! components once ([`component`], [`models`]); components with the same model share its weights.
//! A request is planned ([`plan`]): each component sees the samples of the labels that need it,
//! and nothing else is computed. Models score packed batches at each sequence's last token
//! ([`classifier`], [`packing`]), rules read texts. What fails is an error of that component on
//! that sample ([`outcome`]), never a number.

pub mod classifier;
pub mod component;
pub mod models;
pub mod outcome;
pub mod packing;
pub mod plan;
pub mod score;
pub mod service;
pub mod transform;

#[cfg(test)]
mod tiny_model;
