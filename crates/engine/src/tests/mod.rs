//! Whole-engine tests on tiny models: against plain autograd over the whole model, over world
//! sizes, cuts and memory settings, and through disk.

mod adapters;
mod checkpoint_export;
mod checkpoints;
mod eight_bit;
mod offload;
mod policy;
mod preferences;
mod publication;
mod rewards;
mod skipped_steps;
mod supervised;
pub(crate) mod support;
mod training_curve;
mod values;
