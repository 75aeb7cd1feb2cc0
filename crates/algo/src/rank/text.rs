//! The steps that take list marks, quotes and brackets off a line of a recommendation list. Each is
//! linear in the text.

use super::characters::{digit, is_space, strip};

/// Characters of emphasis, bullets and headings.
pub(crate) fn is_marker(c: char) -> bool {
    matches!(c, '*' | '_' | '-' | '#')
}

/// What may stand between a list number and the item.
pub(crate) fn is_delimiter(c: char) -> bool {
    matches!(c, '.' | ')' | '、' | '-' | '—' | '–')
}

/// One space for each run of white space, none at the ends (reference `del_space`).
#[must_use]
pub fn collapse_spaces(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for word in text.split(is_space).filter(|word| !word.is_empty()) {
        if !out.is_empty() {
            out.push(' ');
        }
        out.push_str(word);
    }
    out
}

/// Without the innermost bracketed parts, brackets included, after stripping (reference
/// `del_parentheses`): `a ((b) c)` becomes `a ( c)`. What surrounded them stays as it is.
#[must_use]
pub fn without_parentheses(text: &str) -> String {
    let text = strip(text);
    let mut out = String::with_capacity(text.len());
    let mut open = None;
    for c in text.chars() {
        match (c, open) {
            ('(', _) => {
                open = Some(out.len());
                out.push(c);
            }
            (')', Some(at)) => {
                out.truncate(at);
                open = None;
            }
            _ => out.push(c),
        }
    }
    out
}

/// Without a list number and its delimiter at the start (reference `del_numbering`): `10)x` becomes
/// `x`. The list parser does not use it; [`without_format`] takes numbers that a space follows.
#[must_use]
pub fn without_numbering(text: &str) -> &str {
    let text = strip(text);
    strip(after_number(text).unwrap_or(text))
}

/// What follows digits, white space and a delimiter at the start.
fn after_number(text: &str) -> Option<&str> {
    let rest = text.trim_start_matches(|c| digit(c).is_some());
    if rest.len() == text.len() {
        return None;
    }
    rest.trim_start_matches(is_space).strip_prefix(is_delimiter)
}

/// Without emphasis, bullets, headings and list numbers at the ends, again and again until nothing
/// changes (reference `del_format`). A list number goes only if white space follows it.
#[must_use]
pub fn without_format(text: &str) -> &str {
    let mut text = strip(text);
    // Digits at the front stay there once they turned out to be no list number, and need not be
    // read again.
    let mut may_be_numbered = true;
    loop {
        let mut inner = strip(text.trim_start_matches(is_marker));
        inner = strip(inner.trim_end_matches(is_marker));
        let unmarked = inner.trim_start_matches(is_marker);
        if unmarked.len() < inner.len() {
            if unmarked.starts_with(is_space) {
                inner = strip(unmarked);
            }
        } else if may_be_numbered && inner.starts_with(|c| digit(c).is_some()) {
            match after_number(inner).filter(|rest| rest.starts_with(is_space)) {
                Some(rest) => inner = strip(rest),
                None => may_be_numbered = false,
            }
        }
        let unhashed = inner.trim_start_matches('#');
        if unhashed.len() < inner.len() {
            inner = unhashed.trim_start_matches(is_space);
        }
        if inner.len() == text.len() {
            return inner;
        }
        text = inner;
    }
}

/// Without one pair of equal quotes around it (reference `remove_quotes`). A lone quote becomes
/// nothing.
#[must_use]
pub fn without_quotes(text: &str) -> &str {
    for quote in ['"', '\''] {
        if let Some(rest) = text.strip_prefix(quote) {
            return if rest.is_empty() { rest } else { rest.strip_suffix(quote).unwrap_or(text) };
        }
    }
    text
}
