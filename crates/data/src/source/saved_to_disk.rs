//! Folders that `Dataset.save_to_disk` wrote.
//!
//! `state.json` lists the data files in order; each is an Arrow IPC stream, which ends with a mark.
//! `dataset_info.json` describes the columns; the Arrow files do so themselves.

use std::io::{BufReader, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use arrow_array::RecordBatch;
use arrow_ipc::reader::StreamReader;
use serde::Deserialize;
use serde_json::Value;

use super::table::TableRows;
use super::{Rows, open};
use crate::DataError;

/// A continuation marker and the length 0: the end of an Arrow IPC stream.
const END_OF_STREAM: [u8; 8] = [0xff, 0xff, 0xff, 0xff, 0, 0, 0, 0];

#[derive(Deserialize)]
struct State {
    #[serde(rename = "_data_files")]
    data_files: Vec<DataFile>,
    /// Rows in another order than the files'; what older versions left.
    #[serde(rename = "_indices_data_files", alias = "_indices_files", default)]
    indices: Value,
}

#[derive(Deserialize)]
struct DataFile {
    filename: String,
}

#[derive(Deserialize)]
struct Splits {
    splits: Vec<String>,
}

pub(super) fn rows(folder: &Path) -> Result<Rows, DataError> {
    let files = data_files(folder)?;
    // Opened before the first row is asked for, so that a missing file is found at once.
    for file in &files {
        check_end(file)?;
    }
    let batches = files.into_iter().flat_map(|file| match batches(&file) {
        Ok(batches) => batches,
        Err(error) => Box::new(std::iter::once(Err(error))),
    });
    Ok(Box::new(TableRows::new(folder, batches)))
}

fn data_files(folder: &Path) -> Result<Vec<PathBuf>, DataError> {
    let wrong = |problem: String| DataError::Table { path: folder.to_owned(), problem };
    let splits = folder.join("dataset_dict.json");
    if splits.is_file() {
        let splits: Splits = parse(&splits)?;
        return Err(wrong(format!(
            "holds the splits {}; name the folder of one of them",
            splits.splits.join(", ")
        )));
    }
    let state = folder.join("state.json");
    if !state.is_file() {
        return Err(wrong(
            "no state.json in it; give a folder that Dataset.save_to_disk wrote, or a file"
                .to_owned(),
        ));
    }
    let state: State = parse(&state)?;
    if state.indices.as_array().is_some_and(|files| !files.is_empty()) {
        return Err(wrong(
            "its rows are reordered by a table of indices; call flatten_indices() before \
             save_to_disk"
                .to_owned(),
        ));
    }
    let plain = |name: &str| !name.is_empty() && !name.contains(['/', '\\']) && name != "..";
    if let Some(file) = state.data_files.iter().find(|file| !plain(&file.filename)) {
        return Err(wrong(format!("state.json names {:?}, no file in the folder", file.filename)));
    }
    Ok(state.data_files.iter().map(|file| folder.join(&file.filename)).collect())
}

fn parse<T: serde::de::DeserializeOwned>(path: &Path) -> Result<T, DataError> {
    let text = std::fs::read_to_string(path)
        .map_err(|source| DataError::Read { path: path.to_owned(), source })?;
    serde_json::from_str(&text).map_err(|error| DataError::Table {
        path: path.to_owned(),
        problem: format!("not as save_to_disk writes it: {error}"),
    })
}

/// A stream that was cut between two batches reads like a whole one, but for its end.
fn check_end(path: &Path) -> Result<(), DataError> {
    let failed = |source| DataError::Read { path: path.to_owned(), source };
    let mut file = open(path)?;
    let length = file.metadata().map_err(failed)?.len();
    let mut end = [0; END_OF_STREAM.len()];
    if length >= end.len() as u64 {
        file.seek(SeekFrom::End(-(end.len() as i64))).map_err(failed)?;
        file.read_exact(&mut end).map_err(failed)?;
    }
    if end == END_OF_STREAM {
        return Ok(());
    }
    Err(DataError::Table {
        path: path.to_owned(),
        problem: "ends without the mark of an Arrow stream's end; it was cut off, write it anew"
            .to_owned(),
    })
}

type Batches = Box<dyn Iterator<Item = Result<RecordBatch, DataError>>>;

fn batches(path: &Path) -> Result<Batches, DataError> {
    let file = path.to_owned();
    let wrong = move |problem: String| DataError::Table { path: file.clone(), problem };
    let stream = StreamReader::try_new(BufReader::new(open(path)?), None)
        .map_err(|error| wrong(format!("not an Arrow stream: {error}")))?;
    Ok(Box::new(
        stream
            .map(move |batch| batch.map_err(|error| wrong(format!("cannot be decoded: {error}")))),
    ))
}
