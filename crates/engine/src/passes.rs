//! Forward and backward through embedding and layers, block by block.
//!
//! Forward: gather block i (block i+1 is on its way), run it, keep its input, free it.
//! Backward: gather again, run again under grad, multiply the incoming gradient by the block's
//! Jacobian, hand the parameter gradient to its owners, free. With `recompute = false` the graph
//! of each block is kept instead; blocks are detached from each other either way, so the peak is
//! one block's activations plus one input per block.

use plumb_model::{Layout, Packed};
use tch::{Tensor, no_grad_guard};

use crate::adapters::PassSeed;
use crate::sharded_model::ShardedModel;
use crate::{EngineError, Result};

/// What a forward pass keeps for the backward pass. N tokens, H hidden.
#[derive(Debug)]
pub struct Trace {
    /// Output of the last layer, before the final norm, `[N, H]`.
    pub hidden_nh: Tensor,
    layers: Vec<KeptLayer>,
    layout: Layout,
    pass: PassSeed,
}

/// What is kept of one layer.
#[derive(Debug)]
enum KeptLayer {
    /// Below everything that is trained.
    Nothing,
    /// The layer is run again in the backward pass.
    Input(Tensor),
    /// The layer's graph.
    Graph(LayerGraph),
}

/// A layer computed under grad.
#[derive(Debug)]
struct LayerGraph {
    input_nh: Tensor,
    trained: Vec<TrainedLeaf>,
    output_nh: Tensor,
}

/// A parameter whose gradient is wanted.
#[derive(Debug)]
struct TrainedLeaf {
    block: usize,
    slot: usize,
    leaf: Tensor,
}

impl ShardedModel {
    /// Hidden states after the last layer, `[N, H]`, without anything kept for gradients.
    ///
    /// # Errors
    /// A failed collective or a batch that the model refuses.
    pub fn hidden(&mut self, packed: &Packed) -> Result<Tensor> {
        Ok(self.run_forward(packed, false)?.hidden_nh)
    }

    /// Forward pass that [`ShardedModel::backward`] can follow.
    ///
    /// # Errors
    /// A model loaded without an optimiser, a failed collective, a refused batch.
    pub fn forward(&mut self, packed: &Packed) -> Result<Trace> {
        if self.optimizer.is_none() {
            return Err(EngineError::Unsuited(
                "training was asked of a model that was loaded without an optimiser".to_owned(),
            ));
        }
        if self.adapters_are_off() {
            let problem = "training was asked while the adapters are switched off";
            return Err(EngineError::Unsuited(problem.to_owned()));
        }
        self.run_forward(packed, true)
    }

    fn run_forward(&mut self, packed: &Packed, training: bool) -> Result<Trace> {
        let _guard = no_grad_guard();
        let layers = self.layer_indices();
        let params = self.acquire(0, layers.clone().next())?;
        let layout = self.decoder.layout(packed, self.settings.compute.kind())?;
        let mut hidden_nh = self.decoder.embed(&params, &packed.input_ids)?;
        drop(params);
        if !self.head_is_tied() {
            self.release_after_forward(0, false)?;
        }
        let pass = self.next_pass();
        let lowest = self.lowest_trained().filter(|_| training);
        let mut kept = Vec::with_capacity(layers.len());
        for block in layers {
            // The block after the last layer is the head.
            let (params, adapter) = self.acquire_layer(block, Some(block + 1))?;
            let trained = lowest.is_some_and(|lowest| block >= lowest);
            let (output_nh, layer) = if trained && !self.settings.recompute {
                let graph = self.layer_graph(block, params, adapter, hidden_nh, &layout, pass)?;
                (graph.output_nh.detach(), KeptLayer::Graph(graph))
            } else {
                let adapter = self.layer_adapter(block, &adapter, training.then_some(pass));
                let index = block - 1;
                let output_nh = self.decoder.adapted_layer(
                    index,
                    &params,
                    adapter.as_ref(),
                    &hidden_nh,
                    &layout,
                )?;
                let layer = match trained {
                    true => KeptLayer::Input(apart(hidden_nh)),
                    false => KeptLayer::Nothing,
                };
                (output_nh, layer)
            };
            self.release_after_forward(block, matches!(layer, KeptLayer::Graph { .. }))?;
            kept.push(layer);
            hidden_nh = output_nh;
        }
        Ok(Trace { hidden_nh, layers: kept, layout, pass })
    }

    /// Runs a layer under grad, from leaves. `params` and `adapter` are its gathered parameters.
    fn layer_graph(
        &self,
        block: usize,
        params: Vec<Tensor>,
        adapter: Vec<Tensor>,
        hidden_nh: Tensor,
        layout: &Layout,
        pass: PassSeed,
    ) -> Result<LayerGraph> {
        // Below the lowest trained block nobody wants a gradient.
        let passes_on = self.lowest_trained().is_some_and(|lowest| lowest < block);
        tch::with_grad(|| {
            let input_nh = hidden_nh.detach().set_requires_grad(passes_on);
            let params = self.leaves_of(block, params);
            let adapter_block = self.adapter_of(block);
            let adapter = match adapter_block {
                Some(adapter_block) => self.leaves_of(adapter_block, adapter),
                None => adapter,
            };
            let beside = self.layer_adapter(block, &adapter, Some(pass));
            let output_nh = self.decoder.adapted_layer(
                block - 1,
                &params,
                beside.as_ref(),
                &input_nh,
                layout,
            )?;
            let mut trained = self.trained_leaves(block, params);
            if let Some(adapter_block) = adapter_block {
                trained.extend(self.trained_leaves(adapter_block, adapter));
            }
            Ok(LayerGraph { input_nh, trained, output_nh })
        })
    }

    /// Views of a gathered block as leaves, under grad where they are trained.
    fn leaves_of(&self, block: usize, params: Vec<Tensor>) -> Vec<Tensor> {
        let trained = &self.blocks[block].trained;
        let leaf = |(param, &trained): (Tensor, &bool)| param.detach().set_requires_grad(trained);
        params.into_iter().zip(trained).map(leaf).collect()
    }

    fn trained_leaves(&self, block: usize, leaves: Vec<Tensor>) -> Vec<TrainedLeaf> {
        let trained = &self.blocks[block].trained;
        let leaves = leaves.into_iter().enumerate().filter(|(slot, _)| trained[*slot]);
        leaves.map(|(slot, leaf)| TrainedLeaf { block, slot, leaf }).collect()
    }

    /// Collects the gradients of everything trained below the head, given ∂loss/∂hidden after
    /// the last layer, `[N, H]`. Sums over ranks are under way when this returns.
    ///
    /// # Errors
    /// A failed collective.
    pub fn backward(&mut self, trace: Trace, grad_nh: Tensor, packed: &Packed) -> Result<()> {
        let Trace { layers, layout, pass, .. } = trace;
        let lowest = self.lowest_trained().unwrap_or(self.head_index());
        let mut grad_nh = grad_nh;
        for (block, layer) in self.layer_indices().zip(layers).rev() {
            if matches!(layer, KeptLayer::Nothing) {
                return Ok(());
            }
            let below = block - 1;
            // The embedding's backward is a scatter; its matrix is not needed.
            let next = (below > 0 && below >= lowest).then_some(below);
            let (params, adapter) = self.acquire_layer(block, next)?;
            let graph = match layer {
                KeptLayer::Graph(graph) => graph,
                KeptLayer::Input(hidden_nh) => {
                    self.layer_graph(block, params, adapter, hidden_nh, &layout, pass)?
                }
                KeptLayer::Nothing => return Ok(()),
            };
            let below_nh = self.layer_gradients(graph, grad_nh)?;
            self.release(block)?;
            self.reduce(block)?;
            if let Some(adapter) = self.adapter_of(block) {
                self.reduce(adapter)?;
            }
            match below_nh {
                Some(below_nh) => grad_nh = below_nh,
                None => return Ok(()),
            }
        }
        self.embedding_gradient(&grad_nh, packed)
    }

    /// Adds one layer's parameter gradients and returns ∂loss/∂input `[N, H]` where something
    /// below is trained.
    fn layer_gradients(&mut self, graph: LayerGraph, grad_nh: Tensor) -> Result<Option<Tensor>> {
        let LayerGraph { input_nh, trained, output_nh } = graph;
        let passes_on = input_nh.requires_grad();
        let mut inputs: Vec<_> = passes_on.then_some(input_nh).into_iter().collect();
        let (places, leaves): (Vec<_>, Vec<_>) =
            trained.into_iter().map(|t| ((t.block, t.slot), t.leaf)).unzip();
        inputs.extend(leaves);
        let mut grads = vjp(output_nh, inputs, grad_nh)?.into_iter();
        let _guard = no_grad_guard();
        // The sum of the block above ran meanwhile; its buffers go before this block's come.
        self.finish_reductions()?;
        let below_nh = if passes_on { grads.next() } else { None };
        let reduce = self.settings.reduce.kind();
        for ((block, slot), grad) in places.into_iter().zip(grads) {
            self.blocks[block].add_gradient(slot, &grad, reduce);
        }
        Ok(below_nh)
    }

    fn embedding_gradient(&mut self, grad_nh: &Tensor, packed: &Packed) -> Result<()> {
        if !self.blocks[0].trainable {
            return Ok(());
        }
        let _guard = no_grad_guard();
        let reduce = self.settings.reduce.kind();
        self.blocks[0].add_embedding_gradient(0, &packed.input_ids, grad_nh, reduce);
        self.reduce(0)
    }
}

/// A layer's input in memory of its own. Among the activations of the layers it would keep theirs
/// from being given back.
fn apart(hidden_nh: Tensor) -> Tensor {
    let (elements, kind, device) = (hidden_nh.numel(), hidden_nh.kind(), hidden_nh.device());
    if device != tch::Device::Cpu {
        return hidden_nh;
    }
    let vector = plumb_torch::allocator::mapped_zeros(elements as i64, kind, device);
    let mut kept_nh = vector.view(hidden_nh.size().as_slice());
    kept_nh.copy_(&hidden_nh);
    kept_nh
}

/// Vector-Jacobian product by every input; the graph and the inputs are freed.
pub(crate) fn vjp(output: Tensor, inputs: Vec<Tensor>, grad: Tensor) -> Result<Vec<Tensor>> {
    let grads = plumb_torch::vjp(&[output], &inputs, &[grad], false)?;
    // An input that nothing depends on has gradient zero.
    let zero = |input: &Tensor| input.zeros_like();
    Ok(grads
        .into_iter()
        .zip(&inputs)
        .map(|(grad, input)| grad.unwrap_or_else(|| zero(input)))
        .collect())
}

/// Views of a gathered block as leaves of a new graph.
pub(crate) fn leaves(params: Vec<Tensor>) -> Vec<Tensor> {
    params.into_iter().map(|param| param.detach().set_requires_grad(true)).collect()
}
