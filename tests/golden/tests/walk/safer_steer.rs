//! SaFeR-Steer: repetition.

use plumb_golden::{Case, Failure, encode};
use serde_json::Value;

use crate::{Check, Consumer};

pub(crate) const CONSUMERS: &[Consumer] =
    &[("safer_steer/repetition_ratio", Check::Result(repetition_ratio))];

fn repetition_ratio(case: &Case) -> Result<Value, Failure> {
    Ok(encode(plumb_algo::rule::repetition_ratio(
        case.inputs.text("text")?,
        case.params.count("ngram")?,
        case.params.count("min_tokens")?,
    )))
}
