//! Texts with named gaps, in the notation of Python's `str.format`.

/// A template that cannot be filled.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TemplateError {
    /// A gap that nothing is given for, or one with an index, conversion or format.
    #[error("nothing is given for the gap {{{0}}}; literal braces are written {{{{ and }}}}")]
    UnknownGap(String),
    /// A brace that opens or closes no gap.
    #[error("a lone brace at byte {at}; literal braces are written {{{{ and }}}}")]
    LoneBrace {
        /// Where in the template.
        at: usize,
    },
}

/// The template with every `{name}` replaced by `value(name)`; `{{` and `}}` stand for braces. What
/// is put in is not searched for gaps.
///
/// # Errors
/// [`TemplateError::UnknownGap`] where `value` has none, [`TemplateError::LoneBrace`].
pub fn fill<'v>(
    template: &str,
    mut value: impl FnMut(&str) -> Option<&'v str>,
) -> Result<String, TemplateError> {
    let mut filled = String::with_capacity(template.len());
    let mut from = 0;
    while let Some(found) = template[from..].find(['{', '}']) {
        let at = from + found;
        filled.push_str(&template[from..at]);
        let (brace, rest) = template[at..].split_at(1);
        if rest.starts_with(brace) {
            filled.push_str(brace);
            from = at + 2;
            continue;
        }
        let end = if brace == "{" { rest.find('}') } else { None };
        let end = end.ok_or(TemplateError::LoneBrace { at })?;
        let gap = &rest[..end];
        let text = value(gap).ok_or_else(|| TemplateError::UnknownGap(gap.to_owned()))?;
        filled.push_str(text);
        from = at + 1 + end + 1;
    }
    filled.push_str(&template[from..]);
    Ok(filled)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn filled(template: &str) -> Result<String, TemplateError> {
        fill(template, |gap| (gap == "q").then_some("{q}?"))
    }

    #[test]
    fn gaps_are_filled_once_and_doubled_braces_are_literal() {
        assert_eq!(filled("a {q}b{{q}}{q}").unwrap(), "a {q}?b{q}{q}?");
        assert_eq!(filled("").unwrap(), "");
    }

    #[test]
    fn unknown_gaps_and_lone_braces_are_named() {
        assert_eq!(filled("{}"), Err(TemplateError::UnknownGap(String::new())));
        assert_eq!(filled("x{ q }"), Err(TemplateError::UnknownGap(" q ".to_owned())));
        for (template, at) in [("é{q", 2), ("}", 0), ("{q}}", 3), ("{{{", 2)] {
            assert_eq!(filled(template), Err(TemplateError::LoneBrace { at }), "{template}");
        }
    }
}
