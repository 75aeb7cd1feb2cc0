//! Safety constraints: multipliers, confidence bounds and the test that decides.
//!
//! Two ways to keep the cost `C` of a policy below a threshold `d` while its reward grows.
//! PPO-Lag (Dai et al. 2024, safe-rlhf): `E[C] <= d`, with a [`Multiplier`] moved by the mean cost
//! of recent episodes ([`CostWindow`]) and advantages mixed by [`Mixing`]. CI-Lag (HC-RLHF): an
//! upper confidence bound of `E[C]` must be `<= d`, with the [`ConfidenceBound`] in the multiplier
//! and in the [`AugmentedCost`], and a [`SafetyTest`] at the end.

mod augmented_cost;
mod confidence;
mod cost_window;
mod mixing;
mod multiplier;
mod running_baseline;
mod safety_test;
mod student_t;

pub use augmented_cost::{AugmentedCost, NoSpread};
pub use confidence::{Coefficient, ConfidenceBound};
pub use cost_window::CostWindow;
pub use mixing::{Mixing, penalized_rewards};
pub use multiplier::{Multiplier, MultiplierSpec};
pub use running_baseline::RunningBaseline;
pub use safety_test::{SafetyBound, SafetyTest, Verdict};
pub use student_t::student_t_quantile;
