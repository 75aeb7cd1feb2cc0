//! Character classes and number syntax as the reference's language has them, where they differ from
//! Rust's.

use std::sync::LazyLock;

use regex_syntax::hir::{Class, HirKind};

/// White space: Rust's, and the four ASCII information separators (U+001C to U+001F).
#[must_use]
pub fn is_space(c: char) -> bool {
    c.is_whitespace() || ('\u{1c}'..='\u{1f}').contains(&c)
}

/// Without white space at both ends.
#[must_use]
pub fn strip(text: &str) -> &str {
    text.trim_matches(is_space)
}

/// Runs of code points of a class of the regex syntax, in order.
fn runs(class: &str) -> Vec<(char, char)> {
    match regex_syntax::parse(class).map(|hir| hir.into_kind()) {
        Ok(HirKind::Class(Class::Unicode(class))) => {
            class.ranges().iter().map(|range| (range.start(), range.end())).collect()
        }
        _ => Vec::new(),
    }
}

/// The first of the run that holds a character.
fn run_of(runs: &[(char, char)], c: char) -> Option<char> {
    let at = runs.partition_point(|(first, _)| *first <= c).checked_sub(1)?;
    let (first, last) = runs[at];
    (c <= last).then_some(first)
}

/// The value of a decimal digit (category Nd) of any script.
#[must_use]
pub fn digit(c: char) -> Option<u32> {
    // A run holds whole sets of ten, 0 first.
    static DIGITS: LazyLock<Vec<(char, char)>> = LazyLock::new(|| runs(r"\d"));
    if c.is_ascii() {
        return c.to_digit(10);
    }
    run_of(&DIGITS, c).map(|first| (c as u32 - first as u32) % 10)
}

/// Letters, numbers of any kind, and the underscore. Combining marks are none of these.
#[must_use]
pub fn is_word(c: char) -> bool {
    static WORD: LazyLock<Vec<(char, char)>> = LazyLock::new(|| runs(r"[\p{L}\p{N}_]"));
    if c.is_ascii() {
        return c.is_ascii_alphanumeric() || c == '_';
    }
    run_of(&WORD, c).is_some()
}

/// A whole number as people write it into data: white space around it, a sign, digits of any
/// script, single underscores between digits. `None` for anything else, and beyond 64 bits.
#[must_use]
pub fn whole_number(text: &str) -> Option<i64> {
    let text = strip(text);
    let (sign, digits) = match text.strip_prefix('-') {
        Some(rest) => (-1, rest),
        None => (1, text.strip_prefix('+').unwrap_or(text)),
    };
    let mut value: i64 = 0;
    let mut digit_before = false;
    for c in digits.chars() {
        match digit(c) {
            Some(d) => {
                value = value.checked_mul(10)?.checked_add(sign * i64::from(d))?;
                digit_before = true;
            }
            None if c == '_' && digit_before => digit_before = false,
            None => return None,
        }
    }
    digit_before.then_some(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digits_of_other_scripts_have_their_value() {
        assert_eq!(digit('7'), Some(7));
        assert_eq!(digit('٣'), Some(3));
        assert_eq!(digit('９'), Some(9));
        // The mathematical digits are five sets of ten in one run.
        assert_eq!(digit('\u{1d7ff}'), Some(9));
        assert_eq!(digit('\u{1d7d8}'), Some(0));
        assert_eq!(digit('½'), None);
        assert_eq!(digit('x'), None);
    }

    #[test]
    fn accents_that_stand_alone_are_no_word_characters() {
        assert!(['é', '中', '½', 'Ⅷ', '_', '٣'].into_iter().all(is_word));
        assert!(!['\u{301}', 'Ⓐ', '·', '’', ' ', '-'].into_iter().any(is_word));
    }

    #[test]
    fn whole_numbers_are_read_leniently_but_not_more() {
        for (text, value) in [(" 2004\n", 2004), ("+1_9", 19), ("-0", 0), ("２００１", 2001)] {
            assert_eq!(whole_number(text), Some(value), "{text:?}");
        }
        for text in
            ["", " ", "+", "2004.0", "_1", "1_", "1__2", "1 2", "- 1", "99999999999999999999"]
        {
            assert_eq!(whole_number(text), None, "{text:?}");
        }
        assert_eq!(whole_number("-9223372036854775808"), Some(i64::MIN));
    }

    #[test]
    fn information_separators_are_white_space() {
        assert_eq!(strip("\u{1f}\u{a0}a b\u{85}\u{1c}"), "a b");
        assert!(!is_space('\u{200b}'));
    }
}
