//! The language-model head on top of the layers: token values, and training on them.

use plumb_model::Packed;
use tch::{Kind, Tensor, no_grad_guard};

use crate::head::{
    ChosenTokens, FusedHead, HeadGradients, SequenceLoss, TokenGradients, TokenLoss, TokenValues,
};
use crate::passes::{leaves, vjp};
use crate::sharded_model::ShardedModel;
use crate::{EngineError, Result};

/// Parameters of the head block, and the output matrix wherever it lives.
struct HeadParams {
    norm: Vec<Tensor>,
    weight_vh: Tensor,
}

/// How the loss meets the head: token by token as the logits come, or all tokens together, for
/// which the logits are computed twice.
enum HeadLoss<'a, 'b> {
    Tokens(&'a mut TokenLoss<'b>),
    Sequences(&'a mut SequenceLoss<'b>),
}

impl ShardedModel {
    /// log p and entropy of chosen tokens at softmax temperature `temperature`; no gradients.
    ///
    /// # Errors
    /// A score model, a failed collective, a refused batch.
    pub fn token_values(
        &mut self,
        packed: &Packed,
        chosen: &ChosenTokens,
        temperature: f64,
    ) -> Result<TokenValues> {
        let _guard = no_grad_guard();
        let hidden_nh = self.hidden(packed)?;
        let params = self.acquire_lm_head()?;
        let hidden_mh = hidden_nh.index_select(0, &chosen.rows_m);
        let normed_mh = self.decoder.final_norm(&params.norm, &hidden_mh)?;
        let head = FusedHead { weight_vh: &params.weight_vh, temperature };
        let values = head.values(&normed_mh, &chosen.targets_m)?;
        drop(params);
        self.release_lm_head()?;
        Ok(values)
    }

    /// Forward and backward of a loss over chosen tokens. Gradients are added to those of
    /// earlier calls; [`ShardedModel::optimizer_step_on`] uses and clears them.
    ///
    /// # Errors
    /// A model that cannot be trained this way, what `loss` returns, a failed collective.
    pub fn train_on_tokens(
        &mut self,
        packed: &Packed,
        chosen: &ChosenTokens,
        temperature: f64,
        loss: &mut TokenLoss<'_>,
    ) -> Result<()> {
        self.train_head(packed, chosen, temperature, HeadLoss::Tokens(loss))
    }

    /// [`ShardedModel::train_on_tokens`] for a loss whose gradient at one token hangs on the
    /// others of its sequence: `loss` gets the values of all chosen tokens, once. Costs one more
    /// product with the output matrix.
    ///
    /// # Errors
    /// As [`ShardedModel::train_on_tokens`].
    pub fn train_on_sequences(
        &mut self,
        packed: &Packed,
        chosen: &ChosenTokens,
        temperature: f64,
        loss: &mut SequenceLoss<'_>,
    ) -> Result<()> {
        self.train_head(packed, chosen, temperature, HeadLoss::Sequences(loss))
    }

    fn train_head(
        &mut self,
        packed: &Packed,
        chosen: &ChosenTokens,
        temperature: f64,
        loss: HeadLoss<'_, '_>,
    ) -> Result<()> {
        let trace = self.forward(packed)?;
        let params = self.acquire_lm_head()?;
        let hidden_mh = trace.hidden_nh.index_select(0, &chosen.rows_m);
        let grad_mh = self.lm_head_gradients(params, hidden_mh, chosen, temperature, loss)?;
        self.release_lm_head()?;
        self.reduce(self.head_index())?;
        let _guard = no_grad_guard();
        let grad_nh = trace.hidden_nh.zeros_like().index_add(0, &chosen.rows_m, &grad_mh);
        self.backward(trace, grad_nh, packed)
    }

    /// Adds the gradients of norm and output matrix; returns ∂loss/∂hidden `[M, H]`.
    fn lm_head_gradients(
        &mut self,
        params: HeadParams,
        hidden_mh: Tensor,
        chosen: &ChosenTokens,
        temperature: f64,
        loss: HeadLoss<'_, '_>,
    ) -> Result<Tensor> {
        if chosen.is_empty() {
            return Ok(hidden_mh);
        }
        let mut inputs = vec![hidden_mh.set_requires_grad(true)];
        inputs.extend(leaves(params.norm));
        let normed_mh = tch::with_grad(|| self.decoder.final_norm(&inputs[1..], &inputs[0]))?;
        let head = FusedHead { weight_vh: &params.weight_vh, temperature };
        let (block, slot) = self.output_matrix();
        let wanted = self.blocks[block].trained[slot];
        let HeadGradients { hidden_mh, weight_vh } =
            loss.backward(&head, &normed_mh.detach(), &chosen.targets_m, wanted)?;
        let _guard = no_grad_guard();
        let reduce = self.settings.reduce.kind();
        if let Some(weight_vh) = weight_vh {
            self.blocks[block].add_gradient(slot, &weight_vh, reduce);
        }
        let mut grads = vjp(normed_mh, inputs, hidden_mh)?;
        let head_index = self.head_index();
        for (slot, grad) in grads.drain(1..).enumerate() {
            self.blocks[head_index].add_gradient(slot, &grad, reduce);
        }
        grads.pop().ok_or_else(|| EngineError::Unsuited("the head returned no gradient".to_owned()))
    }

    /// Block and slot of the output matrix: block 0 lends it when embeddings are tied.
    fn output_matrix(&self) -> (usize, usize) {
        if self.head_is_tied() { (0, 0) } else { (self.head_index(), 1) }
    }

    fn acquire_lm_head(&mut self) -> Result<HeadParams> {
        if !matches!(self.head, plumb_model::HeadSpec::CausalLm) {
            return Err(EngineError::Unsuited(
                "log-probs were asked of a model with a score head".to_owned(),
            ));
        }
        let tied = self.head_is_tied();
        let mut norm = self.acquire(self.head_index(), tied.then_some(0))?;
        let lent = if tied { self.acquire(0, None)?.pop() } else { norm.pop() };
        match lent {
            Some(weight_vh) => Ok(HeadParams { norm, weight_vh }),
            None => Err(EngineError::Unsuited("the head has no output matrix".to_owned())),
        }
    }

    fn release_lm_head(&mut self) -> Result<()> {
        if self.head_is_tied() {
            self.release(0)?;
        }
        self.release(self.head_index())
    }
}

impl HeadLoss<'_, '_> {
    fn backward(
        self,
        head: &FusedHead<'_>,
        normed_mh: &Tensor,
        targets_m: &Tensor,
        weight_needs_gradient: bool,
    ) -> Result<HeadGradients> {
        match self {
            Self::Tokens(loss) => head.backward(normed_mh, targets_m, weight_needs_gradient, loss),
            Self::Sequences(loss) => {
                let all = loss(&head.values(normed_mh, targets_m)?)?;
                let mut part = |values: &TokenValues, first: i64| {
                    let count = values.logp_m.size()[0];
                    let of = |all: &Tensor| all.narrow(0, first, count);
                    let (logp_m, entropy_m) = (of(&all.logp_m), all.entropy_m.as_ref().map(of));
                    Ok(TokenGradients { logp_m, entropy_m })
                };
                head.backward(normed_mh, targets_m, weight_needs_gradient, &mut part)
            }
        }
    }
}

/// Values of tokens as plain numbers.
pub(crate) fn floats(values: &Tensor) -> Result<Vec<f32>> {
    Ok(Vec::<f32>::try_from(values.to_kind(Kind::Float).to_device(tch::Device::Cpu).contiguous())?)
}
