//! Numbers in strings, as Python's `float(text)` and `int(text)` read them. The blanks that they
//! pass over are the Unicode white space, without the separators that `str.strip` takes off too.

use std::sync::LazyLock;

use regex::Regex;

/// The number that a text is, blanks around it taken off: digits with an optional sign, point
/// and exponent, single underscores between digits, `inf`, `infinity` or `nan` in any case.
/// Digits of any script count. `None` for other text.
#[must_use]
pub fn float_of_text(text: &str) -> Option<f64> {
    let text = ascii_digits(text.trim())?;
    FLOAT.is_match(&text).then(|| text.replace('_', "").parse().ok()).flatten()
}

/// The integer that a text is, blanks around it taken off: digits with an optional sign and
/// single underscores between them. As `f64`, the nearest where it is beyond 2^53. Digits of any
/// script count. `None` for other text, `3.0` among it.
#[must_use]
pub fn int_of_text(text: &str) -> Option<f64> {
    let text = ascii_digits(text.trim())?;
    let digits = text.bytes().filter(u8::is_ascii_digit).count();
    let whole = INT.is_match(&text) && digits <= super::MAX_INTEGER_DIGITS;
    whole.then(|| text.replace('_', "").parse().ok()).flatten()
}

#[allow(clippy::expect_used, reason = "a constant pattern, compiled in every test run")]
static FLOAT: LazyLock<Regex> = LazyLock::new(|| {
    let digits = "[0-9]+(?:_[0-9]+)*";
    let pattern = format!(
        r"^[+-]?(?:(?:{digits}\.?(?:{digits})?|\.{digits})(?:[eE][+-]?{digits})?|(?i-u:inf|infinity|nan))$"
    );
    Regex::new(&pattern).expect("a constant pattern")
});

#[allow(clippy::expect_used, reason = "a constant pattern, compiled in every test run")]
static INT: LazyLock<Regex> =
    LazyLock::new(|| Regex::new("^[+-]?[0-9]+(?:_[0-9]+)*$").expect("a constant pattern"));

#[allow(clippy::expect_used, reason = "a constant pattern, compiled in every test run")]
static DECIMAL_DIGIT: LazyLock<Regex> =
    LazyLock::new(|| Regex::new(r"^\p{Nd}$").expect("a constant pattern"));

/// Digits of other scripts as ASCII ones; `None` if another character is not ASCII.
fn ascii_digits(text: &str) -> Option<String> {
    text.chars().map(|c| if c.is_ascii() { Some(c) } else { digit(c) }).collect()
}

/// Decimal digits stand in Unicode in runs of ten, each beginning with its zero.
fn digit(c: char) -> Option<char> {
    let is_digit = |c: char| DECIMAL_DIGIT.is_match(c.encode_utf8(&mut [0; 4]));
    if !is_digit(c) {
        return None;
    }
    let before = (1u32..).take_while(|step| {
        (c as u32).checked_sub(*step).and_then(char::from_u32).is_some_and(is_digit)
    });
    char::from_digit(before.count() as u32 % 10, 10)
}
