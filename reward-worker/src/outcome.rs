//! Scores and failures of one component.

use std::time::{Duration, Instant};

/// A score, or why there is none. A failure is never a number.
pub type Outcome = Result<f64, String>;

/// The time that a component has for one request.
#[derive(Debug, Clone, Copy)]
pub struct Deadline {
    limit: Duration,
    at: Instant,
}

impl Deadline {
    /// `limit` from now on.
    #[must_use]
    pub fn after(limit: Duration) -> Self {
        Self { limit, at: Instant::now() + limit }
    }

    /// The failure of what is asked for now, if the time is over.
    #[must_use]
    pub fn passed(&self) -> Option<String> {
        (Instant::now() >= self.at).then(|| format!("timed out after {:?}", self.limit))
    }
}

/// A score that is a number, or the failure that it is none.
///
/// # Errors
/// Names the value.
pub fn finite(score: f64) -> Outcome {
    if score.is_finite() { Ok(score) } else { Err(format!("the score is {score}")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_runs_out_and_is_named() {
        assert_eq!(Deadline::after(Duration::from_secs(3600)).passed(), None);
        let over = Deadline::after(Duration::ZERO);
        assert_eq!(over.passed().as_deref(), Some("timed out after 0ns"));
    }

    #[test]
    fn a_score_that_is_no_number_is_a_failure() {
        assert_eq!(finite(0.5), Ok(0.5));
        assert_eq!(finite(f64::NAN), Err("the score is NaN".into()));
        assert!(finite(f64::NEG_INFINITY).is_err());
    }
}
