//! Safetensors files of flat vectors, written and read in a stream.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use tch::{Device, Kind, Tensor};

use crate::{EngineError, Result};

/// Longest header that is believed; a shard of a thousand blocks needs far less.
const MAX_HEADER_BYTES: u64 = 64 << 20;

/// Size and digest of a file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FileDigest {
    /// Name within the checkpoint folder.
    pub name: String,
    /// Length.
    pub bytes: u64,
    /// BLAKE3, hex.
    pub digest: String,
}

#[derive(Debug, Serialize, Deserialize)]
struct Entry {
    dtype: String,
    shape: Vec<i64>,
    data_offsets: [u64; 2],
}

/// Writes named vectors and syncs the file to disk; the digest is taken on the way, and each
/// vector given back when it is written.
///
/// # Errors
/// The system's reason, for example that the disk is full.
pub(crate) fn write(path: &Path, tensors: Vec<(String, Tensor)>) -> Result<FileDigest> {
    let fail = |source| EngineError::File { action: "write", path: path.to_path_buf(), source };
    stream(path, tensors).map_err(fail)
}

fn stream(path: &Path, tensors: Vec<(String, Tensor)>) -> io::Result<FileDigest> {
    let file = File::create(path)?;
    let mut out = Hashing {
        inner: BufWriter::with_capacity(1 << 20, file),
        hasher: blake3::Hasher::new(),
        bytes: 0,
    };
    let header = header(&tensors)?;
    out.write_all(&(header.len() as u64).to_le_bytes())?;
    out.write_all(&header)?;
    for (_, tensor) in tensors {
        let tensor = tensor.to_device(Device::Cpu).contiguous();
        plumb_torch::with_bytes(&tensor, |bytes| out.write_all(bytes))
            .map_err(io::Error::other)??;
    }
    out.flush()?;
    out.inner.get_ref().sync_all()?;
    let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    Ok(FileDigest { name, bytes: out.bytes, digest: out.hasher.finalize().to_hex().to_string() })
}

fn header(tensors: &[(String, Tensor)]) -> io::Result<Vec<u8>> {
    let mut entries = BTreeMap::new();
    let mut offset = 0;
    for (name, tensor) in tensors {
        let end = offset + (tensor.numel() * tensor.kind().elt_size_in_bytes()) as u64;
        let dtype = match tensor.kind() {
            Kind::BFloat16 => "BF16",
            Kind::Uint8 => "U8",
            _ => "F32",
        };
        let dtype = dtype.to_owned();
        entries.insert(name, Entry { dtype, shape: tensor.size(), data_offsets: [offset, end] });
        offset = end;
    }
    let mut header = serde_json::to_vec(&entries)?;
    // Data starts at a multiple of 8, as readers of the format like it.
    header.resize(header.len().next_multiple_of(8), b' ');
    Ok(header)
}

struct Hashing<W> {
    inner: W,
    hasher: blake3::Hasher,
    bytes: u64,
}

impl<W: Write> Write for Hashing<W> {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        let written = self.inner.write(data)?;
        self.hasher.update(&data[..written]);
        self.bytes += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

/// A verified file, open for reading parts of its vectors.
#[derive(Debug)]
pub(crate) struct ShardFile {
    path: PathBuf,
    file: File,
    data_start: u64,
    entries: BTreeMap<String, Entry>,
}

impl ShardFile {
    /// Opens a file whose length and digest must be the expected ones.
    ///
    /// # Errors
    /// [`EngineError::Checkpoint`] says what differs.
    pub(crate) fn open(folder: &Path, expected: &FileDigest) -> Result<Self> {
        let path = folder.join(&expected.name);
        verify(&path, expected)?;
        let read = |source| EngineError::File { action: "read", path: path.clone(), source };
        let file = File::open(&path).map_err(read)?;
        let mut length = [0; 8];
        file.read_exact_at(&mut length, 0).map_err(read)?;
        let length = u64::from_le_bytes(length);
        let refuse = |problem: String| EngineError::Checkpoint { path: path.clone(), problem };
        if length > MAX_HEADER_BYTES.min(expected.bytes) {
            return Err(refuse(format!("its header claims {length} bytes")));
        }
        let mut header = vec![0; length as usize];
        file.read_exact_at(&mut header, 8).map_err(read)?;
        let entries = serde_json::from_slice(&header)
            .map_err(|error| refuse(format!("its header is not valid: {error}")))?;
        Ok(Self { path, file, data_start: 8 + length, entries })
    }

    /// Elements `first..first + count` of a vector.
    ///
    /// # Errors
    /// A vector that is not there or too short.
    pub(crate) fn slice(&self, name: &str, first: i64, count: i64) -> Result<Tensor> {
        let refuse = |problem: String| EngineError::Checkpoint { path: self.path.clone(), problem };
        let entry =
            self.entries.get(name).ok_or_else(|| refuse(format!("has no vector {name}")))?;
        let kind = match entry.dtype.as_str() {
            "F32" => Kind::Float,
            "BF16" => Kind::BFloat16,
            "U8" => Kind::Uint8,
            other => return Err(refuse(format!("vector {name} has type {other}"))),
        };
        let width = kind.elt_size_in_bytes() as u64;
        let begin = entry.data_offsets[0] + first as u64 * width;
        let mut bytes = vec![0; count as usize * width as usize];
        if begin + bytes.len() as u64 > entry.data_offsets[1] {
            return Err(refuse(format!("vector {name} ends before element {}", first + count)));
        }
        self.file.read_exact_at(&mut bytes, self.data_start + begin).map_err(|source| {
            EngineError::File { action: "read", path: self.path.clone(), source }
        })?;
        Ok(Tensor::f_from_data_size(&bytes, &[count], kind)?)
    }
}

fn verify(path: &Path, expected: &FileDigest) -> Result<()> {
    let refuse = |problem| Err(EngineError::Checkpoint { path: path.to_path_buf(), problem });
    let read = |source| EngineError::File { action: "read", path: path.to_path_buf(), source };
    let file = match File::open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return refuse("is missing, although the manifest names it".to_owned());
        }
        other => other.map_err(read)?,
    };
    let bytes = file.metadata().map_err(read)?.len();
    if bytes != expected.bytes {
        return refuse(format!("has {bytes} bytes, the manifest says {}", expected.bytes));
    }
    let mut hasher = blake3::Hasher::new();
    hasher.update_reader(file).map_err(read)?;
    let digest = hasher.finalize().to_hex().to_string();
    if digest != expected.digest {
        let expected = &expected.digest;
        return refuse(format!("has BLAKE3 {digest}, the manifest says {expected}"));
    }
    Ok(())
}
