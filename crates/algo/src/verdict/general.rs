//! The general verifier: 0, a half or 1.

use std::sync::LazyLock;

use regex::Regex;

/// A sign or none, digits with or without a point before or between them. `\d` takes the decimal
/// digits of every script.
static NUMBER: LazyLock<Option<Regex>> = LazyLock::new(|| Regex::new(r"[-+]?\d*\.?\d+").ok());

/// The first number of a reply, snapped.
pub(super) fn verdict(reply: &str) -> Option<f64> {
    let number = NUMBER.as_ref()?.find(reply)?;
    let ascii: String = number.as_str().chars().map(ascii_digit).collect();
    ascii.parse().ok().map(snapped)
}

/// The nearest of 0, 0.5 and 1; the lower of two that are equally near.
fn snapped(value: f64) -> f64 {
    let mut nearest = 0.0;
    for score in [0.5, 1.0] {
        if (value - score).abs() < (value - nearest).abs() {
            nearest = score;
        }
    }
    nearest
}

/// The first number of a reply, snapped to the nearest of 0, 0.5 and 1 (a tie goes to the lower);
/// 0 where there is none. A number is a sign or none, digits, and a point with digits after it:
/// `1e-9` is 1, `3/4` is 3, `2.` is 2. Numbers too large for a double are 0, as in the reference:
/// all three scores are equally far.
///
/// Source: SafeWork-R1 `Qwen2VLRewardModelGeneral.forward`.
#[must_use]
pub fn general_score(reply: &str) -> f64 {
    verdict(reply).unwrap_or(0.0)
}

/// A decimal digit of any script as ASCII; anything else unchanged.
fn ascii_digit(c: char) -> char {
    let code = u32::from(c);
    let block = ZEROS.partition_point(|zero| *zero <= code);
    let zero = block.checked_sub(1).map_or(u32::MAX, |at| ZEROS[at]);
    match code.checked_sub(zero) {
        Some(digit) => char::from_digit(digit, 10).unwrap_or(c),
        None => c,
    }
}

/// The code points of the zeros of Unicode's decimal digits; each is followed by 1 to 9.
#[rustfmt::skip]
const ZEROS: [u32; 66] = [
    0x30, 0x660, 0x6f0, 0x7c0, 0x966, 0x9e6, 0xa66, 0xae6, 0xb66, 0xbe6, 0xc66, 0xce6, 0xd66,
    0xde6, 0xe50, 0xed0, 0xf20, 0x1040, 0x1090, 0x17e0, 0x1810, 0x1946, 0x19d0, 0x1a80, 0x1a90,
    0x1b50, 0x1bb0, 0x1c40, 0x1c50, 0xa620, 0xa8d0, 0xa900, 0xa9d0, 0xa9f0, 0xaa50, 0xabf0, 0xff10,
    0x104a0, 0x10d30, 0x11066, 0x110f0, 0x11136, 0x111d0, 0x112f0, 0x11450, 0x114d0, 0x11650,
    0x116c0, 0x11730, 0x118e0, 0x11950, 0x11c50, 0x11d50, 0x11da0, 0x16a60, 0x16ac0, 0x16b50,
    0x1d7ce, 0x1d7d8, 0x1d7e2, 0x1d7ec, 0x1d7f6, 0x1e140, 0x1e2f0, 0x1e950, 0x1fbf0,
];
