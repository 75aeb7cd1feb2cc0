//! The parser: a loop with its own stack.

use std::collections::HashSet;

use indexmap::IndexMap;

use super::{Json, JsonError, MAX_DEPTH, MAX_INTEGER_DIGITS};

/// Why a value was not read.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Stop {
    /// The text is not JSON there; another start may be.
    Malformed,
    /// No start is to be tried any more.
    Fatal(JsonError),
}

/// A parser of values that start anywhere in a text.
pub(super) struct Parser<'a> {
    text: &'a str,
    bytes: &'a [u8],
    /// Starts of objects that were open when a value turned out malformed. Read on their own they
    /// fail at the same byte.
    failed: HashSet<usize>,
}

/// A list or object that is being read.
enum Open {
    List(Vec<Json>),
    Object { start: usize, fields: IndexMap<String, Json>, key: String },
}

/// What stands after a complete value within a container.
enum Then {
    Next,
    Closed(Json),
}

impl<'a> Parser<'a> {
    pub(super) fn new(text: &'a str) -> Self {
        Self { text, bytes: text.as_bytes(), failed: HashSet::new() }
    }

    /// Is the object that opens at `start` known to be malformed?
    pub(super) fn has_failed(&self, start: usize) -> bool {
        self.failed.contains(&start)
    }

    /// The value that starts at byte `start`, and the byte after it.
    pub(super) fn value(&mut self, start: usize) -> Result<(Json, usize), Stop> {
        let mut open = Vec::new();
        let read = self.read(start, &mut open);
        if read == Err(Stop::Malformed) {
            for container in open {
                if let Open::Object { start, .. } = container {
                    self.failed.insert(start);
                }
            }
        }
        read
    }

    fn read(&self, start: usize, open: &mut Vec<Open>) -> Result<(Json, usize), Stop> {
        let mut at = start;
        loop {
            let Some(mut value) = self.start_value(&mut at, open)? else { continue };
            loop {
                let Some(container) = open.last_mut() else { return Ok((value, at)) };
                match self.after_value(container, value, &mut at)? {
                    Then::Next => break,
                    Then::Closed(whole) => {
                        open.pop();
                        value = whole;
                    }
                }
            }
        }
    }

    /// Reads a scalar or an empty container, or opens a container and answers `None`.
    fn start_value(&self, at: &mut usize, open: &mut Vec<Open>) -> Result<Option<Json>, Stop> {
        let first = self.bytes.get(*at).copied();
        if !matches!(first, Some(b'{' | b'[')) {
            return self.scalar(at).map(Some);
        }
        if open.len() >= MAX_DEPTH {
            return Err(Stop::Fatal(JsonError::TooDeep { limit: MAX_DEPTH, at: *at }));
        }
        let start = *at;
        if self.failed.contains(&start) {
            return Err(Stop::Malformed);
        }
        *at = self.blanks(start + 1);
        if first == Some(b'[') {
            if self.take(at, b']') {
                return Ok(Some(Json::List(Vec::new())));
            }
            open.push(Open::List(Vec::new()));
            return Ok(None);
        }
        if self.take(at, b'}') {
            return Ok(Some(Json::Object(IndexMap::new())));
        }
        open.push(Open::Object { start, fields: IndexMap::new(), key: String::new() });
        if let Some(Open::Object { key, .. }) = open.last_mut() {
            *key = self.key(at)?;
        }
        Ok(None)
    }

    /// Puts a complete value into its container and reads on to the next value or the end.
    fn after_value(&self, into: &mut Open, value: Json, at: &mut usize) -> Result<Then, Stop> {
        *at = self.blanks(*at);
        match into {
            Open::List(items) => {
                items.push(value);
                if self.take(at, b']') {
                    return Ok(Then::Closed(Json::List(std::mem::take(items))));
                }
                self.expect(at, b',')?;
            }
            Open::Object { fields, key, .. } => {
                fields.insert(std::mem::take(key), value);
                if self.take(at, b'}') {
                    return Ok(Then::Closed(Json::Object(std::mem::take(fields))));
                }
                self.expect(at, b',')?;
                *key = self.key(at)?;
            }
        }
        Ok(Then::Next)
    }

    /// A key, its colon and the blanks around it.
    fn key(&self, at: &mut usize) -> Result<String, Stop> {
        let key = self.string(at)?;
        *at = self.blanks(*at);
        self.expect(at, b':')?;
        Ok(key)
    }

    fn scalar(&self, at: &mut usize) -> Result<Json, Stop> {
        if self.bytes.get(*at) == Some(&b'"') {
            return self.string(at).map(Json::Text);
        }
        let rest = &self.bytes[(*at).min(self.bytes.len())..];
        for (word, value) in [
            ("null", Json::Null),
            ("true", Json::Bool(true)),
            ("false", Json::Bool(false)),
            ("NaN", Json::Float(f64::NAN)),
            ("Infinity", Json::Float(f64::INFINITY)),
            ("-Infinity", Json::Float(f64::NEG_INFINITY)),
        ] {
            if rest.starts_with(word.as_bytes()) {
                *at += word.len();
                return Ok(value);
            }
        }
        self.numeral(at)
    }

    /// `-? (0 | [1-9][0-9]*) (. [0-9]+)? ([eE] [+-]? [0-9]+)?`; an incomplete fraction or
    /// exponent is left standing.
    fn numeral(&self, at: &mut usize) -> Result<Json, Stop> {
        let start = *at;
        let whole = start + usize::from(self.bytes.get(start) == Some(&b'-'));
        let mut end = match self.bytes.get(whole) {
            Some(b'0') => whole + 1,
            Some(b'1'..=b'9') => self.digits(whole),
            _ => return Err(Stop::Malformed),
        };
        let digits = end - whole;
        let mut is_float = false;
        if self.bytes.get(end) == Some(&b'.') && self.digits(end + 1) > end + 1 {
            end = self.digits(end + 1);
            is_float = true;
        }
        if matches!(self.bytes.get(end), Some(b'e' | b'E')) {
            let sign = usize::from(matches!(self.bytes.get(end + 1), Some(b'+' | b'-')));
            let exponent = end + 1 + sign;
            if self.digits(exponent) > exponent {
                end = self.digits(exponent);
                is_float = true;
            }
        }
        *at = end;
        let text = &self.text[start..end];
        if is_float {
            return Ok(Json::Float(text.parse().unwrap_or(f64::NAN)));
        }
        if digits > MAX_INTEGER_DIGITS {
            return Err(Stop::Fatal(JsonError::LongInteger { digits, at: start }));
        }
        Ok(Json::Integer(text.to_owned()))
    }

    /// A string from its opening quote to after its closing one.
    fn string(&self, at: &mut usize) -> Result<String, Stop> {
        if self.bytes.get(*at) != Some(&b'"') {
            return Err(Stop::Malformed);
        }
        let mut content = String::new();
        let mut copied = *at + 1;
        let mut end = copied;
        loop {
            match self.bytes.get(end) {
                Some(b'"') => {
                    content.push_str(&self.text[copied..end]);
                    *at = end + 1;
                    return Ok(content);
                }
                Some(b'\\') => {
                    content.push_str(&self.text[copied..end]);
                    end += 1;
                    content.push(self.escape(&mut end)?);
                    copied = end;
                }
                None | Some(0..=0x1f) => return Err(Stop::Malformed),
                Some(_) => end += 1,
            }
        }
    }

    /// The character that an escape stands for; `at` is after the backslash.
    fn escape(&self, at: &mut usize) -> Result<char, Stop> {
        let plain = match self.bytes.get(*at) {
            Some(b'"') => '"',
            Some(b'\\') => '\\',
            Some(b'/') => '/',
            Some(b'b') => '\u{8}',
            Some(b'f') => '\u{c}',
            Some(b'n') => '\n',
            Some(b'r') => '\r',
            Some(b't') => '\t',
            Some(b'u') => {
                let first = self.hex(*at + 1).ok_or(Stop::Malformed)?;
                *at += 5;
                return Ok(self.join_surrogates(first, at));
            }
            _ => return Err(Stop::Malformed),
        };
        *at += 1;
        Ok(plain)
    }

    fn join_surrogates(&self, first: u32, at: &mut usize) -> char {
        if (0xd800..0xdc00).contains(&first)
            && self.bytes.get(*at..*at + 2) == Some(b"\\u".as_slice())
            && let Some(second @ 0xdc00..0xe000) = self.hex(*at + 2)
        {
            *at += 6;
            let joined = 0x10000 + ((first - 0xd800) << 10) + (second - 0xdc00);
            return char::from_u32(joined).unwrap_or(char::REPLACEMENT_CHARACTER);
        }
        char::from_u32(first).unwrap_or(char::REPLACEMENT_CHARACTER)
    }

    fn hex(&self, at: usize) -> Option<u32> {
        let digits = self.bytes.get(at..at + 4)?;
        digits.iter().try_fold(0, |sum, b| Some(sum * 16 + (*b as char).to_digit(16)?))
    }

    fn digits(&self, mut at: usize) -> usize {
        while self.bytes.get(at).is_some_and(u8::is_ascii_digit) {
            at += 1;
        }
        at
    }

    /// The first byte from `at` on that is no JSON blank.
    pub(super) fn blanks(&self, mut at: usize) -> usize {
        while matches!(self.bytes.get(at), Some(b' ' | b'\t' | b'\n' | b'\r')) {
            at += 1;
        }
        at
    }

    fn take(&self, at: &mut usize, byte: u8) -> bool {
        let found = self.bytes.get(*at) == Some(&byte);
        *at += usize::from(found);
        found
    }

    /// The byte, and the blanks after it.
    fn expect(&self, at: &mut usize, byte: u8) -> Result<(), Stop> {
        if !self.take(at, byte) {
            return Err(Stop::Malformed);
        }
        *at = self.blanks(*at);
        Ok(())
    }
}
