//! What a loss refuses.

use tch::Kind;

/// A call that cannot be answered. Messages name the function, the argument, what it held and
/// what would be right.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum LossError {
    /// A tensor of the wrong shape.
    #[error("{function}: {argument} has shape {got:?}, expected {expected:?}")]
    Shape {
        /// Which function.
        function: &'static str,
        /// Which argument.
        argument: &'static str,
        /// The shape that the other arguments ask for.
        expected: Vec<i64>,
        /// Its shape.
        got: Vec<i64>,
    },
    /// A tensor of the wrong rank (number of dimensions).
    #[error("{function}: {argument} has shape {got:?}, expected {expected}")]
    Rank {
        /// Which function.
        function: &'static str,
        /// Which argument.
        argument: &'static str,
        /// What would be right.
        expected: &'static str,
        /// Its shape.
        got: Vec<i64>,
    },
    /// A tensor of the wrong kind.
    #[error("{function}: {argument} is of kind {got:?}, expected {expected}")]
    Kind {
        /// Which function.
        function: &'static str,
        /// Which argument.
        argument: &'static str,
        /// What would be right.
        expected: &'static str,
        /// Its kind.
        got: Kind,
    },
    /// A parameter out of range.
    #[error("{function}: {parameter} = {value}, expected {expected}")]
    Parameter {
        /// Which function.
        function: &'static str,
        /// Which parameter.
        parameter: &'static str,
        /// Its value.
        value: f64,
        /// What would be right.
        expected: &'static str,
    },
    /// A name that stands for no variant.
    #[error("unknown {what} {got:?}, expected one of {expected}")]
    UnknownName {
        /// What was named ("aggregation", "kl kind").
        what: &'static str,
        /// The name.
        got: String,
        /// The names there are.
        expected: &'static str,
    },
    /// Packed sequence bounds that do not cover the tokens.
    #[error("{function}: cu_seqlens {got:?} does not rise from 0 to {tokens} tokens")]
    Bounds {
        /// Which function.
        function: &'static str,
        /// The bounds.
        got: Vec<i64>,
        /// Number of packed tokens.
        tokens: i64,
    },
    /// A token span that is empty or leaves its row.
    #[error("{function}: span {first}..={last} is empty or leaves the row of {tokens} tokens")]
    Span {
        /// Which function.
        function: &'static str,
        /// First token.
        first: i64,
        /// Last token.
        last: i64,
        /// Tokens of the padded row.
        tokens: i64,
    },
    /// A row without a single attended token.
    #[error("{function}: row {row} of {argument} has no attended token")]
    EmptyRow {
        /// Which function.
        function: &'static str,
        /// Which argument.
        argument: &'static str,
        /// The row's number.
        row: usize,
    },
    /// A pair whose answers are the same.
    #[error("{function}: the answers of pair {row} are the same, so none is better")]
    IdenticalPair {
        /// Which function.
        function: &'static str,
        /// The pair's number.
        row: usize,
    },
    /// A token id or label that the vocabulary does not have.
    #[error("{function}: label {label} is outside the vocabulary of {vocabulary}")]
    Label {
        /// Which function.
        function: &'static str,
        /// The label.
        label: i64,
        /// Size of the vocabulary.
        vocabulary: i64,
    },
    /// An argument that the chosen objective needs is missing.
    #[error("{function}: {argument} is missing, needed because {because}")]
    Missing {
        /// Which function.
        function: &'static str,
        /// Which argument.
        argument: &'static str,
        /// Why it is needed.
        because: &'static str,
    },
    /// The whole batch has no token (or no pair) to average over.
    #[error("{function}: nothing to average over, the whole batch has no {what}")]
    Empty {
        /// Which function.
        function: &'static str,
        /// "tokens", "sequences" or "pairs".
        what: &'static str,
    },
    /// A result that is not a number, or infinite.
    #[error("{function}: {what} is {value}")]
    NonFinite {
        /// Which function.
        function: &'static str,
        /// Which result.
        what: &'static str,
        /// Its value.
        value: f64,
    },
}
