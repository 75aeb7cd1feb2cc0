//! A rank of the sharded engine: a model that is trained, or frozen and asked for log-probs.
//!
//! Every formula follows `crates/engine`: `flat` for shards and gathered blocks, `passes` for what
//! is kept of a forward pass, `sharded_model` for reductions on their way, `head` for logits.

use super::activations::Batch;
use super::{DecoderShape, Head};
use crate::Dtype;

/// Freed activations that the CPU's allocator keeps at most.
const KEPT_FOR_REUSE_BYTES: u64 = 128 << 20;
/// Bytes of an fp32 number.
pub(super) const FP32: u64 = 4;

/// What of a model is trained.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Trained {
    /// Nothing: a reference.
    Nothing,
    /// Everything above this many layers; 0 trains the embedding, too.
    Above(u64),
    /// Adapters of this many elements in each layer above the lowest frozen ones.
    Adapters {
        /// Layers without adapters.
        frozen_layers: u64,
        /// Elements of one layer's adapter.
        elements: u64,
    },
}

/// Everything that a rank's memory depends on.
#[derive(Debug, Clone, PartialEq)]
pub struct EngineShape {
    /// The model.
    pub model: DecoderShape,
    /// What stands on top of it.
    pub head: Head,
    /// R, ranks that it is cut over.
    pub ranks: u64,
    /// Type of gathered weights and activations.
    pub compute: Dtype,
    /// Type that gradients are summed in.
    pub reduce: Dtype,
    /// Whether layers are run again in the backward pass.
    pub recompute: bool,
    /// Whether gathered weights are freed after the forward pass.
    pub reshard_after_forward: bool,
    /// Tokens in a micro-batch of one rank, at most.
    pub micro_batch_tokens: u64,
    /// Tokens of one rank in an optimiser step, at most.
    pub step_tokens: u64,
    /// Tokens of the longest sequence.
    pub longest_tokens: u64,
    /// What is trained.
    pub trained: Trained,
    /// Bytes of optimiser state for each trained element: 8 for AdamW's fp32 moments.
    pub state_bytes: f64,
    /// Whether masters, optimiser state, average and gradients live in host memory.
    pub offload_optimizer: bool,
    /// Whether the shards in the compute type do, too.
    pub offload_parameters: bool,
    /// Whether a moving average of the trained parameters is kept, in fp32.
    pub ema: bool,
    /// Whether a process computes on the CPU.
    pub cpu: bool,
}

/// Elements of the three kinds of blocks that this rank owns or gathers.
pub(super) struct Blocks {
    pub(super) embedding: u64,
    pub(super) layer: u64,
    pub(super) head: u64,
}

impl EngineShape {
    pub(super) fn blocks(&self) -> Blocks {
        let Self { model, .. } = self;
        Blocks { embedding: model.embedding(), layer: model.layer(), head: model.head(&self.head) }
    }

    /// One rank's part of a block.
    pub(super) fn shard(&self, elements: u64) -> u64 {
        elements.div_ceil(self.ranks.max(1))
    }

    /// Elements of this rank's shards that are trained, and of those that are frozen.
    pub(super) fn shards(&self) -> (u64, u64) {
        let Blocks { embedding, layer, head } = self.blocks();
        let (embedding, layer, head) = (self.shard(embedding), self.shard(layer), self.shard(head));
        let layers = self.model.layers;
        let all = embedding + layers * layer + head;
        match self.trained {
            Trained::Nothing => (0, all),
            Trained::Above(0) => (all, 0),
            Trained::Above(frozen) => {
                let below = embedding + frozen.min(layers) * layer;
                (all - below, below)
            }
            Trained::Adapters { frozen_layers, elements } => {
                let adapted = layers.saturating_sub(frozen_layers);
                // A score head is trained whole beside the adapters, and with it its block.
                let head = if self.head == Head::LanguageModel { 0 } else { head };
                (adapted * self.shard(elements) + head, all - head)
            }
        }
    }

    pub(super) fn trains(&self) -> bool {
        self.trained != Trained::Nothing
    }

    pub(super) fn trains_embedding(&self) -> bool {
        self.trained == Trained::Above(0)
    }

    /// Layers that the backward pass goes through.
    pub(super) fn backward_layers(&self) -> u64 {
        match self.trained {
            Trained::Nothing => 0,
            Trained::Above(frozen) | Trained::Adapters { frozen_layers: frozen, .. } => {
                self.model.layers.saturating_sub(frozen)
            }
        }
    }

    /// Trained elements of one layer's backward pass.
    pub(super) fn trained_in_layer(&self) -> u64 {
        match self.trained {
            Trained::Nothing => 0,
            Trained::Above(_) => self.model.layer(),
            Trained::Adapters { elements, .. } => elements,
        }
    }

    pub(super) fn batch(&self) -> Batch {
        Batch {
            tokens: self.micro_batch_tokens.min(self.step_tokens.max(self.longest_tokens)),
            longest_tokens: self.longest_tokens,
            compute_bytes: self.compute.bytes(),
            cpu: self.cpu,
        }
    }

    pub(super) fn process(&self) -> (&'static str, u64) {
        match self.cpu {
            true => ("process", super::PROCESS_BYTES),
            false => ("CUDA context", super::CUDA_CONTEXT_BYTES),
        }
    }

    /// What stays between calls: masters, 4 bytes an element of a trained shard; frozen shards in
    /// the compute type; the optimiser's state; the moving average.
    /// Offloaded, they are not on the device.
    pub(super) fn resident(&self) -> [(&'static str, u64); 5] {
        let [masters, state, average] = match self.offload_optimizer {
            true => [0; 3],
            false => self.of_optimizer(),
        };
        let frozen = if self.offload_parameters { 0 } else { self.shards().1 };
        [
            self.process(),
            ("masters", masters),
            ("frozen weights", self.compute.bytes() * frozen),
            ("optimiser state", state),
            ("moving average", average),
        ]
    }

    /// Masters, optimiser state and moving average of what is trained.
    fn of_optimizer(&self) -> [u64; 3] {
        let (trained, _) = self.shards();
        let state = (self.state_bytes * trained as f64) as u64;
        [FP32 * trained, state, if self.ema { FP32 * trained } else { 0 }]
    }

    /// What is in host memory instead of the device's: with gradients, and the shards in the
    /// compute type.
    #[must_use]
    pub fn offloaded_bytes(&self) -> u64 {
        let (trained, frozen) = self.shards();
        let optimizer = self.of_optimizer().iter().sum::<u64>() + FP32 * trained;
        let parameters = self.compute.bytes() * (trained + frozen);
        let part = |offloaded, bytes| if offloaded { bytes } else { 0 };
        part(self.offload_optimizer, optimizer) + part(self.offload_parameters, parameters)
    }

    /// Bytes held between calls.
    #[must_use]
    pub fn idle_bytes(&self) -> u64 {
        self.resident().iter().map(|(_, bytes)| bytes).sum::<u64>() + self.compute_copy()
    }

    /// The weights in the compute type, `c` bytes a trained element, which at world size 1 stay
    /// until the step; none in fp32. More ranks round their shards into what they gather. Where
    /// the masters are offloaded it is what the device keeps.
    pub(super) fn compute_copy(&self) -> u64 {
        let copied = match self.offload_optimizer {
            true => !self.offload_parameters,
            false => self.ranks == 1 && self.compute.bytes() < FP32,
        };
        if copied { self.compute.bytes() * self.shards().0 } else { 0 }
    }

    /// `c P` for a gathered block; at world size 1 that is the shard itself.
    pub(super) fn gathered(&self, elements: u64) -> u64 {
        let separate = self.ranks > 1 || self.offload_parameters;
        if separate { self.compute.bytes() * self.ranks * self.shard(elements) } else { 0 }
    }

    /// Gathered layers at once: the running one and the one on its way; all without resharding.
    pub(super) fn gathered_layers(&self) -> u64 {
        let held = if self.reshard_after_forward { 2 } else { self.model.layers };
        held.min(self.model.layers) * self.gathered(self.model.layer())
    }

    /// A gathered embedding that stays because the head uses it too, or nothing is given back.
    pub(super) fn gathered_embedding(&self) -> u64 {
        self.gathered(self.model.embedding())
    }

    /// Whether one forward pass needs the embedding from its beginning to its end.
    pub(super) fn embedding_stays(&self) -> bool {
        !self.reshard_after_forward || (self.head == Head::LanguageModel && self.model.tied)
    }

    /// All gradients of this rank's shards, fp32.
    pub(super) fn gradients(&self) -> u64 {
        if self.offload_optimizer { 0 } else { FP32 * self.shards().0 }
    }

    /// Gradients that earlier micro-batches of the step have left.
    pub(super) fn earlier_gradients(&self) -> u64 {
        if self.step_tokens > self.micro_batch_tokens { self.gradients() } else { 0 }
    }

    /// Bytes of an unreduced gradient of this many elements, which at world size 1 is the
    /// gradient itself.
    pub(super) fn unreduced(&self, elements: u64) -> u64 {
        if self.ranks > 1 { self.reduce.bytes() * self.ranks * self.shard(elements) } else { 0 }
    }

    /// A block's gradient on its way with its outcome, `r (P + P / R)`; the next block's is only
    /// begun when it has arrived.
    pub(super) fn reduction(&self, elements: u64) -> u64 {
        let outcome = if self.ranks > 1 { self.reduce.bytes() * self.shard(elements) } else { 0 };
        self.unreduced(elements) + outcome
    }

    /// The embedding's unreduced gradient: a tied head begins it, the lookup ends it.
    pub(super) fn embedding_gradient(&self) -> u64 {
        let lent = self.head == Head::LanguageModel && self.model.tied;
        if self.trains_embedding() && lent { self.unreduced(self.model.embedding()) } else { 0 }
    }

    /// What is kept of the layers for the backward pass: inputs, or whole graphs.
    pub(super) fn kept(&self, layers: u64) -> u64 {
        let (batch, model) = (self.batch(), &self.model);
        let each = if self.recompute { batch.hidden(model) } else { batch.saved_by_layer(model) };
        layers * each
    }

    /// Freed blocks that the CPU's allocator (`crates/torch`) keeps for the next layer. Their sizes
    /// are those of the layer's activations, about half of which are in use when it holds the most.
    pub(super) fn reusable(&self, running: u64) -> u64 {
        if self.cpu { running.min(KEPT_FOR_REUSE_BYTES) / 2 } else { 0 }
    }

    /// The copy in which query, key and value weights are one matrix, `c (Q + 2 K) H`.
    pub(super) fn fused(&self) -> u64 {
        self.compute.bytes() * self.model.fused_projection()
    }
}

#[cfg(test)]
#[path = "engine_tests.rs"]
mod tests;
