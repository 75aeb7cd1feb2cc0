//! Scalar and per-token maths of RL post-training, on slices: no tensors, no I/O, no clock.
//!
//! Legend: B samples (sequences), T tokens of a sample, G samples of a group (one prompt's), n a
//! count. Rewards and advantages of samples are `f64`; functions over tokens take `f32` or `f64`
//! ([`real::Real`]) and add up in `f64`.
//!
//! **Masks** are `bool` slices, true for tokens that count.
//!
//! **Edge cases** are defined, never a silent NaN: a non-finite input is
//! [`AlgoError::NonFinite`], an empty mask or batch [`AlgoError::Empty`], a group of one follows
//! the stated [`advantage::Singleton`] rule, and a group without variance has advantages 0.

pub mod advantage;
pub mod blank;
pub mod clamped_reward;
pub mod constraint;
pub mod dynamic_sampling;
mod error;
pub mod group;
pub mod json;
pub mod judge;
pub mod kl;
pub mod kl_controller;
pub mod learning_rate;
pub mod masked;
pub mod metric;
pub mod mix;
pub mod model_score;
pub mod normalizer;
pub mod overlong;
pub mod pairwise;
pub mod parameter_average;
mod pattern;
pub mod rank;
pub mod real;
mod recurrence;
pub mod response_mask;
pub mod returns;
pub mod reward_models;
pub mod rounding;
pub mod rule;
pub mod running_moments;
pub mod statistics;
mod threads;
pub mod token_reward;
pub mod turn;
pub mod verdict;

pub use error::AlgoError;

#[cfg(test)]
mod differential;
#[cfg(test)]
mod paper;
#[cfg(test)]
mod properties;
