//! Blanks as the Python references count them.

/// White space of Unicode and the four separators U+001C to U+001F: what Python's `str.strip` and
/// `\s` take for blank. `char::is_whitespace` leaves the separators out.
#[must_use]
pub fn is_blank(c: char) -> bool {
    c.is_whitespace() || matches!(c, '\u{1c}'..='\u{1f}')
}

/// The text without blanks at either end ([`is_blank`]).
#[must_use]
pub fn strip(text: &str) -> &str {
    text.trim_matches(is_blank)
}

/// Does the text hold a CJK unified ideograph, U+4E00 to U+9FFF? The block alone: Japanese and
/// Korean syllables, punctuation and the extension blocks do not count.
#[must_use]
pub fn has_chinese(text: &str) -> bool {
    text.chars().any(is_chinese)
}

/// Is this a CJK unified ideograph, U+4E00 to U+9FFF?
#[must_use]
pub fn is_chinese(c: char) -> bool {
    matches!(c, '\u{4e00}'..='\u{9fff}')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn separators_and_wide_blanks_are_stripped_and_nothing_else() {
        assert_eq!(strip("\u{1f}\u{3000}\u{a0} a b\u{85}\u{1c}\n"), "a b");
        assert_eq!(strip("\u{200b}a\u{feff}"), "\u{200b}a\u{feff}");
        assert_eq!(strip(" \t"), "");
    }

    #[test]
    fn chinese_is_the_one_block() {
        assert!(has_chinese("a\u{4e00}") && has_chinese("\u{9fff}"));
        assert!(!has_chinese("ア한\u{3400}\u{a000}。"));
    }
}
