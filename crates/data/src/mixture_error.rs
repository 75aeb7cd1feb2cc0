//! Mixtures and splits that cannot be made.

/// A mixture that cannot be made.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum MixtureError {
    /// More than name, proportion and path.
    #[error("data set {text:?} has more than two colons, expected name[:proportion[:path]]")]
    Colons {
        /// What was given.
        text: String,
    },
    /// A proportion that is no number.
    #[error("data set {text:?}: proportion {proportion:?}, expected a number, a/b or n/-1")]
    Proportion {
        /// What was given.
        text: String,
        /// The part of it.
        proportion: String,
    },
    /// A second colon with no path after it.
    #[error("data set {text:?} ends with a colon, expected a path after it")]
    NoPath {
        /// What was given.
        text: String,
    },
    /// A proportion out of range.
    #[error("{name}: proportion {proportion}, expected a finite number of at least 0")]
    OutOfRange {
        /// Which data set.
        name: String,
        /// Its proportion, or minus the number of samples.
        proportion: f64,
    },
    /// Samples asked of a data set that has none.
    #[error("{name} has no samples, {asked} are asked for")]
    NoSamples {
        /// Which data set.
        name: String,
        /// How many were asked for.
        asked: usize,
    },
    /// Two data sets of one name.
    #[error("two data sets are named {name}")]
    SameName {
        /// The name.
        name: String,
    },
    /// A share of test samples out of range.
    #[error("test share {share}, expected a number in [0, 1]")]
    TestShare {
        /// The share.
        share: f64,
    },
}
