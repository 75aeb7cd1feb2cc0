//! Answer equality by value: what people would call the same answer.

use plumb_domain::text::strip;

use super::expression::{self, Names};
use super::pattern::{Pattern, pattern};
use super::plain_latex::{self, Groups};

// `3 1/2` and `3\frac{1}{2}` where a number may begin.
pattern!(MIXED, r"(^|[-+(\[,={])\s*(\d+)\s+(?:(\d+)/(\d+)|\(\((\d+)\)/\((\d+)\)\))");
// `1,234,567.8` with a sign.
pattern!(THOUSANDS, r"^[-+]?\d{1,3}(?:,\d{3})+(?:\.\d+)?$");
// What ends in a digit or bracket, then a unit with a power. Units of one letter are left out: they
// are variables too.
pattern!(
    UNIT,
    r"(?ix)^(.*[\d)}])
      ( \^?\(?[°∘]\)?
      | degree | (?:centi|milli|kilo)?(?:meter|metre|gram) | mile | second | minute | hour | day
      | week | month | year | foot | feet | inche | inch | yard | dollar | cent | unit
      | cm | mm | km | kg | ft )
      s?(\^\(?\d\)?)?$"
);
pattern!(WORDS, r"\s+(?:or|and)\s+");

/// Bytes beyond which answers must be the same text.
const MAX_BYTES: usize = 1 << 10;

/// Do two answers say the same?
pub(super) fn equal(given: &str, reference: &str) -> bool {
    if given.len() > MAX_BYTES || reference.len() > MAX_BYTES {
        return given == reference;
    }
    let (given, reference) = (normal_form(given), normal_form(reference));
    if given.to_lowercase() == reference.to_lowercase() {
        return !given.is_empty();
    }
    let (given, reference) = without_subject(&given, &reference);
    Parts::of(given).equal(&Parts::of(reference))
}

/// Without LaTeX, dollar signs, blanks and a final full stop.
fn normal_form(answer: &str) -> String {
    let mut text = strip(answer).replace("\\$", "").replace('$', "");
    text = text.replace("−", "-").replace("\\%", "%").replace("{,}", ",");
    text = text.replace(",\\!", ",");
    if text.contains(['\\', '{', '^']) {
        // Braces that LaTeX shows are those of sets.
        let shown = text.replace("\\{", "\u{e000}").replace("\\}", "\u{e001}");
        let bare = !text.contains('\\') && text.starts_with('{') && text.ends_with('}');
        let plain = if bare { None } else { plain_latex::plain(&shown, Groups::Kept) };
        text = plain.unwrap_or(shown).replace('\u{e000}', "{").replace('\u{e001}', "}");
    }
    text = MIXED.replaced(&text, "${1}(${2}+${3}${5}/${4}${6})");
    text = WORDS.replaced(&text, ",");
    text.retain(|c| !c.is_whitespace());
    text.strip_suffix('.').unwrap_or(&text).to_owned()
}

/// `x=5` and `5`, or `x=5` and `x=4`, are compared by what is after the sign.
fn without_subject<'a>(given: &'a str, reference: &'a str) -> (&'a str, &'a str) {
    let cut = |text: &'a str| {
        let (subject, value) = text.split_once('=')?;
        (subject.chars().count() == 1 && !value.contains('=')).then_some((subject, value))
    };
    match (cut(given), cut(reference)) {
        (Some((a, given)), Some((b, reference))) if a == b => (given, reference),
        (Some((_, given)), None) if !reference.contains('=') => (given, reference),
        (None, Some((_, reference))) if !given.contains('=') => (given, reference),
        _ => (given, reference),
    }
}

/// An answer and the parts it has.
enum Parts<'a> {
    One(&'a str),
    /// A tuple or interval, with its brackets.
    Ordered(char, char, Vec<&'a str>),
    /// A set, or alternatives without brackets.
    Unordered(Vec<&'a str>),
}

impl<'a> Parts<'a> {
    fn of(text: &'a str) -> Self {
        if THOUSANDS.matches(text) {
            return Self::One(text);
        }
        let mut ends = text.chars();
        if let (Some(open), Some(close)) = (ends.next(), ends.next_back()) {
            let inner = ends.as_str();
            let closes = matches!((open, close), ('(' | '[', ')' | ']') | ('{', '}'));
            if let (true, Some(parts)) = (closes, parts(inner)) {
                if open == '{' {
                    return Self::Unordered(parts);
                }
                if parts.len() > 1 || open == '[' || close == ']' {
                    return Self::Ordered(open, close, parts);
                }
            }
        }
        match parts(text) {
            Some(parts) if parts.len() > 1 => Self::Unordered(parts),
            _ => Self::One(text),
        }
    }

    fn equal(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::One(a), Self::One(b)) => value_equal(a, b),
            (Self::Ordered(open, close, a), Self::Ordered(o, c, b)) => {
                let same = open == o && close == c && a.len() == b.len();
                same && a.iter().zip(b).all(|(a, b)| value_equal(a, b))
            }
            (Self::Unordered(a), Self::Unordered(b)) => {
                let covered =
                    |a: &[&str], b: &[&str]| a.iter().all(|a| b.iter().any(|b| value_equal(a, b)));
                a.len() == b.len() && a.len() <= MAX_PARTS && covered(a, b) && covered(b, a)
            }
            _ => false,
        }
    }
}

/// Members beyond which sets must be the same text.
const MAX_PARTS: usize = 32;

/// The parts between commas outside brackets; `None` where brackets do not match.
fn parts(text: &str) -> Option<Vec<&str>> {
    let (mut depth, mut start, mut parts) = (0usize, 0, Vec::new());
    for (at, c) in text.char_indices() {
        match c {
            '(' | '[' | '{' => depth += 1,
            ')' | ']' | '}' => depth = depth.checked_sub(1)?,
            ',' if depth == 0 => {
                parts.push(&text[start..at]);
                start = at + 1;
            }
            _ => {}
        }
    }
    parts.push(&text[start..]);
    (depth == 0).then_some(parts)
}

/// Two single values: the same text without letter case, or the same expression once units,
/// percent signs and thousands commas are read.
fn value_equal(a: &str, b: &str) -> bool {
    if a.to_lowercase() == b.to_lowercase() {
        return !a.is_empty();
    }
    let ((a, a_unit), (b, b_unit)) = (without_unit(a), without_unit(b));
    if !a_unit.is_empty() && !b_unit.is_empty() && a_unit != b_unit {
        return false;
    }
    let nested = |text: &str| text.contains([',', '[', '{']);
    let (a, b) = (expression_text(&a), expression_text(&b));
    if nested(&a) || nested(&b) {
        return false;
    }
    expression::same(&a, &b, Names::Usual)
}

/// A quantity and its unit, lower case without a plural.
fn without_unit(text: &str) -> (String, String) {
    match UNIT.captures(text) {
        Some(found) => {
            let part = |at| found.get(at).map_or("", |part: regex::Match<'_>| part.as_str());
            let unit = if part(2).contains(['°', '∘']) { "degree" } else { part(2) };
            (part(1).to_owned(), format!("{unit}{}", part(3)).to_lowercase())
        }
        None => (text.to_owned(), String::new()),
    }
}

/// With percent as a fraction and without thousands commas.
fn expression_text(text: &str) -> String {
    let (number, percent) = text.strip_suffix('%').map_or((text, ""), |number| (number, "/100"));
    let thousands = THOUSANDS.matches(number);
    let number = if thousands { number.replace(',', "") } else { number.to_owned() };
    if percent.is_empty() { number } else { format!("({number}){percent}") }
}
