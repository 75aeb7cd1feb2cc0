//! A judge's two scores, on the first line of its reply.

/// A reply whose first line is not two scores.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[error("the judge's first line is {line:?}, expected two numbers with one space between")]
pub struct ScorePairError {
    /// The line, cut to 200 characters.
    pub line: String,
}

/// The scores of the first and the second answer.
///
/// Source: safe-rlhf `evaluate/gpt4/eval.py`: the first line, stripped, is cut at single spaces and
/// must give exactly two numbers. Numbers are written as Python's `float` takes them: `8`, `7.5`,
/// `+1e1`, `1_0`, digits of other scripts.
///
/// # Errors
/// [`ScorePairError`] for anything else, `nan` and `inf` too: a judge that fails has no score.
pub fn score_pair(reply: &str) -> Result<[f64; 2], ScorePairError> {
    let line = first_line(reply);
    match two_floats(line) {
        Some(pair) if pair.iter().all(|score| score.is_finite()) => Ok(pair),
        _ => Err(ScorePairError { line: line.chars().take(200).collect() }),
    }
}

/// As the original: a reply that cannot be read scores 0 for both, which makes a judge's failure a
/// tie at the lowest score; infinities are taken. (It takes `nan` too; here such a score is 0.)
#[must_use]
pub fn compat_score_pair(reply: &str) -> [f64; 2] {
    let pair = two_floats(first_line(reply)).unwrap_or_default();
    pair.map(|score| if score.is_nan() { 0.0 } else { score })
}

fn first_line(reply: &str) -> &str {
    reply.split('\n').next().unwrap_or_default().trim_matches(is_space)
}

fn two_floats(line: &str) -> Option<[f64; 2]> {
    let (first, second) = line.split_once(' ')?;
    if second.contains(' ') {
        return None;
    }
    Some([float(first)?, float(second)?])
}

/// Python's white space: Unicode's, and the four separators of ASCII.
fn is_space(c: char) -> bool {
    c.is_whitespace() || ('\u{1c}'..='\u{1f}').contains(&c)
}

/// A number as Python's `float` reads it.
fn float(text: &str) -> Option<f64> {
    let mut plain = String::with_capacity(text.len());
    let chars: Vec<char> = text.trim_matches(is_space).chars().map(ascii_digit).collect();
    for (at, c) in chars.iter().enumerate() {
        let digit = |c: Option<&char>| c.is_some_and(char::is_ascii_digit);
        match c {
            '_' if digit(at.checked_sub(1).and_then(|b| chars.get(b)))
                && digit(chars.get(at + 1)) => {}
            '_' => return None,
            c => plain.push(*c),
        }
    }
    // Rust takes what Python takes: signs, exponents, `inf`, `infinity` and `nan` in any case.
    plain.parse().ok()
}

/// Decimal digits of other scripts as ASCII digits; other characters unchanged.
fn ascii_digit(c: char) -> char {
    let code = u32::from(c);
    // The script whose zero is the last at or below the character.
    let script = ZEROS.partition_point(|zero| *zero <= code).checked_sub(1);
    let value = script.map(|script| code - ZEROS[script]).filter(|value| *value < 10);
    value.and_then(|value| char::from_digit(value, 10)).unwrap_or(c)
}

/// The zeros of Unicode's decimal digits (category Nd) beyond ASCII, each followed by its 1 to 9.
const ZEROS: [u32; 65] = [
    0x660, 0x6F0, 0x7C0, 0x966, 0x9E6, 0xA66, 0xAE6, 0xB66, 0xBE6, 0xC66, 0xCE6, 0xD66, 0xDE6,
    0xE50, 0xED0, 0xF20, 0x1040, 0x1090, 0x17E0, 0x1810, 0x1946, 0x19D0, 0x1A80, 0x1A90, 0x1B50,
    0x1BB0, 0x1C40, 0x1C50, 0xA620, 0xA8D0, 0xA900, 0xA9D0, 0xA9F0, 0xAA50, 0xABF0, 0xFF10,
    0x104A0, 0x10D30, 0x11066, 0x110F0, 0x11136, 0x111D0, 0x112F0, 0x11450, 0x114D0, 0x11650,
    0x116C0, 0x11730, 0x118E0, 0x11950, 0x11C50, 0x11D50, 0x11DA0, 0x16A60, 0x16AC0, 0x16B50,
    0x1D7CE, 0x1D7D8, 0x1D7E2, 0x1D7EC, 0x1D7F6, 0x1E140, 0x1E2F0, 0x1E950, 0x1FBF0,
];
