//! A model folder from a checkpoint on disk, without a cluster.

use std::path::Path;

use anyhow::Context as _;
use plumb_engine::{Precision, ShardedModel};
use serde_json::json;

use crate::folder::print;

/// What is to be exported.
#[derive(Debug, Clone, Copy)]
pub(crate) struct What {
    /// Type of the stored weights.
    pub(crate) dtype: Precision,
    /// The adapters alone.
    pub(crate) adapter: bool,
    /// The moving average.
    pub(crate) average: bool,
}

/// Writes the folder and prints where it is and how large.
///
/// # Errors
/// A damaged checkpoint, a base model that is not there, a target that cannot be written.
pub(crate) fn run(
    checkpoint: &Path,
    base: Option<&Path>,
    destination: &Path,
    what: What,
) -> anyhow::Result<()> {
    let mut model = ShardedModel::from_checkpoint(checkpoint, base, what.average)
        .with_context(|| format!("exporting {}", checkpoint.display()))?;
    let bytes = match what.adapter {
        true => model.export_adapter(destination, what.dtype)?,
        false => model.export(destination, what.dtype)?,
    };
    let report = json!({
        "folder": destination.display().to_string(),
        "bytes": bytes,
        "parameters": model.parameters(),
        "dtype": what.dtype.as_str(),
    });
    print(&report.to_string());
    Ok(())
}
