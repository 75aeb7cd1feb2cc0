//! Jobs: one submitted recipe in one run folder, from admission to its last event.

pub mod error;
pub mod events;
pub mod folder;
pub mod footprint;
pub mod log;
pub mod resume;
pub mod runner;
pub mod service;
pub mod summary;
