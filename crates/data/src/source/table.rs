//! Rows of record batches.

use std::path::Path;
use std::sync::Arc;

use arrow_array::RecordBatch;
use serde_json::{Map, Value};

use super::cell::{cell, has_json_value};
use crate::DataError;
use crate::row::{At, Place, Row};

/// The rows of batches, numbered from 0 over all of them.
pub(super) struct TableRows<I> {
    path: Arc<Path>,
    batches: I,
    batch: Option<RecordBatch>,
    /// The next row within the batch.
    next: usize,
    /// The next row within the table.
    row: u64,
    failed: bool,
}

impl<I: Iterator<Item = Result<RecordBatch, DataError>>> TableRows<I> {
    pub(super) fn new(path: &Path, batches: I) -> Self {
        Self { path: Arc::from(path), batches, batch: None, next: 0, row: 0, failed: false }
    }
}

impl<I: Iterator<Item = Result<RecordBatch, DataError>>> Iterator for TableRows<I> {
    type Item = Result<Row, DataError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.failed {
            return None;
        }
        loop {
            if let Some(batch) = self.batch.as_ref().filter(|batch| self.next < batch.num_rows()) {
                let fields = fields(batch, self.next);
                let place = Place { path: self.path.clone(), at: At::Row(self.row) };
                self.next += 1;
                self.row += 1;
                return Some(Ok(Row { place, fields: Ok(fields) }));
            }
            match self.batches.next()? {
                Ok(batch) => (self.batch, self.next) = (Some(batch), 0),
                Err(error) => {
                    self.failed = true;
                    return Some(Err(error));
                }
            }
        }
    }
}

/// A row's columns. Those of types that JSON has no value for are left out.
fn fields(batch: &RecordBatch, row: usize) -> Value {
    let schema = batch.schema_ref();
    let columns = schema.fields().iter().zip(batch.columns());
    let kept = columns.filter(|(field, _)| has_json_value(field.data_type()));
    let fields: Map<String, Value> =
        kept.map(|(field, column)| (field.name().clone(), cell(column.as_ref(), row))).collect();
    Value::Object(fields)
}
