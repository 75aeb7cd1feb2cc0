//! Deep comparison of a result with what the reference returned.

use serde_json::Value;

use crate::case::{Tolerance, decode};

/// How well a result agrees.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Agreement {
    /// Largest `|got - expected|` over all numbers.
    pub largest_error: f64,
    /// Numbers compared.
    pub numbers: usize,
    /// Numbers that are NaN in the reference and defined here.
    pub defined: usize,
}

/// Where a result differs from the reference.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[error("{at}: got {got}, expected {expected}")]
pub struct Mismatch {
    /// Path within the result.
    pub at: String,
    /// Ours.
    pub got: String,
    /// The reference's.
    pub expected: String,
}

/// Compares structure, strings and flags exactly and numbers within `tolerance`. NaN equals NaN,
/// infinities equal themselves. Where the reference has NaN a finite number of ours is counted as
/// [`Agreement::defined`]: this project defines cases that the references leave at 0/0.
///
/// # Errors
/// The first [`Mismatch`].
pub fn compare(got: &Value, expected: &Value, tolerance: Tolerance) -> Result<Agreement, Mismatch> {
    let mut agreement = Agreement::default();
    walk("result", got, expected, tolerance, &mut agreement)?;
    Ok(agreement)
}

fn walk(
    at: &str,
    got: &Value,
    expected: &Value,
    tolerance: Tolerance,
    agreement: &mut Agreement,
) -> Result<(), Mismatch> {
    let mismatch = || Mismatch { at: at.to_owned(), got: brief(got), expected: brief(expected) };
    match (got, expected) {
        (Value::Array(g), Value::Array(e)) if g.len() == e.len() => {
            for (i, (g, e)) in g.iter().zip(e).enumerate() {
                walk(&format!("{at}[{i}]"), g, e, tolerance, agreement)?;
            }
            Ok(())
        }
        (Value::Object(g), Value::Object(e)) if g.len() == e.len() => {
            for (key, e) in e {
                let g = g.get(key).ok_or_else(|| Mismatch {
                    at: format!("{at}.{key}"),
                    got: "nothing".to_owned(),
                    expected: brief(e),
                })?;
                walk(&format!("{at}.{key}"), g, e, tolerance, agreement)?;
            }
            Ok(())
        }
        (Value::Null, Value::Null) => Ok(()),
        (Value::Bool(g), Value::Bool(e)) if g == e => Ok(()),
        (Value::String(g), Value::String(e)) if g == e => Ok(()),
        _ => match (number(got), number(expected)) {
            (Some(g), Some(e)) => {
                agreement.numbers += 1;
                if e.is_nan() && g.is_finite() {
                    agreement.defined += 1;
                    return Ok(());
                }
                let same = g == e || (g.is_nan() && e.is_nan());
                let error = if same { 0.0 } else { (g - e).abs() };
                // A NaN error compares false and so is a mismatch.
                if error <= tolerance.atol + tolerance.rtol * e.abs() {
                    agreement.largest_error = agreement.largest_error.max(error);
                    return Ok(());
                }
                Err(mismatch())
            }
            _ => Err(mismatch()),
        },
    }
}

/// Does a result hold NaN anywhere?
#[must_use]
pub fn holds_nan(value: &Value) -> bool {
    match value {
        Value::Array(items) => items.iter().any(holds_nan),
        Value::Object(fields) => fields.values().any(holds_nan),
        Value::String(text) => text == "NaN",
        _ => false,
    }
}

/// Numbers and the names of non-finite ones, but no flags.
fn number(value: &Value) -> Option<f64> {
    if value.is_boolean() { None } else { decode(value) }
}

fn brief(value: &Value) -> String {
    let text = value.to_string();
    if text.chars().count() <= 120 {
        return text;
    }
    text.chars().take(117).chain("...".chars()).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const LOOSE: Tolerance = Tolerance { rtol: 0.0, atol: 0.01 };

    #[test]
    fn numbers_agree_within_the_tolerance_and_the_largest_error_is_kept() {
        let agreement = compare(&json!({"a": [1.005, 2]}), &json!({"a": [1, 2.0]}), LOOSE).unwrap();
        assert_eq!(agreement.numbers, 2);
        assert!((agreement.largest_error - 0.005).abs() < 1e-12);
        let far = compare(&json!([1.0, 2.02]), &json!([1.0, 2.0]), LOOSE).unwrap_err();
        assert_eq!(far.to_string(), "result[1]: got 2.02, expected 2.0");
    }

    #[test]
    fn structure_flags_and_missing_keys_are_compared_exactly() {
        assert!(compare(&json!([1]), &json!([1, 2]), LOOSE).is_err());
        assert!(compare(&json!(true), &json!(1), LOOSE).is_err());
        assert!(compare(&json!({"a": 1}), &json!({"b": 1}), LOOSE).is_err());
        assert!(compare(&json!("x"), &json!("y"), LOOSE).is_err());
    }

    #[test]
    fn infinities_equal_themselves_and_a_number_where_the_reference_has_nan_is_counted() {
        assert!(compare(&json!("inf"), &json!("inf"), LOOSE).is_ok());
        assert!(compare(&json!("inf"), &json!("-inf"), LOOSE).is_err());
        assert!(compare(&json!("NaN"), &json!("NaN"), LOOSE).is_ok());
        assert!(compare(&json!("NaN"), &json!(1.0), LOOSE).is_err());
        assert_eq!(compare(&json!(0.0), &json!("NaN"), LOOSE).unwrap().defined, 1);
    }
}
