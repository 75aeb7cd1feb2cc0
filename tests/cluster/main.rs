//! The cluster with real processes: join, lease, kill, stop, end of stdin.

#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used)]

mod access;
mod harness;
mod life;
mod loss;
