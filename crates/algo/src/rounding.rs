//! Decimal rounding.

/// `value` rounded to `decimals` places. What is rounded is the exact binary value; of two
/// decimals equally near, the one with an even last digit is taken, as by Python's `round`.
/// Infinities and NaN stay as they are.
#[must_use]
pub fn round_half_even(value: f64, decimals: usize) -> f64 {
    if !value.is_finite() {
        return value;
    }
    format!("{value:.decimals$}").parse().unwrap_or(value)
}
