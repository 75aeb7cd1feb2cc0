//! Logs and metrics.
//!
//! - [`log`]: `tracing` to stderr, filtered by `PLUMB_LOG`, as text or JSON lines.
//! - [`metric`]: the names of metrics, in one place.
//! - [`JsonLines`]: append-only files of one JSON value a line, whole lines only.

mod json_lines;
pub mod log;
pub mod metric;

pub use json_lines::{JsonLines, JsonLinesError};
