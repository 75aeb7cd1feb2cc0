//! Low-rank adapters of a sharded model.
//!
//! Each adapted layer has a second block, its adapter, cut over the ranks and trained like any
//! other; the layer itself is frozen in compute type, without master or moments.
//!
//! LORA-1: a fresh adapter changes nothing (B is zero), and is the same at every world size.
//! LORA-2: a layer that is run again for the backward pass sees the dropout masks it saw.

use std::path::{Path, PathBuf};

use plumb_model::peft::{AdapterDescription, whole_name};
use plumb_model::{BlockKind, BlockSpec, LayerAdapter, LoraConfig, ParamSpec, derive_seed, peft};
use tch::{Kind, Tensor};

use crate::flat::FlatBlock;
use crate::sharded_model::ShardedModel;
use crate::{EngineError, Precision, Result};

/// Which adapter a model is loaded with.
#[derive(Debug, Clone, PartialEq)]
pub struct LoraPlan {
    /// Shape and strength.
    pub config: LoraConfig,
    /// Seed of a fresh adapter and of dropout masks.
    pub seed: u64,
    /// PEFT folder to start from, of this rank, alpha and targets; `None`: a fresh adapter.
    pub folder: Option<PathBuf>,
}

/// The adapters of a model. Their blocks follow the model's own.
#[derive(Debug)]
pub(crate) struct Adapters {
    pub(crate) plan: LoraPlan,
    /// One block per adapted layer.
    pub(crate) specs: Vec<BlockSpec>,
    /// Block index of the first adapted layer; those above are adapted too.
    first_layer: usize,
    /// Number of the model's own blocks.
    base_blocks: usize,
    enabled: bool,
    /// Training passes since the last optimiser step.
    passes: u64,
}

impl Adapters {
    /// Adapters for the layers above the lowest `frozen_layers`.
    pub(crate) fn new(plan: LoraPlan, base: &[BlockSpec], frozen_layers: usize) -> Result<Self> {
        let first_layer = 1 + frozen_layers;
        let layers = &base[first_layer..base.len() - 1];
        if layers.is_empty() {
            return Err(EngineError::Setting {
                key: "frozen_layers",
                value: frozen_layers.to_string(),
                expected: "less than the number of layers, so that one is left to adapt",
            });
        }
        let specs = layers.iter().map(|spec| plan.config.block(spec));
        let specs = specs.collect::<std::result::Result<_, _>>()?;
        let base_blocks = base.len();
        Ok(Self { plan, specs, first_layer, base_blocks, enabled: true, passes: 0 })
    }

    fn of(&self, block: usize) -> Option<usize> {
        let adapted = (self.first_layer..self.base_blocks - 1).contains(&block);
        adapted.then(|| self.base_blocks + block - self.first_layer)
    }

    /// Layers that are adapted, counted from 0; `None` when all are.
    fn layers(&self) -> Option<Vec<usize>> {
        let layers = self.first_layer - 1..self.base_blocks - 2;
        (self.first_layer > 1).then(|| layers.collect())
    }
}

/// Whether a parameter is trained although the layers are frozen under adapters.
pub(crate) fn trained_whole(spec: &BlockSpec, param: &ParamSpec) -> bool {
    spec.kind == BlockKind::Head && param.name.starts_with("score.")
}

/// Identifies one training pass for its dropout masks.
#[derive(Debug, Clone, Copy)]
pub(crate) struct PassSeed(u64);

impl ShardedModel {
    /// The adapter block of a layer block, when there is one and it is switched on.
    pub(crate) fn adapter_of(&self, block: usize) -> Option<usize> {
        let adapters = self.adapters.as_ref().filter(|adapters| adapters.enabled)?;
        adapters.of(block)
    }

    /// What the layer of `block` is computed with beside its own parameters. `params`: those of
    /// its adapter block.
    pub(crate) fn layer_adapter<'a>(
        &'a self,
        block: usize,
        params: &'a [Tensor],
        pass: Option<PassSeed>,
    ) -> Option<LayerAdapter<'a>> {
        let adapters = self.adapters.as_ref().filter(|_| !params.is_empty())?;
        let dropout_seed = pass.map(|PassSeed(seed)| derive_seed(seed, &[block as u64]));
        Some(LayerAdapter { config: &adapters.plan.config, params, dropout_seed })
    }

    /// A seed that no other pass of any rank has, the same when a run is resumed.
    pub(crate) fn next_pass(&mut self) -> PassSeed {
        let (step, rank) = (self.optimizer_step(), self.rank() as u64);
        let Some(adapters) = &mut self.adapters else { return PassSeed(0) };
        adapters.passes += 1;
        PassSeed(derive_seed(adapters.plan.seed, &[step, adapters.passes, rank]))
    }

    /// The passes of a step are counted from its start.
    pub(crate) fn restart_passes(&mut self) {
        if let Some(adapters) = &mut self.adapters {
            adapters.passes = 0;
        }
    }

    /// The configuration of the model's adapters, if it has any.
    #[must_use]
    pub fn lora(&self) -> Option<&LoraConfig> {
        self.adapters.as_ref().map(|adapters| &adapters.plan.config)
    }

    /// Runs `work` with the adapters switched off: the model is then the one they were put on,
    /// which is the reference of a policy trained through adapters.
    ///
    /// # Errors
    /// A model without adapters; what `work` returns.
    pub fn without_adapters<T>(&mut self, work: impl FnOnce(&mut Self) -> Result<T>) -> Result<T> {
        let Some(adapters) = &mut self.adapters else {
            let problem = "adapters are to be switched off, but the model has none";
            return Err(EngineError::Unsuited(problem.to_owned()));
        };
        adapters.enabled = false;
        let outcome = work(self);
        if let Some(adapters) = &mut self.adapters {
            adapters.enabled = true;
        }
        outcome
    }

    /// Whether adapters exist but are switched off.
    pub(crate) fn adapters_are_off(&self) -> bool {
        self.adapters.as_ref().is_some_and(|adapters| !adapters.enabled)
    }

    /// Frobenius norm of everything that the adapters add to the weights, `(alpha / rank) B A`
    /// over all targets; 0 says that they do nothing. The same on every rank; `None` without
    /// adapters.
    ///
    /// # Errors
    /// A failed collective.
    pub fn adapter_delta_norm(&self) -> Result<Option<f64>> {
        let Some(adapters) = &self.adapters else { return Ok(None) };
        let _guard = tch::no_grad_guard();
        let mut square = 0.0;
        for block in &self.blocks[adapters.base_blocks..] {
            let flat_p = block.gather_master(self.comm.as_ref())?;
            for pair in block.layout.views(&flat_p).chunks_exact(2) {
                square += adapters.plan.config.delta_square(&pair[0], &pair[1])?;
            }
        }
        // Rounding may leave a tiny negative sum where B is zero.
        Ok(Some(square.max(0.0).sqrt()))
    }

    /// The masters of a layer's adapter, gathered: A and B of each target.
    pub(crate) fn adapter_masters(&self, block: usize) -> Result<Vec<Tensor>> {
        match self.adapters.as_ref().and_then(|adapters| adapters.of(block)) {
            None => Ok(Vec::new()),
            Some(adapter) => {
                let flat_p = self.blocks[adapter].gather_master(self.comm.as_ref())?;
                Ok(self.blocks[adapter].layout.views(&flat_p))
            }
        }
    }

    /// A layer's parameters with its adapter merged: `W + (alpha / rank) B A`, summed in fp32.
    /// The others are passed on. `params` and the result are in block order.
    pub(crate) fn merged(
        &self,
        block: usize,
        mut params: Vec<Tensor>,
        adapter: &[Tensor],
    ) -> Result<Vec<Tensor>> {
        let Some(adapters) = self.adapters.as_ref().filter(|_| !adapter.is_empty()) else {
            return Ok(params);
        };
        let config = &adapters.plan.config;
        let positions = config.adapted_positions(&self.specs[block]);
        for (position, pair) in positions.into_iter().zip(adapter.chunks_exact(2)) {
            let weight = params[position].to_kind(Kind::Float);
            params[position] = weight + config.delta(&pair[0], &pair[1])?;
        }
        Ok(params)
    }

    /// Writes the adapters alone as a folder that PEFT loads, a trained score head beside them.
    /// Every rank calls this; rank 0 writes. Returns the bytes written, on every rank.
    ///
    /// # Errors
    /// A model without adapters, a target that cannot be written (nothing is left half-written),
    /// a failed collective.
    pub fn export_adapter(&mut self, folder: &Path, precision: Precision) -> Result<u64> {
        let _guard = tch::no_grad_guard();
        let Some(adapters) = &self.adapters else {
            let problem = "an adapter folder was asked of a model without adapters";
            return Err(EngineError::Unsuited(problem.to_owned()));
        };
        let mut tensors = Vec::new();
        for block in &self.blocks[adapters.base_blocks..] {
            tensors.extend(self.gathered(block)?);
        }
        let head = self.head_index();
        let whole = self.gathered(&self.blocks[head])?.into_iter();
        let whole = whole.filter(|(name, _)| name.starts_with("score."));
        let whole: Vec<_> = whole.map(|(name, values)| (whole_name(&name), values)).collect();
        let base_model = self.source_folder.display().to_string();
        let description = AdapterDescription {
            config: &adapters.plan.config,
            base_model: &base_model,
            layers: adapters.layers(),
            score_head: !whole.is_empty(),
        };
        tensors.extend(whole);
        let written = match self.rank() {
            0 => peft::write(folder, &description, &tensors, precision.kind()),
            _ => Ok(0),
        };
        let bytes = self.agree("export", written.map_err(Into::into))?;
        let [bytes] = self.sum_over_ranks([bytes as f64])?;
        Ok(bytes as u64)
    }

    fn gathered(&self, block: &FlatBlock) -> Result<Vec<(String, Tensor)>> {
        let flat_p = block.gather_master(self.comm.as_ref())?;
        let names = block.layout.slots.iter().map(|slot| slot.name.clone());
        Ok(names.zip(block.layout.views(&flat_p)).collect())
    }
}
