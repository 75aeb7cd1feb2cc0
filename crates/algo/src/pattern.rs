//! Python's patterns where they differ from those of the `regex` crate.

/// `\s` of Python: the `regex` crate's leaves out U+001C to U+001F.
pub(crate) const BLANK: &str = r"[\s\x1c-\x1f]";

/// A pattern without regard to case as Python's `re.IGNORECASE` takes it: beside the two cases
/// and the long s and Kelvin sign of Unicode's folding, a dotted capital or dotless small i is an
/// i. `literal` is text, not a pattern.
pub(crate) fn python_case(literal: &str) -> String {
    let escaped = regex::escape(literal);
    let folded: String =
        escaped
            .chars()
            .map(|c| {
                if matches!(c, 'i' | 'I') { "[iI\u{130}\u{131}]".to_owned() } else { c.to_string() }
            })
            .collect();
    format!("(?i:{folded})")
}
