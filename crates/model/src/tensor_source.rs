//! Reading safetensors: one file, or shards under `model.safetensors.index.json`.
//!
//! Tensors are read with positioned reads rather than a memory map: a map of a file that
//! another process shortens kills the reader with SIGBUS, a read returns an error. Nothing but
//! the requested slice is read, so a rank reads only its shard.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use serde_json::Value;
use tch::{Kind, Tensor};

use crate::block::BlockSpec;
use crate::error::{ModelError, Result};
use crate::init::is_score_tensor;

const INDEX: &str = "model.safetensors.index.json";
const SINGLE: &str = "model.safetensors";
/// The format's own limit on the header.
const MAX_HEADER_BYTES: u64 = 100_000_000;

/// Where one tensor lies.
#[derive(Debug, Clone)]
struct Entry {
    file: usize,
    kind: Kind,
    shape: Vec<i64>,
    /// First byte, from the start of the file.
    start: u64,
}

/// The tensors of a model folder. Cheap to open: only headers are read.
#[derive(Debug)]
pub struct TensorSource {
    folder: PathBuf,
    files: Vec<(PathBuf, File)>,
    entries: BTreeMap<String, Entry>,
}

impl TensorSource {
    /// Opens the safetensors of `folder` and checks that every file is whole.
    ///
    /// # Errors
    /// If there is no safetensors file, a shard is missing, a file is truncated or its header is
    /// malformed, or the index and the files disagree. The message names file and tensor.
    pub fn open(folder: &Path) -> Result<Self> {
        let mut source =
            Self { folder: folder.to_owned(), files: Vec::new(), entries: BTreeMap::new() };
        let index = folder.join(INDEX);
        if !index.exists() {
            source.add_file(folder.join(SINGLE))?;
            return Ok(source);
        }
        let weight_map = read_index(&index)?;
        let mut names: Vec<&String> = weight_map.values().collect();
        names.sort();
        names.dedup();
        for name in names {
            source.add_file(folder.join(name))?;
        }
        for (tensor, file) in &weight_map {
            let found = source.entries.get(tensor).map(|entry| &source.files[entry.file].0);
            if found != Some(&folder.join(file)) {
                return Err(tensor_error(
                    &folder.join(file),
                    tensor,
                    format!("{INDEX} says it is here, but it is not"),
                ));
            }
        }
        Ok(source)
    }

    /// Opens one safetensors file, whatever its name.
    ///
    /// # Errors
    /// If the file is missing or truncated, or its header is malformed.
    pub(crate) fn open_file(path: &Path) -> Result<Self> {
        let folder = path.parent().unwrap_or(Path::new("")).to_owned();
        let mut source = Self { folder, files: Vec::new(), entries: BTreeMap::new() };
        source.add_file(path.to_owned())?;
        Ok(source)
    }

    /// The folder this was opened from.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Names of all tensors, in alphabetical order.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.entries.keys().map(String::as_str)
    }

    /// Whether the folder has this tensor.
    pub fn contains(&self, name: &str) -> bool {
        self.entries.contains_key(name)
    }

    /// Shape of a tensor.
    pub fn shape(&self, name: &str) -> Option<&[i64]> {
        self.entries.get(name).map(|entry| entry.shape.as_slice())
    }

    /// Dtype of a tensor in the file: f32, bf16 or f16.
    pub fn kind(&self, name: &str) -> Option<Kind> {
        self.entries.get(name).map(|entry| entry.kind)
    }

    /// Whether the folder has score-head tensors.
    pub fn has_score_head(&self) -> bool {
        self.names().any(is_score_tensor)
    }

    /// A whole tensor in its shape and the file's dtype, on the CPU.
    ///
    /// # Errors
    /// If the tensor is missing or cannot be read.
    pub fn tensor(&self, name: &str) -> Result<Tensor> {
        let entry = self.entry(name)?;
        let elements: i64 = entry.shape.iter().product();
        Ok(self.slice(name, 0, elements)?.f_view(entry.shape.as_slice())?)
    }

    /// `elements` values of a tensor from element `start` in row-major order: `[elements]`, in
    /// the file's dtype, on the CPU. Only these bytes are read.
    ///
    /// # Errors
    /// If the tensor is missing, the range does not lie in it, or it cannot be read.
    pub fn slice(&self, name: &str, start: i64, elements: i64) -> Result<Tensor> {
        let entry = self.entry(name)?;
        let (path, file) = &self.files[entry.file];
        let total: i64 = entry.shape.iter().product();
        if start < 0 || elements < 0 || start.checked_add(elements).is_none_or(|end| end > total) {
            let reason = format!("{elements} elements from {start} asked of {total}");
            return Err(tensor_error(path, name, reason));
        }
        let width = entry.kind.elt_size_in_bytes();
        let mut bytes = vec![0_u8; elements as usize * width];
        let offset = entry.start + start as u64 * width as u64;
        file.read_exact_at(&mut bytes, offset)
            .map_err(|source| tensor_error(path, name, format!("cannot be read: {source}")))?;
        Ok(Tensor::f_from_data_size(&bytes, &[elements], entry.kind)?)
    }

    /// Checks that the folder has exactly the tensors of `specs`, in their shapes.
    ///
    /// Tolerated extras: `rotary_emb.inv_freq` buffers of old checkpoints, and `lm_head.weight`
    /// where the model is tied or has a score head. With `new_score_head` the score
    /// tensors may be missing.
    ///
    /// # Errors
    /// Naming the first missing, unexpected or wrongly shaped tensor and its file.
    pub fn check(&self, specs: &[BlockSpec], new_score_head: bool) -> Result<()> {
        let mut expected: BTreeMap<&str, &[i64]> = BTreeMap::new();
        for param in specs.iter().flat_map(|spec| &spec.params) {
            expected.insert(&param.name, &param.shape);
        }
        for (&name, &shape) in &expected {
            let Some(entry) = self.entries.get(name) else {
                if new_score_head && is_score_tensor(name) {
                    continue;
                }
                return Err(self.missing(name));
            };
            if entry.shape != shape {
                let reason = format!("shape {:?}; config.json asks for {shape:?}", entry.shape);
                return Err(tensor_error(&self.files[entry.file].0, name, reason));
            }
        }
        for (name, entry) in &self.entries {
            let tolerated = name.ends_with("rotary_emb.inv_freq") || name == "lm_head.weight";
            if !tolerated && !expected.contains_key(name.as_str()) {
                let reason = "unexpected; no part of the model in config.json has it".to_owned();
                return Err(tensor_error(&self.files[entry.file].0, name, reason));
            }
        }
        Ok(())
    }

    fn entry(&self, name: &str) -> Result<&Entry> {
        self.entries.get(name).ok_or_else(|| self.missing(name))
    }

    fn missing(&self, name: &str) -> ModelError {
        let place = match self.files.as_slice() {
            [(only, _)] => only,
            _ => &self.folder,
        };
        tensor_error(place, name, "missing".to_owned())
    }

    fn add_file(&mut self, path: PathBuf) -> Result<()> {
        let io_error = |source| ModelError::Io { action: "read", path: path.clone(), source };
        let file = File::open(&path).map_err(io_error)?;
        let length = file.metadata().map_err(io_error)?.len();
        let header = read_header(&file, &path, length)?;
        let index = self.files.len();
        for (name, entry) in parse_header(&header, &path, length)? {
            let entry = Entry { file: index, ..entry };
            if let Some(other) = self.entries.insert(name.clone(), entry) {
                let reason = format!("also in {}", self.files[other.file].0.display());
                return Err(tensor_error(&path, &name, reason));
            }
        }
        self.files.push((path, file));
        Ok(())
    }
}

fn tensor_error(path: &Path, tensor: &str, reason: String) -> ModelError {
    ModelError::Tensor { path: path.to_owned(), tensor: tensor.to_owned(), reason }
}

/// `weight_map` of an index: tensor name to file name, which must be a plain name.
fn read_index(path: &Path) -> Result<BTreeMap<String, String>> {
    let text = std::fs::read_to_string(path).map_err(|source| ModelError::Io {
        action: "read",
        path: path.to_owned(),
        source,
    })?;
    let json: Value = serde_json::from_str(&text)
        .map_err(|source| ModelError::Json { path: path.to_owned(), source })?;
    let wrong = |key: &str, found: String, expected: &str| ModelError::Config {
        path: path.to_owned(),
        key: key.to_owned(),
        found,
        expected: expected.to_owned(),
    };
    let map = json.get("weight_map").and_then(Value::as_object).ok_or_else(|| {
        wrong("weight_map", "missing".into(), "an object of tensor names and file names")
    })?;
    map.iter()
        .map(|(tensor, file)| match file.as_str() {
            Some(name) if is_plain_name(name) => Ok((tensor.clone(), name.to_owned())),
            _ => Err(wrong(
                &format!("weight_map.{tensor}"),
                file.to_string(),
                "the name of a file in the same folder",
            )),
        })
        .collect()
}

fn is_plain_name(name: &str) -> bool {
    Path::new(name).file_name().is_some_and(|file| file == name)
}

fn read_header(file: &File, path: &Path, length: u64) -> Result<Vec<u8>> {
    let broken = |reason: String| ModelError::Safetensors { path: path.to_owned(), reason };
    let read_error =
        |source: io::Error| ModelError::Io { action: "read", path: path.to_owned(), source };
    if length < 8 {
        return Err(broken(format!("{length} bytes, less than the 8 of the header length")));
    }
    let mut prefix = [0_u8; 8];
    file.read_exact_at(&mut prefix, 0).map_err(read_error)?;
    let header_bytes = u64::from_le_bytes(prefix);
    if header_bytes > MAX_HEADER_BYTES || header_bytes > length - 8 {
        return Err(broken(format!("header of {header_bytes} bytes in a file of {length} bytes")));
    }
    let mut header = vec![0_u8; header_bytes as usize];
    file.read_exact_at(&mut header, 8).map_err(read_error)?;
    Ok(header)
}

/// Entries of a header, as of file 0.
fn parse_header(header: &[u8], path: &Path, length: u64) -> Result<Vec<(String, Entry)>> {
    let broken = |reason: String| ModelError::Safetensors { path: path.to_owned(), reason };
    let metadata: safetensors::tensor::Metadata =
        serde_json::from_slice(header).map_err(|error| broken(format!("header: {error}")))?;
    let data_start = 8 + header.len() as u64;
    let data_bytes = metadata.data_len() as u64;
    if data_start.checked_add(data_bytes) != Some(length) {
        return Err(broken(format!(
            "the header describes {data_bytes} bytes of tensors, the file has {}",
            length - data_start
        )));
    }
    metadata
        .tensors()
        .into_iter()
        .map(|(name, info)| {
            let kind = match info.dtype {
                safetensors::Dtype::F32 => Kind::Float,
                safetensors::Dtype::BF16 => Kind::BFloat16,
                safetensors::Dtype::F16 => Kind::Half,
                other => {
                    let reason = format!("dtype {other:?}; supported: F32, BF16, F16");
                    return Err(tensor_error(path, &name, reason));
                }
            };
            let shape = info
                .shape
                .iter()
                .map(|&n| i64::try_from(n))
                .collect::<std::result::Result<Vec<_>, _>>()
                .map_err(|_| tensor_error(path, &name, format!("shape {:?}", info.shape)))?;
            let start = data_start + info.data_offsets.0 as u64;
            Ok((name, Entry { file: 0, kind, shape, start }))
        })
        .collect()
}
