//! What a rank of the sharded engine goes through, from the terms of [`super::engine`].

use super::engine::{Blocks, EngineShape, FP32, Trained};
use super::{Head, PhaseMemory};

impl EngineShape {
    /// Everything that a worker goes through with this model.
    #[must_use]
    pub fn phases(&self) -> Vec<PhaseMemory> {
        let mut phases = vec![self.load()];
        if self.trains() {
            phases.extend([self.forward(), self.head_pass(), self.backward(), self.step()]);
        } else {
            phases.push(self.log_probs());
        }
        phases
    }

    /// Loading reads one slice of one tensor at a time, twice in memory on its way: the embedding
    /// first, a matrix of the last layer (or an output matrix) when all else is there. The
    /// optimiser's state is zero, and not resident, until the first step.
    #[must_use]
    pub fn load(&self) -> PhaseMemory {
        let [process, masters, frozen, _, average] = self.resident();
        let slice = |elements: u64| 2 * FP32 * self.shard(elements);
        let embedding = self.model.embedding();
        let untied = self.head == Head::LanguageModel && !self.model.tied;
        let last = if untied { embedding } else { self.model.hidden * self.model.intermediate };
        let first = FP32 * self.shard(embedding) + slice(embedding);
        if first > masters.1 + frozen.1 + average.1 + slice(last) {
            let own = ("embedding", FP32 * self.shard(embedding));
            return PhaseMemory::new("load", &[process, own, ("slices", slice(embedding))]);
        }
        PhaseMemory::new("load", &[process, masters, frozen, average, ("slices", slice(last))])
    }

    /// The forward pass: the top layer runs, the inputs of all those below are kept.
    #[must_use]
    pub fn forward(&self) -> PhaseMemory {
        let (batch, model) = (self.batch(), &self.model);
        let embedding = if self.embedding_stays() { self.gathered_embedding() } else { 0 };
        let layer = batch.layer_without_gradients(model);
        self.phase(
            "forward",
            &[
                ("gradients", self.earlier_gradients()),
                ("gathered layers", self.gathered_layers() + self.fused()),
                ("gathered embedding", embedding),
                ("kept for the backward pass", self.kept(self.backward_layers())),
                ("layer", layer + batch.tables(model)),
            ],
        )
    }

    /// The head: logits in chunks and the output matrix' gradient.
    #[must_use]
    pub fn head_pass(&self) -> PhaseMemory {
        let (batch, model) = (self.batch(), &self.model);
        let language = self.head == Head::LanguageModel;
        let matrix = if language { model.embedding() } else { self.blocks().head };
        let trained = language && matches!(self.trained, Trained::Above(0))
            || (language && !model.tied && self.trained_head());
        // The compute-type product of one chunk, and the fp32 sum where there are several.
        let sum = if batch.logits_chunks(model) > 1 { FP32 } else { 0 };
        let gradient = if trained { (self.compute.bytes() + sum) * matrix } else { 0 };
        let filled = if trained {
            // At world size 1 the gradient of this block begins here.
            if self.ranks > 1 { self.unreduced(matrix) } else { FP32 * matrix }
        } else {
            0
        };
        let logits = if language { batch.logits(model) } else { 0 };
        self.phase(
            "head",
            &[
                ("gradients", self.earlier_gradients()),
                ("gathered layers", self.held_layers()),
                ("gathered head", self.gathered(matrix)),
                ("kept for the backward pass", self.kept(self.backward_layers())),
                ("logits", logits),
                ("head states", batch.head_states(model) + batch.tables(model)),
                ("gradient of the output matrix", gradient + filled),
            ],
        )
    }

    fn trained_head(&self) -> bool {
        matches!(self.trained, Trained::Above(_))
    }

    fn held_layers(&self) -> u64 {
        if self.reshard_after_forward { 0 } else { self.gathered_layers() }
    }

    /// The backward pass of the top layer, where all inputs are kept, or of the lowest, where all
    /// gradients are there: whichever holds more.
    #[must_use]
    pub fn backward(&self) -> PhaseMemory {
        let (batch, model) = (self.batch(), &self.model);
        let layers = self.backward_layers();
        let kept_at = |count: u64| self.kept(count.min(layers));
        let top = self.earlier_gradients() + kept_at(layers);
        let bottom = self.gradients() + kept_at(1);
        let (gradients, kept) = match top > bottom {
            true => (self.earlier_gradients(), kept_at(layers)),
            false => (self.gradients(), kept_at(1)),
        };
        let saved = if self.recompute { batch.saved_by_layer(model) } else { 0 };
        let running = saved + batch.backward_of_layer(model) + batch.tables(model);
        let trained = self.trained_in_layer();
        self.phase(
            "backward",
            &[
                ("gradients", gradients),
                ("gathered layers", self.gathered_layers() + self.fused()),
                ("kept for the backward pass", kept),
                ("layer", running),
                ("kept for reuse", self.reusable(running)),
                ("gradients of a layer", self.compute.bytes() * trained + self.fused()),
                ("gradients being summed", self.reduction(trained)),
                ("gradient of the embedding", self.embedding_gradient()),
            ],
        )
    }

    /// The optimiser's step works in place; the last gradient summed is the embedding's.
    #[must_use]
    pub fn step(&self) -> PhaseMemory {
        let last = match self.trains_embedding() {
            true => self.unreduced(self.model.embedding()),
            false => self.unreduced(self.trained_in_layer()),
        };
        self.phase(
            "step",
            &[
                ("gradients", self.gradients()),
                ("gathered layers", self.held_layers()),
                ("gradients being summed", last),
            ],
        )
    }

    /// Log-probs without gradients.
    #[must_use]
    pub fn log_probs(&self) -> PhaseMemory {
        let (batch, model) = (self.batch(), &self.model);
        let matrix = match self.head {
            Head::LanguageModel => model.embedding(),
            Head::Score { .. } => self.blocks().head,
        };
        let logits = match self.head {
            Head::LanguageModel => batch.logits(model) + batch.head_states(model),
            Head::Score { .. } => 0,
        };
        let layer = self.gathered_layers() + self.fused() + batch.layer_without_gradients(model);
        let embedding = if self.embedding_stays() { self.gathered_embedding() } else { 0 };
        let head = self.held_layers() + self.gathered(matrix) + logits;
        let hidden = batch.hidden(model) + batch.tables(model);
        let terms = match layer + embedding > head {
            true => {
                [("layer", layer), ("gathered embedding", embedding), ("hidden states", hidden)]
            }
            false => [
                ("gathered head", self.held_layers() + self.gathered(matrix)),
                ("logits", logits),
                ("hidden states", hidden),
            ],
        };
        self.phase("log-probs", &terms)
    }

    /// Publishing gathers block by block in the compute type.
    #[must_use]
    pub fn publish(&self) -> PhaseMemory {
        let Blocks { embedding, layer, head } = self.blocks();
        let (largest, second) = (embedding.max(layer).max(head), layer);
        // Rank 0 sends what it gathered; the others receive into a block of their own.
        let received = if self.ranks > 1 { self.compute.bytes() * largest } else { 0 };
        self.phase(
            "publish",
            &[
                ("gathered blocks", self.gathered(largest) + self.gathered(second)),
                ("block being sent", received),
            ],
        )
    }

    /// Exporting gathers the masters of one block, in fp32, and writes them in the file's type.
    #[must_use]
    pub fn export(&self) -> PhaseMemory {
        let Blocks { embedding, layer, head } = self.blocks();
        let largest = embedding.max(layer).max(head);
        let gathered = if self.ranks > 1 { FP32 * largest } else { 0 };
        self.phase(
            "export",
            &[
                ("gathered masters", gathered),
                ("tensor being written", FP32 * self.model.embedding()),
            ],
        )
    }

    /// A checkpoint is written from the shards as they are.
    #[must_use]
    pub fn checkpoint(&self) -> PhaseMemory {
        self.phase("checkpoint", &[])
    }

    /// A phase after loading: what stays, the compute copy, and its own terms.
    fn phase(&self, phase: &'static str, own: &[(&'static str, u64)]) -> PhaseMemory {
        let mut terms = self.resident().to_vec();
        terms.push(("shards in the compute type", self.compute_copy()));
        terms.extend_from_slice(own);
        PhaseMemory::new(phase, &terms)
    }
}
