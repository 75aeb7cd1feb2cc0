//! Blanks and lines as Python's `str` methods and patterns know them: the Unicode white space,
//! and the four separators U+001C to U+001F.

/// A blank of `str.strip()` and of `\s` in a Python pattern.
#[must_use]
pub fn is_blank(c: char) -> bool {
    c.is_whitespace() || ('\u{1c}'..='\u{1f}').contains(&c)
}

/// The text without blanks at its ends.
#[must_use]
pub fn strip(text: &str) -> &str {
    text.trim_matches(is_blank)
}

/// The lines of `str.splitlines()`: they also end at U+000B, U+000C, U+001C to U+001E, U+0085,
/// U+2028 and U+2029. `\r\n` may give an empty line in between, which says nothing.
pub fn lines(text: &str) -> impl Iterator<Item = &str> {
    text.split(
        |c| matches!(c, '\n'..='\r' | '\u{1c}'..='\u{1e}' | '\u{85}' | '\u{2028}' | '\u{2029}'),
    )
}
