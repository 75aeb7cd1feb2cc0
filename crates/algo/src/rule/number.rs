//! Numbers as people write them, held exactly.

/// A fraction. Both parts have at most 18 digits, so products of two stay within `i128`.
#[derive(Debug, Clone, Copy)]
pub(super) struct Rational {
    numerator: i128,
    denominator: i128,
}

/// More digits than any answer has; beyond them text equality decides.
const MAX_DIGITS: usize = 18;

impl Rational {
    /// `12`, `-1,200`, `0.5`, `.5`, `50%`, `3/4`, `\frac{3}{4}`, `-\frac34`; `None` for anything
    /// else, a zero denominator included. The text has no blanks.
    pub(super) fn parse(text: &str) -> Option<Self> {
        let (sign, text) = match text.strip_prefix('-') {
            Some(rest) => (-1, rest),
            None => (1, text.strip_prefix('+').unwrap_or(text)),
        };
        let value = if let Some(rest) = text.strip_prefix("\\frac") {
            let (over, under) = fraction_arguments(rest)?;
            decimal(over)?.over(decimal(under)?)?
        } else if let Some((over, under)) = text.split_once('/') {
            decimal(over)?.over(decimal(under)?)?
        } else if let Some(number) = text.strip_suffix('%') {
            decimal(number)?.over(Self { numerator: 100, denominator: 1 })?
        } else {
            decimal(text)?
        };
        Some(Self { numerator: sign * value.numerator, ..value })
    }

    pub(super) fn equals(self, other: Self) -> bool {
        let left = self.numerator.checked_mul(other.denominator);
        let right = other.numerator.checked_mul(self.denominator);
        left.is_some() && left == right
    }

    fn over(self, divisor: Self) -> Option<Self> {
        if divisor.numerator == 0 {
            return None;
        }
        Some(Self {
            numerator: self.numerator.checked_mul(divisor.denominator)?,
            denominator: self.denominator.checked_mul(divisor.numerator)?,
        })
    }
}

/// The two arguments after `\frac`: `{a}{b}`, or two single digits.
fn fraction_arguments(text: &str) -> Option<(&str, &str)> {
    if let Some(rest) = text.strip_prefix('{') {
        let (over, rest) = rest.split_once('}')?;
        let under = rest.strip_prefix('{')?.strip_suffix('}')?;
        return Some((over, under));
    }
    (text.len() == 2 && text.is_ascii()).then(|| text.split_at(1))
}

/// Unsigned digits with at most one point; commas only between groups of three digits.
fn decimal(text: &str) -> Option<Rational> {
    let (whole, part) = text.split_once('.').unwrap_or((text, ""));
    let whole = without_commas(whole)?;
    let digits = format!("{whole}{part}");
    let plain = digits.bytes().all(|b| b.is_ascii_digit());
    if digits.is_empty() || !plain || digits.len() > MAX_DIGITS {
        return None;
    }
    let numerator = digits.parse().ok()?;
    Some(Rational { numerator, denominator: 10i128.pow(part.len() as u32) })
}

fn without_commas(whole: &str) -> Option<String> {
    let mut groups = whole.split(',');
    let first = groups.next()?;
    let mut digits = first.to_owned();
    let mut grouped = false;
    for group in groups {
        grouped = true;
        if group.len() != 3 {
            return None;
        }
        digits.push_str(group);
    }
    (!grouped || (1..=3).contains(&first.len())).then_some(digits)
}
