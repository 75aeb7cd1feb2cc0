//! Python literals, as data sets made with Python have them in text: `['9']`, `(1, 2)`.

use serde_json::{Map, Number, Value};

/// Nesting beyond which Python's own parser gives up.
const MAX_DEPTH: usize = 200;

/// The value of a Python literal as JSON: lists, tuples and sets become arrays, keys of
/// dictionaries text. `None` for what `ast.literal_eval` refuses, and for what JSON has no value
/// for: bytes, complex and infinite numbers, `\N{...}`. Time linear in the text.
#[must_use]
pub fn python_literal(text: &str) -> Option<Value> {
    let mut reader = Reader { text, at: 0, depth: 0 };
    let first = reader.expression()?.0;
    reader.blanks();
    let mut items = vec![first];
    let mut is_tuple = false;
    while reader.eat(',') {
        is_tuple = true;
        reader.blanks();
        if reader.at == text.len() {
            break;
        }
        items.push(reader.expression()?.0);
        reader.blanks();
    }
    if reader.at < text.len() {
        return None;
    }
    if is_tuple { Some(Value::Array(items)) } else { items.pop() }
}

/// Where the parse stands.
struct Reader<'a> {
    text: &'a str,
    at: usize,
    depth: usize,
}

/// What kind of expression a value came from: a sign may stand before an unsigned number only.
#[derive(Clone, Copy, PartialEq)]
enum Kind {
    Unsigned,
    Other,
}

impl<'a> Reader<'a> {
    fn rest(&self) -> &'a str {
        &self.text[self.at..]
    }

    fn peek(&self) -> Option<char> {
        self.rest().chars().next()
    }

    fn eat(&mut self, c: char) -> bool {
        let found = self.peek() == Some(c);
        if found {
            self.at += c.len_utf8();
        }
        found
    }

    /// Blanks; comments; within brackets also line ends.
    fn blanks(&mut self) {
        while let Some(c) = self.peek() {
            match c {
                ' ' | '\t' | '\u{c}' => self.at += 1,
                '\n' | '\r' if self.depth > 0 => self.at += 1,
                '#' => {
                    self.at += self.rest().find('\n').unwrap_or(self.rest().len());
                }
                '\\' if self.rest()[1..].starts_with('\n') => self.at += 2,
                _ => return,
            }
        }
    }

    fn expression(&mut self) -> Option<(Value, Kind)> {
        self.blanks();
        match self.peek()? {
            '(' => self.parenthesis(),
            '[' => {
                let items = self.items('[', ']')?.0;
                Some((Value::Array(items), Kind::Other))
            }
            '{' => Some((self.braces()?, Kind::Other)),
            '+' => self.signed(false),
            '-' => self.signed(true),
            c if c.is_ascii_digit() || c == '.' => Some((self.number()?, Kind::Unsigned)),
            _ => Some((self.word_or_text()?, Kind::Other)),
        }
    }

    fn signed(&mut self, negative: bool) -> Option<(Value, Kind)> {
        self.at += 1;
        self.blanks();
        if matches!(self.peek()?, '+' | '-') {
            return None;
        }
        let (value, kind) = self.expression()?;
        if kind != Kind::Unsigned {
            return None;
        }
        Some((if negative { negated(&value)? } else { value }, Kind::Other))
    }

    /// `()`, a tuple, or one expression in parentheses.
    fn parenthesis(&mut self) -> Option<(Value, Kind)> {
        let (mut items, kind, commas) = self.items('(', ')')?;
        if items.len() == 1 && commas == 0 {
            return Some((items.pop()?, kind));
        }
        Some((Value::Array(items), Kind::Other))
    }

    /// Items between brackets, the kind of the last, and how many commas there were.
    fn items(&mut self, open: char, close: char) -> Option<(Vec<Value>, Kind, usize)> {
        self.enter(open)?;
        let (mut items, mut kind, mut commas) = (Vec::new(), Kind::Other, 0);
        loop {
            self.blanks();
            if self.eat(close) {
                self.depth -= 1;
                return Some((items, kind, commas));
            }
            if items.len() > commas {
                return None;
            }
            let (item, of) = self.expression()?;
            items.push(item);
            kind = of;
            self.blanks();
            commas += usize::from(self.eat(','));
        }
    }

    fn enter(&mut self, open: char) -> Option<()> {
        self.depth += 1;
        (self.eat(open) && self.depth <= MAX_DEPTH).then_some(())
    }

    /// A dictionary or a set.
    fn braces(&mut self) -> Option<Value> {
        self.enter('{')?;
        let (mut fields, mut set) = (Map::new(), Vec::new());
        let mut separated = true;
        loop {
            self.blanks();
            if self.eat('}') {
                self.depth -= 1;
                let is_set = !set.is_empty();
                return Some(if is_set { Value::Array(set) } else { Value::Object(fields) });
            }
            if !separated {
                return None;
            }
            let key = self.expression()?.0;
            self.blanks();
            if self.eat(':') {
                fields.insert(key_text(key)?, self.expression()?.0);
                self.blanks();
            } else {
                set.push(key);
            }
            if !fields.is_empty() && !set.is_empty() {
                return None;
            }
            separated = self.eat(',');
        }
    }

    fn number(&mut self) -> Option<Value> {
        let is_part = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '.');
        let rest = self.rest();
        let mut length = rest.find(|c| !is_part(c)).unwrap_or(rest.len());
        let signed = rest[length..].starts_with(['+', '-']);
        if signed && rest[..length].ends_with(['e', 'E']) {
            let exponent = &rest[length + 1..];
            length += 1 + exponent.find(|c| !is_part(c)).unwrap_or(exponent.len());
        }
        self.at += length;
        if self.peek().is_some_and(char::is_alphanumeric) {
            return None;
        }
        number(&rest[..length])
    }

    /// `None`, `True`, `False`, or texts one after another.
    fn word_or_text(&mut self) -> Option<Value> {
        let rest = self.rest();
        let length = rest.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(rest.len());
        let (word, after) = rest.split_at(length);
        if !after.starts_with(['\'', '"']) {
            self.at += length;
            return match word {
                "None" => Some(Value::Null),
                "True" => Some(Value::Bool(true)),
                "False" => Some(Value::Bool(false)),
                _ => None,
            };
        }
        let mut text = String::new();
        loop {
            let prefix = self.rest().find(['\'', '"'])?;
            let raw = match &self.rest()[..prefix] {
                "" | "u" | "U" => false,
                "r" | "R" => true,
                _ => return None,
            };
            self.at += prefix;
            self.quoted(raw, &mut text)?;
            self.blanks();
            let next = self.rest().trim_start_matches(|c: char| c.is_ascii_alphabetic());
            if !next.starts_with(['\'', '"']) {
                return Some(Value::String(text));
            }
        }
    }

    fn quoted(&mut self, raw: bool, into: &mut String) -> Option<()> {
        let quote = self.peek()?;
        let thrice = String::from(quote).repeat(3);
        let close = if self.rest().starts_with(&thrice) { &thrice } else { &thrice[..1] };
        let triple = close.len() == 3;
        self.at += close.len();
        loop {
            if self.rest().starts_with(close) {
                self.at += close.len();
                return Some(());
            }
            let c = self.peek()?;
            self.at += c.len_utf8();
            match c {
                '\n' if !triple => return None,
                '\\' if raw => {
                    into.push('\\');
                    let next = self.peek()?;
                    self.at += next.len_utf8();
                    into.push(next);
                }
                '\\' => self.escape(into)?,
                c => into.push(c),
            }
        }
    }

    /// What follows a backslash. An unknown escape keeps its backslash.
    fn escape(&mut self, into: &mut String) -> Option<()> {
        let c = self.peek()?;
        self.at += c.len_utf8();
        let plain = match c {
            '\n' => return Some(()),
            '\\' | '\'' | '"' => c,
            'a' => '\u{7}',
            'b' => '\u{8}',
            'f' => '\u{c}',
            'n' => '\n',
            'r' => '\r',
            't' => '\t',
            'v' => '\u{b}',
            '0'..='7' => {
                self.at -= 1;
                let is_octal = |c: &char| ('0'..='7').contains(c);
                let digits = self.rest().chars().take(3).take_while(is_octal).count();
                self.code(digits, 8)?
            }
            'x' => self.code(2, 16)?,
            'u' => self.code(4, 16)?,
            'U' => self.code(8, 16)?,
            'N' => return None,
            other => {
                into.push('\\');
                other
            }
        };
        into.push(plain);
        Some(())
    }

    fn code(&mut self, digits: usize, radix: u32) -> Option<char> {
        let text = self.rest().get(..digits)?;
        self.at += digits;
        if !text.chars().all(|c| c.is_digit(radix)) {
            return None;
        }
        char::from_u32(u32::from_str_radix(text, radix).ok()?)
    }
}

fn negated(number: &Value) -> Option<Value> {
    match number.as_i64() {
        Some(whole) => Some(Value::from(-whole)),
        None => Number::from_f64(-number.as_f64()?).map(Value::Number),
    }
}

/// As `json.dumps` writes a key.
fn key_text(key: Value) -> Option<String> {
    match key {
        Value::String(text) => Some(text),
        Value::Null => Some("null".to_owned()),
        Value::Bool(flag) => Some(flag.to_string()),
        Value::Number(number) => Some(number.to_string()),
        Value::Array(_) | Value::Object(_) => None,
    }
}

/// An unsigned Python number: `1_000`, `0x1f`, `.5`, `1.`, `2e-3`. Whole numbers beyond 64 bits are
/// rounded to the nearest double.
fn number(text: &str) -> Option<Value> {
    let digits = without_underscores(text)?;
    let radix = match digits.get(..2) {
        Some("0x" | "0X") => 16,
        Some("0o" | "0O") => 8,
        Some("0b" | "0B") => 2,
        _ => 10,
    };
    if radix != 10 {
        let plain = digits[2..].chars().all(|c| c.is_digit(radix));
        return plain
            .then(|| u64::from_str_radix(&digits[2..], radix).ok())
            .flatten()
            .map(Value::from);
    }
    if digits.bytes().all(|b| b.is_ascii_digit()) {
        if digits.starts_with('0') && digits.bytes().any(|b| b != b'0') {
            return None;
        }
        if let Ok(whole) = digits.parse::<u64>() {
            return Some(Value::from(whole));
        }
    } else if !digits.bytes().all(|b| matches!(b, b'0'..=b'9' | b'.' | b'e' | b'E' | b'+' | b'-')) {
        return None;
    }
    Number::from_f64(digits.parse().ok()?).map(Value::Number)
}

/// Underscores stand between digits only, or after the `0x` of a number in another base.
fn without_underscores(text: &str) -> Option<String> {
    let based = text.starts_with('0') && text[1..].starts_with(|c: char| c.is_ascii_alphabetic());
    let is_digit = |b: Option<&u8>| {
        b.is_some_and(|b| b.is_ascii_digit() || (based && b.is_ascii_alphanumeric()))
    };
    let bytes = text.as_bytes();
    for (at, _) in text.match_indices('_') {
        if !is_digit(bytes[..at].last()) || !is_digit(bytes.get(at + 1)) {
            return None;
        }
    }
    Some(text.replace('_', ""))
}
