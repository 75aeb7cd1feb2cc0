//! Parquet files, a batch of rows at a time.

use std::path::Path;

use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;

use super::table::TableRows;
use super::{BATCH_ROWS, Rows, open};
use crate::DataError;

pub(super) fn rows(path: &Path) -> Result<Rows, DataError> {
    let wrong = |problem: String| DataError::Table { path: path.to_owned(), problem };
    let batches = ParquetRecordBatchReaderBuilder::try_new(open(path)?)
        .and_then(|builder| builder.with_batch_size(BATCH_ROWS).build())
        .map_err(|error| wrong(format!("not a readable Parquet file: {error}")))?;
    let file = path.to_owned();
    let batches = batches.map(move |batch| {
        let problem = |error| format!("cannot be decoded: {error}");
        batch.map_err(|error| DataError::Table { path: file.clone(), problem: problem(error) })
    });
    Ok(Box::new(TableRows::new(path, batches)))
}
