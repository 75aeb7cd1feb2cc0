//! Quantiles of Student's t distribution.

use statrs::distribution::{ContinuousCDF, Normal, StudentsT};
use statrs::function::beta::ln_beta;

use crate::AlgoError;
use crate::error::parameter;

/// The `t` with `P(T <= t) = probability` for `freedom` degrees of freedom (any number above 0,
/// infinity is the normal distribution). Probabilities 0 and 1 give `-inf` and `inf`.
///
/// Source: scipy `stats.t.ppf`, which HC-RLHF calls. `statrs` answers where its incomplete beta
/// function is accurate; close to the median, far out in the tails and for many degrees of freedom
/// a series does. Relative error below 1e-9, mostly below 1e-12.
///
/// # Errors
/// [`AlgoError::Parameter`] for a probability outside `[0, 1]` or a freedom that is not above 0
/// (scipy has NaN for both).
pub fn student_t_quantile(probability: f64, freedom: f64) -> Result<f64, AlgoError> {
    const F: &str = "student_t_quantile";
    parameter(F, "probability", probability, (0.0..=1.0).contains(&probability), "in [0, 1]")?;
    if freedom.is_nan() || freedom <= 0.0 {
        let expected = "above 0";
        return Err(AlgoError::Parameter {
            function: F,
            parameter: "freedom",
            value: freedom,
            expected,
        });
    }
    let side = if probability < 0.5 { -1.0 } else { 1.0 };
    let tail = probability.min(1.0 - probability);
    if tail == 0.0 {
        return Ok(side * f64::INFINITY);
    }
    let z = Normal::standard().inverse_cdf(probability);
    if freedom >= 100.0 && z * z <= freedom / 10.0 {
        return Ok(near_normal(z, freedom));
    }
    let off_median = probability - 0.5;
    if off_median.abs() < 1e-3 {
        return Ok(near_median(off_median, freedom));
    }
    if let Some(t) = far_tail(tail, freedom) {
        return Ok(side * t);
    }
    let exact = StudentsT::new(0.0, 1.0, freedom).map(|t| t.inverse_cdf(probability));
    exact.map_err(|_| AlgoError::Parameter {
        function: F,
        parameter: "freedom",
        value: freedom,
        expected: "above 0",
    })
}

/// Cornish-Fisher expansion around the normal quantile `z` (Abramowitz and Stegun 26.7.5, with one
/// term more), for many degrees of freedom.
fn near_normal(z: f64, freedom: f64) -> f64 {
    // Coefficients of z^1, z^3, .. of each term, and what divides it.
    const TERMS: [(&[f64], f64); 5] = [
        (&[1.0, 1.0], 4.0),
        (&[3.0, 16.0, 5.0], 96.0),
        (&[-15.0, 17.0, 19.0, 3.0], 384.0),
        (&[-945.0, -1920.0, 1482.0, 776.0, 79.0], 92_160.0),
        (&[17_955.0, -765.0, -1782.0, 930.0, 339.0, 27.0], 368_640.0),
    ];
    let square = z * z;
    let (mut t, mut over) = (z, 1.0);
    for (coefficients, divisor) in TERMS {
        over /= freedom;
        let polynomial = coefficients.iter().rev().fold(0.0, |sum, c| sum * square + c);
        t += z * polynomial * over / divisor;
    }
    t
}

/// `P(T <= t) - 1/2 = f(0) (t - (v + 1) t^3 / (6 v) + ..)`, turned round, close to the median.
fn near_median(off_median: f64, freedom: f64) -> f64 {
    // f(0) = 1 / (sqrt(v) B(v/2, 1/2)).
    let first = off_median * freedom.sqrt() * ln_beta(freedom / 2.0, 0.5).exp();
    first * (1.0 + (freedom + 1.0) / (6.0 * freedom) * first * first)
}

/// With `y = v / (v + t^2)` the tail is `I_y(v/2, 1/2) / 2 = y^(v/2) / (v B(v/2, 1/2)) (1 + ..)`:
/// the `t` for tails where `y` is next to nothing, `None` for others.
fn far_tail(tail: f64, freedom: f64) -> Option<f64> {
    let half = freedom / 2.0;
    let ln_y = ((2.0 * tail * half).ln() + ln_beta(half, 0.5)) / half;
    // t = sqrt(v (1 - y) / y); y^(1/2) alone would underflow later than y.
    (ln_y < 1e-10f64.ln()).then(|| (0.5 * (freedom.ln() - ln_y)).exp())
}
