//! Numbers that token arrays are made of.

/// `f32` or `f64`. Sums are taken in `f64`, results are rounded once, on storing.
pub trait Real: Copy + Into<f64> + Send + Sync {
    /// Rounds to this type.
    fn of(value: f64) -> Self;
}

impl Real for f32 {
    fn of(value: f64) -> Self {
        value as f32
    }
}

impl Real for f64 {
    fn of(value: f64) -> Self {
        value
    }
}
