//! The coordinator of a run, the agent of a node, and the `plumb` command.
//!
//! - [`step`]: the training step, as in a paper; [`ports`] is what it asks for, [`algorithm`] what
//!   it learns by, [`fleet`] how a cluster carries it out.
//! - [`stage`]: the stages of a recipe; [`job`]: a recipe in its run folder; [`report`]: the page;
//!   [`checkpoint`]: commits on disk.
//! - [`memory`]: what the processes will hold, before they start.
//! - [`cluster`]: membership, placement, supervision; [`agent`]: the node's side of it.
//! - [`doctor`]: what is wrong with a node. [`cli`]: the command line.

pub mod agent;
pub mod algorithm;
pub mod checkpoint;
pub mod cli;
pub mod cluster;
pub mod doctor;
pub mod fleet;
pub mod job;
pub mod learning_rate;
pub mod memory;
pub mod ports;
pub mod report;
pub mod stage;
pub mod step;
