//! The cluster with real processes: join, lease, kill, stop, end of stdin.

#![allow(missing_docs)]

mod access;
mod harness;
mod life;
mod loss;
