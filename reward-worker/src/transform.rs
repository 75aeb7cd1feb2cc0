//! What is done to a raw score before it becomes a reward.

/// A transform of one score.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Transform {
    /// The score as it is.
    Identity,
    /// `sigmoid(x)`.
    Sigmoid,
    /// `sigmoid(-x)`: UPS-RM's score of safety, where the model scores unsafeness.
    SigmoidNegated,
}

/// A transform that does not exist.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("transform {0:?} is not known: use identity, sigmoid or sigmoid_negated")]
pub struct UnknownTransform(String);

impl std::str::FromStr for Transform {
    type Err = UnknownTransform;

    fn from_str(name: &str) -> Result<Self, UnknownTransform> {
        match name {
            "identity" => Ok(Self::Identity),
            "sigmoid" => Ok(Self::Sigmoid),
            "sigmoid_negated" => Ok(Self::SigmoidNegated),
            _ => Err(UnknownTransform(name.to_owned())),
        }
    }
}

impl Transform {
    /// Applies the transform.
    #[must_use]
    pub fn apply(self, score: f64) -> f64 {
        match self {
            Self::Identity => score,
            Self::Sigmoid => sigmoid(score),
            Self::SigmoidNegated => sigmoid(-score),
        }
    }
}

/// The logistic function, without overflow at either end.
fn sigmoid(x: f64) -> f64 {
    if x >= 0.0 {
        1.0 / (1.0 + (-x).exp())
    } else {
        let e = x.exp();
        e / (1.0 + e)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn transforms_by_hand() {
        let at = |name: &str, x| name.parse::<Transform>().unwrap().apply(x);
        assert_eq!(at("identity", -3.5), -3.5);
        assert_eq!(at("sigmoid", 0.0), 0.5);
        // sigmoid(ln 3) = 3/4.
        assert!((at("sigmoid", 3f64.ln()) - 0.75).abs() < 1e-12);
        assert!((at("sigmoid_negated", 3f64.ln()) - 0.25).abs() < 1e-12);
        assert_eq!(at("sigmoid_negated", 1e6), 0.0);
        assert_eq!(at("sigmoid_negated", -1e6), 1.0);
        assert_eq!(
            "softmax".parse::<Transform>().unwrap_err().to_string(),
            "transform \"softmax\" is not known: use identity, sigmoid or sigmoid_negated"
        );
    }
}
