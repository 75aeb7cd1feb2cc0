//! Tensor maths of training: policy, value, KL, entropy and preference losses.
//!
//! Legend of shape suffixes: B sequences, T tokens of a padded row, N packed tokens (the rows
//! laid end to end), P preference pairs, V vocabulary. `logp_bt` is a tensor `[B, T]`.
//!
//! **Layouts.** A per-token loss does not care how its tokens are laid out; only the aggregation
//! over sequences does. Every loss here takes tensors of one shape, `[B, T]` or `[N]`, and a
//! [`aggregate::Layout`] that says which it is.
//!
//! **Contributions.** A loss takes its denominators from outside ([`aggregate::Denominators`],
//! counted over the whole batch), so the losses of micro-batches and ranks simply add up to the
//! loss of the batch, however it was cut. Gradients then add up too.
//!
//! **Masks** are boolean or 0/1 tensors: a token outside the mask has no effect on any value or
//! gradient, also when it holds NaN.
//!
//! **Precision.** Maths is done in the kind of the inputs when that is double, else in float:
//! bf16 log-probs are cast up first, and gradients flow back through the cast.
//!
//! **Errors.** Shapes, kinds and parameters are checked before any tensor is made
//! ([`LossError`]). What libtorch itself refuses (out of memory) panics, as everywhere in `tch`;
//! the thread that owns the device turns that into a failure of its worker.

pub mod aggregate;
mod check;
pub mod entropy;
mod error;
pub mod importance;
pub mod kl;
pub mod logprobs;
pub mod policy;
pub mod preference;
pub mod scores;
pub mod supervised;
pub mod value;

pub use error::LossError;

#[cfg(test)]
mod differential;
#[cfg(test)]
mod paper;
#[cfg(test)]
mod properties;
