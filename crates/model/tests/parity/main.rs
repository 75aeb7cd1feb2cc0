//! Against transformers' numbers, stored in `tests/parity/data` by `make_vectors.py`.

mod gradients;
mod imported;
mod log_probs;
mod scores;
mod vectors;
