//! A file read front to back, then at offsets; every short read names its place.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use super::error::{ImportError, Result};

/// Bytes kept in memory ahead of the cursor.
const WINDOW_BYTES: usize = 1 << 16;

/// An open source file with a cursor.
#[derive(Debug)]
pub(super) struct Source {
    pub(super) path: PathBuf,
    file: File,
    bytes: u64,
    offset: u64,
    window: Vec<u8>,
    window_start: u64,
}

impl Source {
    pub(super) fn open(path: &Path) -> Result<Self> {
        let io = |source| ImportError::Io { action: "read", path: path.to_owned(), source };
        let file = File::open(path).map_err(io)?;
        let metadata = file.metadata().map_err(io)?;
        if metadata.is_dir() {
            return Err(ImportError::Argument {
                reason: format!("{} is a folder; expected a GGUF or llama2.c file", path.display()),
            });
        }
        Ok(Self {
            path: path.to_owned(),
            file,
            bytes: metadata.len(),
            offset: 0,
            window: Vec::new(),
            window_start: 0,
        })
    }

    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }

    pub(super) fn offset(&self) -> u64 {
        self.offset
    }

    pub(super) fn remaining(&self) -> u64 {
        self.bytes.saturating_sub(self.offset)
    }

    pub(super) fn starts_with(&mut self, magic: &[u8]) -> Result<bool> {
        if self.bytes < magic.len() as u64 {
            return Ok(false);
        }
        Ok(self.read_at(0, magic.len() as u64, "magic number")? == magic)
    }

    /// `length` bytes from `offset`, without moving the cursor.
    pub(super) fn read_at(&self, offset: u64, length: u64, what: &str) -> Result<Vec<u8>> {
        if offset.checked_add(length).is_none_or(|end| end > self.bytes) {
            return Err(self.truncated(offset, length, what));
        }
        let mut buffer =
            vec![0; usize::try_from(length).map_err(|_| self.truncated(offset, length, what))?];
        self.file.read_exact_at(&mut buffer, offset).map_err(|source| ImportError::Io {
            action: "read",
            path: self.path.clone(),
            source,
        })?;
        Ok(buffer)
    }

    /// The next `length` bytes.
    pub(super) fn take(&mut self, length: u64, what: &str) -> Result<Vec<u8>> {
        if length > self.remaining() {
            return Err(self.truncated(self.offset, length, what));
        }
        let taken = match self.in_window(length) {
            Some(bytes) => bytes,
            None if length as usize >= WINDOW_BYTES => self.read_at(self.offset, length, what)?,
            None => {
                let ahead = self.remaining().min(WINDOW_BYTES as u64);
                self.window = self.read_at(self.offset, ahead, what)?;
                self.window_start = self.offset;
                self.window[..length as usize].to_vec()
            }
        };
        self.offset += length;
        Ok(taken)
    }

    fn in_window(&self, length: u64) -> Option<Vec<u8>> {
        let start = usize::try_from(self.offset.checked_sub(self.window_start)?).ok()?;
        let end = start.checked_add(usize::try_from(length).ok()?)?;
        self.window.get(start..end).map(<[u8]>::to_vec)
    }

    pub(super) fn array<const N: usize>(&mut self, what: &str) -> Result<[u8; N]> {
        let bytes = self.take(N as u64, what)?;
        let mut array = [0; N];
        array.copy_from_slice(&bytes);
        Ok(array)
    }

    pub(super) fn u32(&mut self, what: &str) -> Result<u32> {
        Ok(u32::from_le_bytes(self.array(what)?))
    }

    pub(super) fn u64(&mut self, what: &str) -> Result<u64> {
        Ok(u64::from_le_bytes(self.array(what)?))
    }

    pub(super) fn seek(&mut self, offset: u64) {
        self.offset = offset;
    }

    pub(super) fn truncated(&self, offset: u64, needed: u64, what: &str) -> ImportError {
        ImportError::Truncated {
            path: self.path.clone(),
            what: what.to_owned(),
            offset,
            needed,
            bytes: self.bytes,
        }
    }

    pub(super) fn format(&self, offset: u64, reason: impl Into<String>) -> ImportError {
        ImportError::Format { path: self.path.clone(), offset, reason: reason.into() }
    }
}
