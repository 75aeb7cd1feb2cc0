//! A model cut block by block over the ranks of a group.

use std::collections::VecDeque;
use std::path::{Path, PathBuf};

use plumb_collective::Collective;
use plumb_model::{BlockSpec, Decoder, HeadSpec, ModelConfig};
use tch::Tensor;

use crate::adapters::{Adapters, LoraPlan, trained_whole};
use crate::checkpoint::PendingCheckpoint;
use crate::ema::{Ema, EmaSettings};
use crate::flat::{FlatBlock, Layout, Reduction};
use crate::optimizer::AdamW;
use crate::parameter_rules::freeze;
use crate::{AdamWSettings, EngineError, EngineSettings, Placement, Result};

/// Gradient reductions that may be on their way at once; more would only hold memory.
const REDUCTIONS_IN_FLIGHT: usize = 1;

/// One rank's part of a model: a shard of every block, and the means to gather them.
///
/// Every method that gathers, reduces or steps is collective: all ranks of the group call it in
/// the same order.
pub struct ShardedModel {
    pub(crate) decoder: Decoder,
    pub(crate) head: HeadSpec,
    pub(crate) specs: Vec<BlockSpec>,
    pub(crate) blocks: Vec<FlatBlock>,
    pub(crate) comm: Box<dyn Collective>,
    pub(crate) settings: EngineSettings,
    pub(crate) optimizer: Option<AdamW>,
    pub(crate) adapters: Option<Adapters>,
    pub(crate) ema: Option<Ema>,
    pub(crate) source_folder: PathBuf,
    pub(crate) pending_checkpoint: Option<PendingCheckpoint>,
    reductions: VecDeque<(usize, Reduction)>,
}

/// What a model is loaded as.
#[derive(Debug, Clone)]
pub struct LoadPlan {
    /// Language model or score head.
    pub head: HeadSpec,
    /// Seed of the parameters of a score head that the folder does not hold.
    pub head_seed: u64,
    /// Memory and precision.
    pub settings: EngineSettings,
    /// Absent for a model that is not trained.
    pub optimizer: Option<AdamWSettings>,
    /// Low-rank adapters on frozen layers; absent: the model's own parameters are trained.
    pub lora: Option<LoraPlan>,
    /// A moving average of what is trained; absent: none is kept.
    pub ema: Option<EmaSettings>,
}

impl ShardedModel {
    /// Loads this rank's shard from a Hugging Face folder. Each tensor's slice is read on its
    /// own, so no rank ever holds the whole model.
    ///
    /// # Errors
    /// A folder or shape that does not fit, a setting outside its domain.
    pub fn load(folder: &Path, plan: LoadPlan, comm: Box<dyn Collective>) -> Result<Self> {
        plan.settings.validate()?;
        let config = ModelConfig::from_folder(folder)?;
        let decoder = Decoder::new(config)?;
        let specs = decoder.blocks(&plan.head);
        let layers = specs.len().saturating_sub(2);
        if plan.settings.frozen_layers > layers {
            return Err(EngineError::Setting {
                key: "frozen_layers",
                value: plan.settings.frozen_layers.to_string(),
                expected: "at most the number of layers",
            });
        }
        let frozen_layers = plan.settings.frozen_layers;
        let adapters = match plan.lora.clone() {
            Some(lora) => Some(Adapters::new(lora, &specs, frozen_layers)?),
            None => None,
        };
        let mut model = Self {
            blocks: zero_blocks(&specs, adapters.as_ref(), &plan, comm.world_size())?,
            adapters,
            decoder,
            head: plan.head,
            specs,
            comm,
            settings: plan.settings,
            optimizer: None,
            ema: None,
            source_folder: folder.to_path_buf(),
            pending_checkpoint: None,
            reductions: VecDeque::new(),
        };
        crate::load::fill(&mut model, folder, plan.head_seed)?;
        if let Some(settings) = plan.optimizer {
            model.optimizer = Some(AdamW::new(settings, &model.blocks)?);
        }
        if let Some(settings) = plan.ema {
            settings.validate()?;
            model.ema = Some(Ema::new(settings, &model.blocks));
        }
        Ok(model)
    }

    /// This process' place in the group.
    #[must_use]
    pub fn rank(&self) -> usize {
        self.comm.rank()
    }

    /// Ranks in the group.
    #[must_use]
    pub fn world_size(&self) -> usize {
        self.comm.world_size()
    }

    /// The sharding group.
    #[must_use]
    pub fn collective(&self) -> &dyn Collective {
        self.comm.as_ref()
    }

    /// Gives the group back, for another model.
    #[must_use]
    pub fn into_collective(self) -> Box<dyn Collective> {
        self.comm
    }

    /// The settings this model was loaded with.
    #[must_use]
    pub fn settings(&self) -> &EngineSettings {
        &self.settings
    }

    /// The architecture and its pure functions.
    #[must_use]
    pub fn decoder(&self) -> &Decoder {
        &self.decoder
    }

    /// The blocks, embedding first, head last.
    #[must_use]
    pub fn block_specs(&self) -> &[BlockSpec] {
        &self.specs
    }

    /// Parameters of the whole model.
    #[must_use]
    pub fn parameters(&self) -> u64 {
        self.blocks.iter().map(|block| block.layout.elements as u64).sum()
    }

    /// Bytes of this rank's master shards.
    #[must_use]
    pub fn shard_bytes(&self) -> u64 {
        let bytes =
            |block: &FlatBlock| block.master().numel() * block.master().kind().elt_size_in_bytes();
        self.blocks.iter().map(|block| bytes(block) as u64).sum()
    }

    /// Optimiser steps taken.
    #[must_use]
    pub fn optimizer_step(&self) -> u64 {
        self.optimizer.as_ref().map_or(0, AdamW::step_count)
    }

    /// Index of the head block.
    pub(crate) fn head_index(&self) -> usize {
        self.specs.len() - 1
    }

    /// Block indices of the layers.
    pub(crate) fn layer_indices(&self) -> std::ops::Range<usize> {
        1..self.head_index()
    }

    /// The lowest of the model's own blocks that has something to train, in itself or in its
    /// adapter; the backward pass ends there. `None`: nothing is trained.
    pub(crate) fn lowest_trained(&self) -> Option<usize> {
        let trained = |block: usize| self.blocks[block].trainable;
        (0..self.specs.len())
            .find(|&block| trained(block) || self.adapter_of(block).is_some_and(trained))
    }

    /// Whether block 0 lends its matrix to the head.
    pub(crate) fn head_is_tied(&self) -> bool {
        self.specs.last().is_some_and(|spec| spec.tied)
    }

    /// Parameters of a block, gathered; the gather of `next` starts before this one is awaited
    /// for, so that it runs while this block computes.
    pub(crate) fn acquire(&mut self, block: usize, next: Option<usize>) -> Result<Vec<Tensor>> {
        self.start_gather(block)?;
        if let Some(next) = next {
            self.start_gather(next)?;
        }
        self.gathered_params(block)
    }

    /// Parameters of a layer and of its adapter (none: empty), gathered as by
    /// [`ShardedModel::acquire`].
    pub(crate) fn acquire_layer(
        &mut self,
        block: usize,
        next: Option<usize>,
    ) -> Result<(Vec<Tensor>, Vec<Tensor>)> {
        let params = self.acquire(block, next)?;
        let adapter = match self.adapter_of(block) {
            Some(adapter) => self.gathered_params(adapter)?,
            None => Vec::new(),
        };
        Ok((params, adapter))
    }

    fn gathered_params(&mut self, block: usize) -> Result<Vec<Tensor>> {
        let flat_p = self.blocks[block].gather(self.comm.as_ref())?;
        Ok(self.blocks[block].layout.views(&flat_p))
    }

    fn start_gather(&mut self, block: usize) -> Result<()> {
        self.blocks[block].start_gather(self.comm.as_ref())?;
        match self.adapter_of(block) {
            Some(adapter) => self.blocks[adapter].start_gather(self.comm.as_ref()),
            None => Ok(()),
        }
    }

    fn free(&mut self, block: usize, graph_holds_views: bool) -> Result<()> {
        self.blocks[block].free(graph_holds_views)?;
        match self.adapter_of(block) {
            Some(adapter) => self.blocks[adapter].free(graph_holds_views),
            None => Ok(()),
        }
    }

    /// Gives back a block's gathered memory after its forward pass, if the settings say so.
    pub(crate) fn release_after_forward(&mut self, block: usize, kept_graph: bool) -> Result<()> {
        if self.settings.reshard_after_forward {
            self.free(block, kept_graph)?;
        }
        Ok(())
    }

    /// Gives back a block's gathered memory after its last use in a micro-batch.
    pub(crate) fn release(&mut self, block: usize) -> Result<()> {
        if self.settings.reshard_after_forward {
            self.free(block, false)?;
        }
        Ok(())
    }

    /// Starts summing a block's gradient over ranks, finishing older sums first, so that one is on
    /// its way while the next block computes. A frozen block has none.
    pub(crate) fn reduce(&mut self, block: usize) -> Result<()> {
        if !self.blocks[block].trainable {
            return Ok(());
        }
        let reduce = self.settings.reduce.kind();
        if let Some(reduction) = self.blocks[block].start_reduce(self.comm.as_ref(), reduce)? {
            self.reductions.push_back((block, reduction));
        }
        while self.reductions.len() > REDUCTIONS_IN_FLIGHT {
            self.finish_oldest_reduction()?;
        }
        Ok(())
    }

    /// Waits for every gradient on its way.
    pub(crate) fn finish_reductions(&mut self) -> Result<()> {
        while !self.reductions.is_empty() {
            self.finish_oldest_reduction()?;
        }
        Ok(())
    }

    fn finish_oldest_reduction(&mut self) -> Result<()> {
        match self.reductions.pop_front() {
            Some((block, reduction)) => self.blocks[block].finish_reduce(reduction),
            None => Ok(()),
        }
    }

    /// Forgets gradients of a step that did not complete.
    pub(crate) fn discard_gradients(&mut self) {
        self.reductions.clear();
        self.restart_passes();
        self.blocks.iter_mut().for_each(FlatBlock::discard_gradient);
    }
}

fn zero_blocks(
    specs: &[BlockSpec],
    adapters: Option<&Adapters>,
    plan: &LoadPlan,
    ranks: usize,
) -> Result<Vec<FlatBlock>> {
    let EngineSettings { compute, device, offload, .. } = plan.settings;
    let added = adapters.iter().flat_map(|adapters| &adapters.specs);
    let blocks: Vec<&BlockSpec> = specs.iter().chain(added).collect();
    let trained = trained_slots(&blocks, specs.len(), adapters.is_some(), plan)?;
    let block = |(spec, trained): (&&BlockSpec, Vec<bool>)| {
        let placement = Placement::new(device, offload, trained.contains(&true));
        FlatBlock::zeros(Layout::new(spec, ranks), trained, compute.kind(), placement)
    };
    Ok(blocks.iter().zip(trained).map(block).collect())
}

/// Which parameters are trained, by block and slot. The first `own` blocks are the model's.
fn trained_slots(
    blocks: &[&BlockSpec],
    own: usize,
    adapted: bool,
    plan: &LoadPlan,
) -> Result<Vec<Vec<bool>>> {
    let frozen_layers = plan.settings.frozen_layers;
    let of_block = |(index, spec): (usize, &&BlockSpec)| -> Vec<bool> {
        // The embedding is frozen with the first layer.
        let frozen = frozen_layers > 0 && index <= frozen_layers && index != own - 1;
        let trained = |param| match adapted {
            true => index >= own || trained_whole(spec, param),
            false => !frozen,
        };
        spec.params.iter().map(|param| plan.optimizer.is_some() && trained(param)).collect()
    };
    let mut trained: Vec<_> = blocks.iter().enumerate().map(of_block).collect();
    if let Some(optimizer) = &plan.optimizer {
        let names = |spec: &&BlockSpec| spec.params.iter().map(|p| p.name.clone()).collect();
        let names: Vec<Vec<String>> = blocks.iter().map(names).collect();
        freeze(&optimizer.freeze, &names, &mut trained)?;
    }
    Ok(trained)
}
