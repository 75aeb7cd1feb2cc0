//! What the maths refuses.

use crate::real::Real;

/// A call that cannot be answered. Messages name the function, what it was given and what would
/// be right.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum AlgoError {
    /// Two arguments whose lengths disagree.
    #[error("{function}: {argument} has {got} entries, expected {expected}")]
    Length {
        /// Which function.
        function: &'static str,
        /// Which argument.
        argument: &'static str,
        /// Entries that the other arguments ask for.
        expected: usize,
        /// Entries that it has.
        got: usize,
    },
    /// NaN or an infinity among the inputs.
    #[error("{function}: {argument}[{index}] is {value}, expected a finite number")]
    NonFinite {
        /// Which function.
        function: &'static str,
        /// Which argument.
        argument: &'static str,
        /// Where in it.
        index: usize,
        /// Its value.
        value: f64,
    },
    /// A group of one sample where the estimator compares samples of a group.
    #[error("{function}: group {group} has one sample, expected at least 2")]
    GroupOfOne {
        /// Which function.
        function: &'static str,
        /// Index of the group.
        group: usize,
    },
    /// Nothing to compute from.
    #[error("{function}: {what} is empty")]
    Empty {
        /// Which function.
        function: &'static str,
        /// What is empty.
        what: &'static str,
    },
    /// Too few values for the figure asked for.
    #[error("{function}: {got} values, expected at least {expected}")]
    TooFew {
        /// Which function.
        function: &'static str,
        /// How many there must be.
        expected: usize,
        /// How many there are.
        got: usize,
    },
    /// Values without spread where one divides by it.
    #[error("{function}: all values are {value}, expected some spread to divide by")]
    NoSpread {
        /// Which function.
        function: &'static str,
        /// The value.
        value: f64,
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
    /// A value of data of another type.
    #[error("{function}: {argument} is {got}, expected {expected}")]
    WrongType {
        /// Which function.
        function: &'static str,
        /// Which argument.
        argument: &'static str,
        /// What would be right.
        expected: &'static str,
        /// The value, as JSON.
        got: String,
    },
    /// A call at the wrong moment of a sequence.
    #[error("got {got}, expected {expected}")]
    OutOfTurn {
        /// What was given.
        got: &'static str,
        /// What is next.
        expected: &'static str,
    },
    /// A name that stands for no variant.
    #[error("unknown {what} {got:?}, expected one of {expected}")]
    UnknownName {
        /// What was named.
        what: &'static str,
        /// The name.
        got: String,
        /// The names there are.
        expected: &'static str,
    },
}

/// `got` must equal `expected`.
pub(crate) fn same_length(
    function: &'static str,
    argument: &'static str,
    expected: usize,
    got: usize,
) -> Result<(), AlgoError> {
    if expected == got {
        return Ok(());
    }
    Err(AlgoError::Length { function, argument, expected, got })
}

/// Every value must be finite.
pub(crate) fn all_finite(
    function: &'static str,
    argument: &'static str,
    values: &[f64],
) -> Result<(), AlgoError> {
    all_finite_from(function, argument, 0, values)
}

/// Every value must be finite; `start` is added to the index that is told.
pub(crate) fn all_finite_from<R: Real>(
    function: &'static str,
    argument: &'static str,
    start: usize,
    values: &[R],
) -> Result<(), AlgoError> {
    let not_finite = |value: &R| !(*value).into().is_finite();
    let Some(at) = values.iter().position(not_finite) else { return Ok(()) };
    let (index, value) = (start + at, values[at].into());
    Err(AlgoError::NonFinite { function, argument, index, value })
}

/// `value` must be finite and lie in the range that `holds` tells.
pub(crate) fn parameter(
    function: &'static str,
    parameter: &'static str,
    value: f64,
    holds: bool,
    expected: &'static str,
) -> Result<(), AlgoError> {
    if holds && value.is_finite() {
        return Ok(());
    }
    Err(AlgoError::Parameter { function, parameter, value, expected })
}

/// Every entry that `mask` keeps must be finite; `start` is added to the index that is told.
pub(crate) fn finite_within<R: Real>(
    function: &'static str,
    argument: &'static str,
    start: usize,
    values: &[R],
    mask: &[bool],
) -> Result<(), AlgoError> {
    for (index, (value, keep)) in values.iter().zip(mask).enumerate() {
        let value: f64 = (*value).into();
        if *keep && !value.is_finite() {
            return Err(AlgoError::NonFinite { function, argument, index: start + index, value });
        }
    }
    Ok(())
}

/// `entries` must be whole rows of `tokens`, at least one token each.
pub(crate) fn whole_rows(
    function: &'static str,
    tokens: usize,
    entries: usize,
) -> Result<(), AlgoError> {
    let holds = tokens > 0 && entries.is_multiple_of(tokens);
    parameter(function, "tokens", tokens as f64, holds, "at least 1, and whole rows of them")
}
