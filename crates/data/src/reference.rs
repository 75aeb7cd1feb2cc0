//! Reference answers, in the many forms in which data sets have them.

use plumb_domain::text::strip;
use serde_json::Value;

use crate::literal::python_literal;

/// A reference answer in one form.
///
/// An object gives its `value`, else its `ground_truth`, else itself. Text is stripped, and text in
/// brackets that is a Python literal gives that literal's value. A list of one element, literal or
/// not, gives that element as it stands.
///
/// Source: LightRFT `prompts_dataset_vl._normalize_reference`.
#[must_use]
pub fn normalise_reference(reference: &Value) -> Value {
    let inner = match reference {
        Value::Object(fields) => {
            fields.get("value").or_else(|| fields.get("ground_truth")).unwrap_or(reference)
        }
        other => other,
    };
    match inner {
        Value::String(text) => {
            let text = strip(text);
            let bracketed = |open, close| text.starts_with(open) && text.ends_with(close);
            let literal = (bracketed('[', ']') || bracketed('(', ')'))
                .then(|| python_literal(text))
                .flatten();
            literal.map_or_else(|| Value::from(text), unwrapped)
        }
        other => unwrapped(other.clone()),
    }
}

/// The element of a list of one.
fn unwrapped(value: Value) -> Value {
    match value {
        Value::Array(mut items) if items.len() == 1 => items.remove(0),
        other => other,
    }
}
