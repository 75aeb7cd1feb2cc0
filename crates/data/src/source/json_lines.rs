//! JSON lines, plain or compressed.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::sync::Arc;

use flate2::read::MultiGzDecoder;
use serde_json::Value;

use super::{Rows, open};
use crate::row::{At, Place, Row};
use crate::{DataError, RowFault};

const BYTE_ORDER_MARK: &[u8] = "\u{feff}".as_bytes();

pub(super) fn plain(path: &Path) -> Result<Rows, DataError> {
    Ok(Box::new(JsonLines::new(BufReader::new(open(path)?), path)))
}

pub(super) fn gzip(path: &Path) -> Result<Rows, DataError> {
    let text = BufReader::new(MultiGzDecoder::new(open(path)?));
    Ok(Box::new(JsonLines::new(text, path)))
}

struct JsonLines<R> {
    text: R,
    path: Arc<Path>,
    line: u64,
    bytes: Vec<u8>,
    failed: bool,
}

impl<R: BufRead> JsonLines<R> {
    fn new(text: R, path: &Path) -> Self {
        Self { text, path: Arc::from(path), line: 0, bytes: Vec::new(), failed: false }
    }
}

impl<R: BufRead> Iterator for JsonLines<R> {
    type Item = Result<Row, DataError>;

    fn next(&mut self) -> Option<Self::Item> {
        while !self.failed {
            self.bytes.clear();
            match self.text.read_until(b'\n', &mut self.bytes) {
                Ok(0) => return None,
                Ok(_) => {}
                Err(source) => {
                    self.failed = true;
                    return Some(Err(DataError::Read { path: self.path.to_path_buf(), source }));
                }
            }
            self.line += 1;
            let bytes = match self.line {
                1 => self.bytes.strip_prefix(BYTE_ORDER_MARK).unwrap_or(&self.bytes),
                _ => &self.bytes,
            };
            if !bytes.trim_ascii().is_empty() {
                let place = Place { path: self.path.clone(), at: At::Line(self.line) };
                return Some(Ok(Row { place, fields: parse(bytes) }));
            }
        }
        None
    }
}

fn parse(bytes: &[u8]) -> Result<Value, RowFault> {
    let text = std::str::from_utf8(bytes).map_err(|error| {
        let problem = format!("byte {} is not UTF-8; write UTF-8", error.valid_up_to() + 1);
        RowFault::new("not UTF-8", problem)
    })?;
    serde_json::from_str(text.trim_end()).map_err(|error| {
        // serde counts lines within the row; the row's own line is known better.
        let words = error.to_string();
        let words = words.split(" at line ").next().unwrap_or_default();
        let problem =
            format!("not JSON: {words} at column {}; write one JSON object a line", error.column());
        RowFault::new("not JSON", problem)
    })
}
