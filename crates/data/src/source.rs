//! Where rows come from: JSON lines, Parquet files, folders of Arrow files. All of them are read
//! as streams: a line, or a batch of [`BATCH_ROWS`] rows, is in memory at a time.

mod cell;
mod json_lines;
mod parquet;
mod saved_to_disk;
mod table;

use std::path::{Path, PathBuf};

use crate::row::Row;
use crate::{DataError, RowFault, Skipped};
use plumb_config::OnBadRow;
use serde_json::Value;

/// Rows of a table that are decoded at a time.
pub const BATCH_ROWS: usize = 256;

/// A file or folder of rows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    /// One JSON object a line, UTF-8; blank lines are passed over.
    JsonLines(PathBuf),
    /// The same, compressed by gzip.
    GzipJsonLines(PathBuf),
    /// A Parquet file: uncompressed, Snappy, gzip, LZ4, Brotli or zstd.
    Parquet(PathBuf),
    /// A folder that `Dataset.save_to_disk` wrote: `state.json`, `dataset_info.json` and Arrow IPC
    /// stream files.
    SavedToDisk(PathBuf),
}

/// Rows of a source, in its order. An error ends them.
pub type Rows = Box<dyn Iterator<Item = Result<Row, DataError>>>;

/// What was read of a source.
#[derive(Debug, Clone, PartialEq)]
pub struct Loaded<T> {
    /// The good rows, in the source's order.
    pub rows: Vec<T>,
    /// The bad ones.
    pub skipped: Skipped,
}

impl Source {
    /// The source at a path: folders are data sets saved to disk, files are told apart by the end
    /// of their names (`.jsonl`, `.ndjson`, `.jsonl.gz`, `.ndjson.gz`, `.parquet`).
    ///
    /// # Errors
    /// [`DataError::Read`] when nothing is there, [`DataError::Kind`] for other names.
    pub fn at(path: &Path) -> Result<Self, DataError> {
        let about = std::fs::metadata(path)
            .map_err(|source| DataError::Read { path: path.to_owned(), source })?;
        if about.is_dir() {
            return Ok(Self::SavedToDisk(path.to_owned()));
        }
        let name = path.file_name().unwrap_or_default().to_string_lossy().to_ascii_lowercase();
        let ends = |end: &str| name.ends_with(end);
        if ends(".jsonl") || ends(".ndjson") {
            Ok(Self::JsonLines(path.to_owned()))
        } else if ends(".jsonl.gz") || ends(".ndjson.gz") {
            Ok(Self::GzipJsonLines(path.to_owned()))
        } else if ends(".parquet") {
            Ok(Self::Parquet(path.to_owned()))
        } else {
            Err(DataError::Kind { path: path.to_owned() })
        }
    }

    /// The file or folder.
    #[must_use]
    pub fn path(&self) -> &Path {
        match self {
            Self::JsonLines(path)
            | Self::GzipJsonLines(path)
            | Self::Parquet(path)
            | Self::SavedToDisk(path) => path,
        }
    }

    /// Opens it.
    ///
    /// # Errors
    /// [`DataError::Read`]; [`DataError::Table`] for a file that is not of its format.
    pub fn rows(&self) -> Result<Rows, DataError> {
        match self {
            Self::JsonLines(path) => json_lines::plain(path),
            Self::GzipJsonLines(path) => json_lines::gzip(path),
            Self::Parquet(path) => parquet::rows(path),
            Self::SavedToDisk(path) => saved_to_disk::rows(path),
        }
    }

    /// Reads all rows, making a `T` of each; only the `T`s stay in memory.
    ///
    /// # Errors
    /// As [`Self::rows`]; [`DataError::Row`] for the first bad row when those fail;
    /// [`DataError::Empty`] and [`DataError::AllSkipped`] when no good row is there.
    pub fn load<T>(
        &self,
        on_bad_row: OnBadRow,
        mut read: impl FnMut(&Row, &Value) -> Result<T, RowFault>,
    ) -> Result<Loaded<T>, DataError> {
        let mut loaded = Loaded { rows: Vec::new(), skipped: Skipped::default() };
        for row in self.rows()? {
            let row = row?;
            match row.fields.as_ref().map_err(Clone::clone).and_then(|fields| read(&row, fields)) {
                Ok(read) => loaded.rows.push(read),
                Err(fault) if on_bad_row == OnBadRow::Skip => {
                    loaded.skipped.add(&row.place, &fault)
                }
                Err(fault) => return Err(DataError::Row { place: row.place, fault }),
            }
        }
        let path = || self.path().to_owned();
        match (loaded.rows.is_empty(), loaded.skipped.total()) {
            (false, _) => Ok(loaded),
            (true, 0) => Err(DataError::Empty { path: path() }),
            (true, _) => Err(DataError::AllSkipped { path: path(), skipped: loaded.skipped }),
        }
    }
}

/// Opens a file for reading.
fn open(path: &Path) -> Result<std::fs::File, DataError> {
    std::fs::File::open(path).map_err(|source| DataError::Read { path: path.to_owned(), source })
}
