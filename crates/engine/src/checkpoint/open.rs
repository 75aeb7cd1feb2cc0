//! The model of a checkpoint, without a run around it.

use std::path::Path;

use super::{Scope, read_manifest};
use crate::sharded_model::ShardedModel;
use crate::{AdamWSettings, EngineSettings, LoadPlan, LoraPlan, Offload, Precision, Result};

impl ShardedModel {
    /// Loads what a checkpoint holds, whole, on the CPU, to be exported. `base` is the folder of
    /// the model that was trained, where it no longer lies where the manifest says. With
    /// `average` the parameters are those of the moving average.
    ///
    /// # Errors
    /// A damaged checkpoint, one without an average where that is asked for, a base folder that
    /// is not there or another model's.
    pub fn from_checkpoint(folder: &Path, base: Option<&Path>, average: bool) -> Result<Self> {
        let manifest = read_manifest(folder)?;
        let lora = match &manifest.adapter {
            Some(entry) => Some(LoraPlan { config: entry.config()?, seed: 0, folder: None }),
            None => None,
        };
        // Frozen layers below adapters are those that the run had. A whole model is in the file,
        // whatever of it was trained.
        let compute = if lora.is_some() { manifest.compute } else { Precision::Fp32 };
        let settings = EngineSettings {
            compute,
            reduce: Precision::Fp32,
            recompute: true,
            reshard_after_forward: true,
            micro_batch_tokens: 1,
            one_sample_a_pass: false,
            frozen_layers: if lora.is_some() { manifest.frozen_layers } else { 0 },
            device: tch::Device::Cpu,
            offload: Offload::default(),
        };
        // Adapters are what is trained; without them nothing has to be, which saves the moments.
        let optimizer = lora.is_some().then(AdamWSettings::default);
        let head = (&manifest.head).into();
        let plan = LoadPlan { head, head_seed: 0, settings, optimizer, lora, ema: None };
        let base = base.unwrap_or(Path::new(&manifest.model));
        let mut model = Self::load(base, plan, Box::new(plumb_collective::solo()))?;
        let scope = if average { Scope::Average } else { Scope::Parameters };
        model.load_scope(folder, scope)?;
        Ok(model)
    }
}
