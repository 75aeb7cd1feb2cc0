//! JSON within other text.

use super::parser::{Parser, Stop};
use super::{Json, JsonError};
use crate::blank::strip;

/// The payload of a reply: the whole text if it is a list, else the object at the first `{` from
/// which a whole object can be read; what follows it is passed over. `None` where there is none.
///
/// Time is linear in the text. An object that was open when reading failed is not tried again,
/// and one that was closed is found when its turn comes, so a byte is read at most once as part
/// of a string and once outside of one.
///
/// Source: SaFeR-Steer `_extract_json_payload`, which reads the rest of the text anew from every
/// `{`.
///
/// # Errors
/// [`JsonError`]: nested too deep, or an integer too long; nothing after it is looked at.
pub fn first_object(text: &str) -> Result<Option<Json>, JsonError> {
    let text = strip(text);
    let mut parser = Parser::new(text);
    if text.starts_with('[') {
        match parser.value(0) {
            Ok((list, end)) if parser.blanks(end) == text.len() => return Ok(Some(list)),
            Err(Stop::Fatal(error)) => return Err(error),
            Ok(_) | Err(Stop::Malformed) => {}
        }
    }
    for (start, _) in text.match_indices('{') {
        if parser.has_failed(start) {
            continue;
        }
        match parser.value(start) {
            Ok((object, _)) => return Ok(Some(object)),
            Err(Stop::Fatal(error)) => return Err(error),
            Err(Stop::Malformed) => {}
        }
    }
    Ok(None)
}

/// The object of a judge's reply, code fences taken off: the value at the first `{` or `[` where
/// that is an object, or a list that begins with one; else the object at the first `{`.
///
/// Source: SaFeR-Steer `_extract_first_json_obj` (evaluation/multi_turn/evaluate.py).
///
/// # Errors
/// As [`first_object`].
pub fn object_in(text: &str) -> Result<Option<Json>, JsonError> {
    let text = without_fence(text);
    let Some(first) = text.find(['{', '[']) else { return Ok(None) };
    let mut parser = Parser::new(text);
    match parser.value(first) {
        Ok((object @ Json::Object(_), _)) => return Ok(Some(object)),
        Ok((Json::List(items), _)) => {
            if let Some(object @ Json::Object(_)) = items.into_iter().next() {
                return Ok(Some(object));
            }
        }
        Err(Stop::Fatal(error)) => return Err(error),
        Ok(_) | Err(Stop::Malformed) => {}
    }
    let Some(brace) = text.find('{') else { return Ok(None) };
    match parser.value(brace) {
        Ok((object, _)) => Ok(Some(object)),
        Err(Stop::Fatal(error)) => Err(error),
        Err(Stop::Malformed) => Ok(None),
    }
}

/// The text without a leading fence (with or without `json`) and, then, without a closing one.
fn without_fence(text: &str) -> &str {
    let text = strip(text);
    let Some(body) = text.strip_prefix("```") else { return text };
    let body = match body.char_indices().nth(4) {
        Some((end, _)) if is_json(&body[..end]) => &body[end..],
        None if is_json(body) => "",
        _ => body,
    };
    let body = strip(body);
    strip(body.strip_suffix("```").unwrap_or(body))
}

/// `json` in any case; Python's patterns take U+017F for an s.
fn is_json(word: &str) -> bool {
    word.to_lowercase().replace('\u{17f}', "s") == "json"
}

/// As [`first_object`], with a fresh parser at every brace.
#[cfg(test)]
pub(crate) fn naive_first_object(text: &str) -> Result<Option<Json>, JsonError> {
    let text = strip(text);
    let list = || Parser::new(text).value(0);
    let mut found = match text.starts_with('[').then(list) {
        Some(Ok((value, end))) if text[end..].trim().is_empty() => Some(Ok(value)),
        Some(Err(Stop::Fatal(error))) => Some(Err(error)),
        _ => None,
    };
    for (start, _) in text.match_indices('{') {
        found = found.or_else(|| match Parser::new(text).value(start) {
            Ok((value, _)) => Some(Ok(value)),
            Err(Stop::Fatal(error)) => Some(Err(error)),
            Err(Stop::Malformed) => None,
        });
    }
    found.transpose()
}
