//! SaFeR-Steer: repetition.

use plumb_golden::{Case, Failure, encode};
use serde_json::Value;

pub(crate) fn repetition_ratio(case: &Case) -> Result<Value, Failure> {
    Ok(encode(plumb_algo::rule::repetition_ratio(
        case.inputs.text("text")?,
        case.params.count("ngram")?,
        case.params.count("min_tokens")?,
    )))
}
