//! The GGUF container, versions 2 and 3, little-endian: metadata and where each tensor lies.

use std::collections::BTreeMap;

use super::dequantise::{self, NumberFormat, dequantise};
use super::error::{ImportError, Result};
use super::source::Source;

pub(super) const MAGIC: &[u8] = b"GGUF";
const DEFAULT_ALIGNMENT: u64 = 32;
/// Dimensions that ggml allows.
const MAX_DIMS: u32 = 4;

/// A metadata value.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Value {
    Unsigned(u64),
    Signed(i64),
    Float(f64),
    Bool(bool),
    Text(String),
    List(Vec<Value>),
}

/// A tensor's place in the file.
#[derive(Debug, Clone)]
pub(super) struct TensorInfo {
    /// Row-major, slowest dimension first (GGUF stores the fastest first).
    pub(super) shape: Vec<u64>,
    pub(super) format: NumberFormat,
    /// From the start of the file.
    start: u64,
    bytes: u64,
}

/// A GGUF file with its header read.
#[derive(Debug)]
pub(super) struct GgufFile {
    source: Source,
    metadata: BTreeMap<String, Value>,
    tensors: BTreeMap<String, TensorInfo>,
}

impl GgufFile {
    pub(super) fn read(mut source: Source) -> Result<Self> {
        source.take(MAGIC.len() as u64, "magic number")?;
        let version = source.u32("version")?;
        if !(2..=3).contains(&version) {
            let name = if version.swap_bytes() <= 3 {
                "big-endian".to_owned()
            } else {
                version.to_string()
            };
            return Err(ImportError::Unsupported {
                path: source.path.clone(),
                what: "GGUF version",
                name,
                supported: "2, 3 (little-endian)",
            });
        }
        let tensor_count = source.u64("tensor count")?;
        let key_count = source.u64("metadata count")?;
        let mut metadata = BTreeMap::new();
        for _ in 0..key_count {
            let key = text(&mut source, "metadata key")?;
            let kind = source.u32("metadata type")?;
            let value = value(&mut source, kind, &key, 0)?;
            metadata.insert(key, value);
        }
        let infos =
            (0..tensor_count).map(|_| tensor_info(&mut source)).collect::<Result<Vec<_>>>()?;
        let alignment = match metadata.get("general.alignment") {
            Some(Value::Unsigned(n)) if *n > 0 && n.is_power_of_two() => *n,
            _ => DEFAULT_ALIGNMENT,
        };
        let data_start = source.offset().next_multiple_of(alignment);
        let tensors = place(&source, infos, data_start)?;
        Ok(Self { source, metadata, tensors })
    }

    pub(super) fn path(&self) -> &std::path::Path {
        &self.source.path
    }

    pub(super) fn get(&self, key: &str) -> Option<&Value> {
        self.metadata.get(key)
    }

    pub(super) fn tensor(&self, name: &str) -> Option<&TensorInfo> {
        self.tensors.get(name)
    }

    pub(super) fn tensors(&self) -> &BTreeMap<String, TensorInfo> {
        &self.tensors
    }

    /// A tensor's numbers, row-major.
    pub(super) fn values(&self, name: &str) -> Result<Vec<f32>> {
        let info = self.tensor(name).ok_or_else(|| self.missing_tensor(name))?;
        let bytes = self.source.read_at(info.start, info.bytes, &format!("tensor `{name}`"))?;
        Ok(dequantise(info.format, &bytes))
    }

    pub(super) fn missing_tensor(&self, name: &str) -> ImportError {
        ImportError::Tensor {
            path: self.source.path.clone(),
            tensor: name.to_owned(),
            reason: "missing".to_owned(),
        }
    }

    pub(super) fn bad_key(&self, key: &str, expected: &str) -> ImportError {
        let found = self
            .get(key)
            .map_or_else(|| "missing".to_owned(), |v| format!("{v:?}").chars().take(80).collect());
        ImportError::Metadata {
            path: self.source.path.clone(),
            key: key.to_owned(),
            found,
            expected: expected.to_owned(),
        }
    }

    pub(super) fn count(&self, key: &str) -> Result<Option<u64>> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::Unsigned(n)) => Ok(Some(*n)),
            Some(Value::Signed(n)) if *n >= 0 => Ok(Some(n.cast_unsigned())),
            Some(_) => Err(self.bad_key(key, "a whole number")),
        }
    }

    pub(super) fn needed_count(&self, key: &str) -> Result<u64> {
        match self.count(key)? {
            Some(n) if n > 0 => Ok(n),
            _ => Err(self.bad_key(key, "a whole number above 0")),
        }
    }

    pub(super) fn number(&self, key: &str) -> Result<Option<f64>> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::Float(x)) => Ok(Some(*x)),
            Some(_) => Err(self.bad_key(key, "a floating-point number")),
        }
    }

    pub(super) fn text(&self, key: &str) -> Result<Option<&str>> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::Text(text)) => Ok(Some(text)),
            Some(_) => Err(self.bad_key(key, "a text")),
        }
    }

    pub(super) fn flag(&self, key: &str) -> Result<Option<bool>> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::Bool(flag)) => Ok(Some(*flag)),
            Some(_) => Err(self.bad_key(key, "true or false")),
        }
    }

    pub(super) fn list(&self, key: &str) -> Result<Option<&[Value]>> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::List(items)) => Ok(Some(items)),
            Some(_) => Err(self.bad_key(key, "a list")),
        }
    }
}

fn text(source: &mut Source, what: &str) -> Result<String> {
    let length = source.u64(what)?;
    let at = source.offset();
    let bytes = source.take(length, what)?;
    String::from_utf8(bytes)
        .map_err(|e| source.format(at, format!("{what} is not valid UTF-8: {e}")))
}

fn value(source: &mut Source, kind: u32, key: &str, depth: u32) -> Result<Value> {
    let what = format!("value of `{key}`");
    let at = source.offset();
    Ok(match kind {
        0 => Value::Unsigned(source.array::<1>(&what)?[0].into()),
        1 => Value::Signed(i8::from_le_bytes(source.array(&what)?).into()),
        2 => Value::Unsigned(u16::from_le_bytes(source.array(&what)?).into()),
        3 => Value::Signed(i16::from_le_bytes(source.array(&what)?).into()),
        4 => Value::Unsigned(source.u32(&what)?.into()),
        5 => Value::Signed(i32::from_le_bytes(source.array(&what)?).into()),
        6 => Value::Float(f32::from_le_bytes(source.array(&what)?).into()),
        7 => match source.array::<1>(&what)?[0] {
            0 => Value::Bool(false),
            1 => Value::Bool(true),
            other => return Err(source.format(at, format!("{what} is {other}; expected 0 or 1"))),
        },
        8 => Value::Text(text(source, &what)?),
        9 if depth == 0 => {
            let item = source.u32(&what)?;
            let count = source.u64(&what)?;
            if count > source.remaining() {
                return Err(source.truncated(source.offset(), count, &what));
            }
            Value::List((0..count).map(|_| value(source, item, key, 1)).collect::<Result<_>>()?)
        }
        10 => Value::Unsigned(source.u64(&what)?),
        11 => Value::Signed(i64::from_le_bytes(source.array(&what)?)),
        12 => Value::Float(f64::from_le_bytes(source.array(&what)?)),
        other => return Err(source.format(at, format!("{what} has the unknown type {other}"))),
    })
}

/// A tensor's header, before the start of the data section is known.
struct RawInfo {
    name: String,
    shape: Vec<u64>,
    format: NumberFormat,
    offset: u64,
    header_at: u64,
}

fn tensor_info(source: &mut Source) -> Result<RawInfo> {
    let header_at = source.offset();
    let name = text(source, "tensor name")?;
    let what = format!("header of tensor `{name}`");
    let dims = source.u32(&what)?;
    if dims == 0 || dims > MAX_DIMS {
        return Err(source.format(
            header_at,
            format!("tensor `{name}` has {dims} dimensions; expected 1 to {MAX_DIMS}"),
        ));
    }
    let mut shape = (0..dims).map(|_| source.u64(&what)).collect::<Result<Vec<_>>>()?;
    shape.reverse();
    let code = source.u32(&what)?;
    let format = NumberFormat::from_code(code).map_err(|unsupported| ImportError::Unsupported {
        path: source.path.clone(),
        what: "number format",
        name: format!("{unsupported} of tensor {name}"),
        supported: dequantise::SUPPORTED,
    })?;
    let offset = source.u64(&what)?;
    Ok(RawInfo { name, shape, format, offset, header_at })
}

fn place(
    source: &Source,
    infos: Vec<RawInfo>,
    data_start: u64,
) -> Result<BTreeMap<String, TensorInfo>> {
    let mut tensors = BTreeMap::new();
    for info in infos {
        let elements = info.shape.iter().try_fold(1u64, |n, &d| n.checked_mul(d));
        let (block, block_bytes) =
            (info.format.block_elements() as u64, info.format.block_bytes() as u64);
        let row = info.shape.last().copied().unwrap_or(0);
        let bytes = elements
            .filter(|_| row > 0 && row % block == 0)
            .and_then(|n| (n / block).checked_mul(block_bytes));
        let (Some(bytes), Some(start)) = (bytes, data_start.checked_add(info.offset)) else {
            let reason = format!(
                "tensor `{}` of shape {:?} does not fit {} blocks of {block}",
                info.name,
                info.shape,
                info.format.name()
            );
            return Err(source.format(info.header_at, reason));
        };
        if start.checked_add(bytes).is_none_or(|end| end > source.bytes()) {
            return Err(source.truncated(start, bytes, &format!("tensor `{}`", info.name)));
        }
        tensors
            .insert(info.name, TensorInfo { shape: info.shape, format: info.format, start, bytes });
    }
    Ok(tensors)
}
