//! A Hugging Face folder from shards.

use std::path::Path;

use plumb_model::export::{DEFAULT_SHARD_BYTES, Writer};

use crate::sharded_model::ShardedModel;
use crate::{Precision, Result};

impl ShardedModel {
    /// Writes the model as a folder that transformers loads, adapters merged. Every rank calls this; blocks are
    /// gathered one at a time and rank 0 writes, so no rank holds the whole model. Returns the
    /// bytes written, on every rank.
    ///
    /// # Errors
    /// A target that cannot be written (nothing is left half-written), a failed collective.
    pub fn export(&mut self, folder: &Path, precision: Precision) -> Result<u64> {
        let _guard = tch::no_grad_guard();
        let writer = if self.rank() == 0 { Some(self.writer(folder, precision)) } else { None };
        let mut writer = self.agree("export", writer.transpose())?;
        // A failed write must not leave the other ranks waiting in a gather.
        let mut outcome = Ok(());
        for (index, block) in self.blocks.iter().take(self.specs.len()).enumerate() {
            let flat_p = block.gather_master(self.comm.as_ref())?;
            let adapter = self.adapter_masters(index)?;
            if let (Some(writer), Ok(())) = (&mut writer, &outcome) {
                let params = self.merged(index, block.layout.views(&flat_p), &adapter);
                outcome = params.and_then(|params| {
                    let mut params = block.layout.slots.iter().zip(params);
                    params.try_for_each(|(slot, view)| Ok(writer.tensor(&slot.name, &view)?))
                });
            }
        }
        let bytes = match (outcome, writer) {
            (Err(error), _) => Err(error),
            (Ok(()), Some(writer)) => writer.finish().map_err(Into::into),
            (Ok(()), None) => Ok(0),
        };
        let bytes = self.agree("export", bytes)?;
        let [bytes] = self.sum_over_ranks([bytes as f64])?;
        Ok(bytes as u64)
    }

    fn writer(&self, folder: &Path, precision: Precision) -> Result<Writer> {
        Ok(Writer::create(
            folder,
            self.decoder.config(),
            &self.head,
            &self.specs,
            Some(&self.source_folder),
            precision.kind(),
            DEFAULT_SHARD_BYTES,
        )?)
    }
}
