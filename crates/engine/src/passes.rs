//! Forward and backward through embedding and layers, block by block.
//!
//! Forward: gather block i (block i+1 is on its way), run it, keep its input, free it.
//! Backward: gather again, run again under grad, multiply the incoming gradient by the block's
//! Jacobian, hand the parameter gradient to its owners, free. With `recompute = false` the graph
//! of each block is kept instead; blocks are detached from each other either way, so the peak is
//! one block's activations plus one input per block.

use plumb_model::{Layout, Packed};
use tch::{Tensor, no_grad_guard};

use crate::sharded_model::ShardedModel;
use crate::{EngineError, Result};

/// What a forward pass keeps for the backward pass. N tokens, H hidden.
#[derive(Debug)]
pub struct Trace {
    /// Output of the last layer, before the final norm, `[N, H]`.
    pub hidden_nh: Tensor,
    layers: Vec<KeptLayer>,
    layout: Layout,
}

/// What is kept of one layer.
#[derive(Debug)]
enum KeptLayer {
    /// Below the trained layers.
    Nothing,
    /// The layer is run again in the backward pass.
    Input(Tensor),
    /// The layer's graph.
    Graph { input_nh: Tensor, params: Vec<Tensor>, output_nh: Tensor },
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
        let mut kept = Vec::with_capacity(layers.len());
        for block in layers {
            // The block after the last layer is the head.
            let params = self.acquire(block, Some(block + 1))?;
            let trained = training && self.blocks[block].trainable;
            let (output_nh, layer) = if trained && !self.settings.recompute {
                self.layer_with_graph(block, params, hidden_nh, &layout)?
            } else {
                let output_nh = self.decoder.layer(block - 1, &params, &hidden_nh, &layout)?;
                let layer = if trained { KeptLayer::Input(hidden_nh) } else { KeptLayer::Nothing };
                (output_nh, layer)
            };
            self.release_after_forward(block, matches!(layer, KeptLayer::Graph { .. }))?;
            kept.push(layer);
            hidden_nh = output_nh;
        }
        Ok(Trace { hidden_nh, layers: kept, layout })
    }

    fn layer_with_graph(
        &self,
        block: usize,
        params: Vec<Tensor>,
        hidden_nh: Tensor,
        layout: &Layout,
    ) -> Result<(Tensor, KeptLayer)> {
        tch::with_grad(|| {
            let input_nh = hidden_nh.detach().set_requires_grad(true);
            let params: Vec<_> = leaves(params);
            let output_nh = self.decoder.layer(block - 1, &params, &input_nh, layout)?;
            let detached = output_nh.detach();
            Ok((detached, KeptLayer::Graph { input_nh, params, output_nh }))
        })
    }

    /// Collects the gradients of all trained layers and of the embedding, given ∂loss/∂hidden
    /// after the last layer, `[N, H]`. Sums over ranks are under way when this returns.
    ///
    /// # Errors
    /// A failed collective.
    pub fn backward(&mut self, trace: Trace, grad_nh: Tensor, packed: &Packed) -> Result<()> {
        let Trace { layers, layout, .. } = trace;
        let mut grad_nh = grad_nh;
        for (block, layer) in self.layer_indices().zip(layers).rev() {
            if matches!(layer, KeptLayer::Nothing) {
                return Ok(());
            }
            let below = block - 1;
            // The embedding's backward is a scatter; its matrix is not needed.
            let next = (below > 0 && self.blocks[below].trainable).then_some(below);
            let params = self.acquire(block, next)?;
            let (input_nh, params, output_nh) = match layer {
                KeptLayer::Graph { input_nh, params, output_nh } => (input_nh, params, output_nh),
                KeptLayer::Input(hidden_nh) => self.run_again(block, params, hidden_nh, &layout)?,
                KeptLayer::Nothing => return Ok(()),
            };
            grad_nh = self.layer_gradients(block, input_nh, params, output_nh, grad_nh)?;
            self.release(block)?;
            self.reduce(block)?;
        }
        self.embedding_gradient(&grad_nh, packed)
    }

    fn run_again(
        &self,
        block: usize,
        params: Vec<Tensor>,
        hidden_nh: Tensor,
        layout: &Layout,
    ) -> Result<(Tensor, Vec<Tensor>, Tensor)> {
        tch::with_grad(|| {
            let input_nh = hidden_nh.detach().set_requires_grad(true);
            let params = leaves(params);
            let output_nh = self.decoder.layer(block - 1, &params, &input_nh, layout)?;
            Ok((input_nh, params, output_nh))
        })
    }

    /// Adds one layer's parameter gradients and returns ∂loss/∂input `[N, H]`.
    fn layer_gradients(
        &mut self,
        block: usize,
        input_nh: Tensor,
        params: Vec<Tensor>,
        output_nh: Tensor,
        grad_nh: Tensor,
    ) -> Result<Tensor> {
        let mut inputs = vec![input_nh];
        inputs.extend(params);
        let mut grads = vjp(output_nh, inputs, grad_nh)?;
        let _guard = no_grad_guard();
        let reduce = self.settings.reduce.kind();
        for (slot, grad) in grads.drain(1..).enumerate() {
            self.blocks[block].add_gradient(slot, &grad, reduce);
        }
        grads.pop().ok_or_else(|| EngineError::Unsuited("a layer returned no gradient".to_owned()))
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
