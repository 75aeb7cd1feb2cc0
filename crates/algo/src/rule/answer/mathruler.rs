//! Answer equality as the Python package mathruler 0.1.0 decides it, oddities included.
//!
//! Two answers are equal when either of two normal forms agrees, or when, part by part, their
//! difference simplifies to 0. Fractions must be reduced alike (`2/4` is not `1/2`), a whole number
//! is met by the same whole number alone (`4/2` is not `2`), units and percent signs are dropped
//! (`50%` is `50`), and `\frac{a+b}{c}` reads `a+b/c`. Where mathruler asks sympy, this evaluates
//! ([`super::expression`]); where it asks pylatexenc, this knows the commands of
//! [`super::plain_latex`].

use std::sync::LazyLock;

use plumb_domain::text::strip;
use regex::Regex;

use super::expression::{self, Names};
use super::pattern::{Pattern, pattern};
use super::plain_latex::{self, Groups};

pattern!(COMMA, r"(\d),(\d\d\d)($|\D)");
pattern!(MIXED, r"([0-9]) +([0-9])");
pattern!(FRACTION, r"^-?[0-9]+.?/0*[1-9][0-9]*.?$");
pattern!(STACKED, r"\^[0-9]+\^|\^[0-9][0-9]+");
pattern!(CIRCLE, r"\^ *\\circ");
pattern!(THIN_COMMA, r",\\! *");
pattern!(MINUS, "- *");

/// Units that are dropped, with a plural and a power.
static UNITS: LazyLock<Vec<Regex>> = LazyLock::new(|| {
    let units = [
        "degree",
        "cm",
        "centimeter",
        "meter",
        "mile",
        "second",
        "minute",
        "hour",
        "day",
        "week",
        "month",
        "year",
        "foot",
        "feet",
        "inch",
        "yard",
    ];
    let pattern = |unit| Regex::new(&format!(r"{unit}(es)?(s)? *(\^[0-9]+)?")).ok();
    units.into_iter().filter_map(pattern).collect()
});

/// Bytes beyond which answers must be the same text.
const MAX_BYTES: usize = 1 << 10;

/// Does an answer equal the reference?
pub(super) fn equal(given: &str, reference: &str) -> bool {
    if given.len() > MAX_BYTES || reference.len() > MAX_BYTES {
        return given == reference;
    }
    if competition_form(reference) == competition_form(given) {
        return true;
    }
    let (reference, given) = (normal_form(reference), normal_form(given));
    if reference == given {
        return true;
    }
    if given.is_empty() {
        return false;
    }
    let (wanted, got) = (elements(&reference), elements(&given));
    let ends = |text: &str| (text.chars().next(), text.chars().next_back());
    if wanted.len() != got.len() || (wanted.len() > 1 && ends(&reference) != ends(&given)) {
        return false;
    }
    wanted.iter().zip(&got).all(|(wanted, got)| element_equal(wanted, got))
}

fn element_equal(wanted: &str, got: &str) -> bool {
    if FRACTION.matches(wanted) && FRACTION.matches(got) {
        return wanted == got;
    }
    if whole(wanted).is_some() != whole(got).is_some() {
        return false;
    }
    let both = format!("({wanted})-({got})");
    let blocked = both.contains("^(") || both.contains("^{") || STACKED.matches(&both);
    if blocked || letters(&both) > 2 {
        return false;
    }
    expression::same(wanted, got, Names::Sympy)
}

/// How many different letters there are beside those of `sqrt` and `frac`.
fn letters(text: &str) -> usize {
    let text = text.replace("sqrt", "").replace("frac", "");
    let mut letters: Vec<char> = text.chars().filter(|c| c.is_alphabetic()).collect();
    letters.sort_unstable();
    letters.dedup();
    letters.len()
}

/// The parts of a tuple or an interval, else the text itself; nothing of an empty text.
fn elements(text: &str) -> Vec<String> {
    let text = without_commas(text);
    let is_bracket = |c: char| matches!(c, '(' | ')' | '[' | ']');
    let inner = text.strip_prefix(is_bracket).and_then(|rest| rest.strip_suffix(is_bracket));
    match inner {
        _ if text.is_empty() => Vec::new(),
        Some(inner) if !inner.is_empty() && !inner.contains(is_bracket) => {
            inner.split(',').map(|part| strip(part).to_owned()).collect()
        }
        _ => vec![text],
    }
}

/// Without the commas before groups of three digits. Of four groups and more some stay, as in the
/// original.
fn without_commas(text: &str) -> String {
    let mut text = text.to_owned();
    while COMMA.matches(&text) {
        text = COMMA.replaced(&text, "${1}${2}${3}");
    }
    text
}

/// A number as Python's `float` reads it.
fn python_float(text: &str) -> Option<f64> {
    let text = strip(text);
    let bytes = text.as_bytes();
    let between_digits = |at: usize| {
        let digit = |b: Option<&u8>| b.is_some_and(u8::is_ascii_digit);
        at > 0 && digit(bytes.get(at - 1)) && digit(bytes.get(at + 1))
    };
    if text.match_indices('_').any(|(at, _)| !between_digits(at)) {
        return None;
    }
    text.replace('_', "").parse().ok()
}

/// The whole number that a text stands for within 1e-7, commas between groups of three dropped.
fn whole(text: &str) -> Option<f64> {
    let value = python_float(&without_commas(text))?;
    (value.is_finite() && (value - value.round_ties_even()).abs() <= 1e-7).then_some(value)
}

fn integer_text(value: f64) -> String {
    // Adding 0 takes the sign off a negative zero.
    format!("{:.0}", value + 0.0)
}

/// What stands in a `\text{...}` that is all there is.
fn inside_text(text: &str) -> Option<&str> {
    let text = text.strip_suffix('\n').unwrap_or(text);
    let inner = text.strip_prefix("\\text{")?.strip_suffix('}')?;
    (!inner.is_empty() && !inner.contains('\n')).then_some(inner)
}

/// The form that is then evaluated: lower case without blanks, units, percent signs and LaTeX.
fn normal_form(answer: &str) -> String {
    let mut text = inside_text(answer).unwrap_or(answer).to_owned();
    for (old, new) in [
        ("\\%", "%"),
        ("\\$", "$"),
        ("$", ""),
        ("%", ""),
        (" or ", " , "),
        (" and ", " , "),
        ("million", "*10^6"),
        ("billion", "*10^9"),
        ("trillion", "*10^12"),
    ] {
        text = text.replace(old, new);
    }
    for unit in UNITS.iter() {
        text = unit.replace_all(&text, "").into_owned();
    }
    text = CIRCLE.replaced(&text, "");
    if let Some(inner) = text.strip_prefix('{').and_then(|rest| rest.strip_suffix('}')) {
        text = inner.to_owned();
    }
    text = THIN_COMMA.replaced(&text, "");
    let float = python_float(&text).filter(|value| value.is_finite());
    if let Some(value) = float.filter(|v| (v - v.round_ties_even()).abs() <= 1e-7) {
        text = integer_text(value.round_ties_even());
    }
    if text.contains('\\') {
        text = plain_latex::plain(&text, Groups::Lost).unwrap_or(text);
    }
    text = MINUS.replaced(&text, "-");
    text = MIXED.replaced(&text, "${1}+${2}");
    text.retain(|c| !matches!(c, ' ' | '{' | '}'));
    text = text.to_lowercase();
    if whole(&text).is_some()
        && let Some(value) = python_float(&text.replace(',', ""))
    {
        return integer_text(value.trunc());
    }
    text
}

/// The other form, of the MATH data set: LaTeX with one spelling of fractions and roots, without
/// units and blanks. Compared as text.
fn competition_form(answer: &str) -> String {
    let answer = strip(answer);
    let answer = inside_text(answer).map_or(answer, strip);
    competition_text(answer).unwrap_or_else(|| answer.to_owned())
}

/// `None` where the original fails half way and keeps the text as it was.
fn competition_text(answer: &str) -> Option<String> {
    let mut text = answer.to_owned();
    for (old, new) in [
        ("\n", ""),
        ("\\!", ""),
        ("\\\\", "\\"),
        ("tfrac", "frac"),
        ("dfrac", "frac"),
        ("\\left", ""),
        ("\\right", ""),
        ("^{\\circ}", ""),
        ("^\\circ", ""),
        ("\\$", ""),
    ] {
        text = text.replace(old, new);
    }
    match text.matches("\\text{ ").count() {
        0 => {}
        1 => text.truncate(text.find("\\text{ ")?),
        _ => return None,
    }
    for (old, new) in [("\\%", ""), ("%", ""), (" .", " 0."), ("{.", "{0.")] {
        text = text.replace(old, new);
    }
    if text.starts_with('.') {
        text.insert(0, '0');
    }
    if let Some((left, right)) = text.split_once('=')
        && !right.contains('=')
        && left.chars().count() <= 2
    {
        text = right.to_owned();
    }
    text = braced_roots(&text)?.replace(' ', "");
    text = braced_fractions(&text)?;
    if text == "0.5" {
        text = "\\frac{1}{2}".to_owned();
    }
    Some(slash_fraction(&text).unwrap_or(text))
}

/// `\sqrt3` as `\sqrt{3}`. `None` where nothing follows a `\sqrt`.
fn braced_roots(text: &str) -> Option<String> {
    let mut parts = text.split("\\sqrt");
    let mut whole = parts.next()?.to_owned();
    for part in parts {
        let first = part.chars().next()?;
        whole.push_str("\\sqrt");
        if first == '{' {
            whole.push_str(part);
        } else {
            whole.push_str(&format!("{{{first}}}{}", &part[first.len_utf8()..]));
        }
    }
    Some(whole)
}

/// `\frac12` and `\frac1{2}` as `\frac{1}{2}`; the text as it was where one argument is missing.
/// `None` where nothing follows a `\frac`.
fn braced_fractions(text: &str) -> Option<String> {
    let mut parts = text.split("\\frac");
    let mut whole = parts.next()?.to_owned();
    for part in parts {
        whole.push_str("\\frac");
        let mut characters = part.chars();
        let first = characters.next()?;
        if first == '{' {
            whole.push_str(part);
            continue;
        }
        let Some(second) = characters.next() else { return Some(text.to_owned()) };
        let rest = characters.as_str();
        if second == '{' {
            whole.push_str(&format!("{{{first}}}{{{rest}"));
        } else {
            whole.push_str(&format!("{{{first}}}{{{second}}}{rest}"));
        }
    }
    Some(whole)
}

/// `a/b` of two whole numbers as `\frac{a}{b}`.
fn slash_fraction(text: &str) -> Option<String> {
    let (over, under) = text.split_once('/')?;
    let is_whole = |text: &str| {
        let digits = text.strip_prefix('-').unwrap_or(text);
        let plain = !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit());
        plain && (digits == text && digits == "0" || !digits.starts_with('0'))
    };
    (is_whole(over) && is_whole(under)).then(|| format!("\\frac{{{over}}}{{{under}}}"))
}
