//! Against transformers' numbers, stored in `tests/parity/data` by `make_vectors.py`.

// Clippy's exception for tests does not reach the functions they share.
#![allow(clippy::unwrap_used, clippy::print_stdout)]

mod gradients;
mod imported;
mod log_probs;
mod scores;
mod vectors;
