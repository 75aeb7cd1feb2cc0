//! Training a reward model on pairs of texts, and scoring texts with it.
//!
//! A text's score is the head's output at its last token, fp32. The loss is Bradley-Terry on
//! pairs ([`plumb_loss::preference::pairwise`]), normalised by the number of pairs of the whole
//! batch, so that it does not depend on the cut into micro-batches and ranks.

use plumb_loss::preference::{Pairwise, PairwiseTerms, pairwise};
use plumb_model::{HeadSpec, Packed, Tree};
use tch::{Tensor, no_grad_guard};

use crate::lm_head::floats;
use crate::micro_batch::Plan;
use crate::passes::leaves;
use crate::policy_update::Metrics;
use crate::response_batch::EMPTY_ROUND;
use crate::sharded_model::ShardedModel;
use crate::{EngineError, Result};

/// Two texts of which the first is better.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TextPair {
    /// Name of the pair, for messages and results.
    pub id: String,
    /// Token ids of the better text, at least one.
    pub better_ids: Vec<u32>,
    /// Token ids of the worse text, at least one.
    pub worse_ids: Vec<u32>,
}

impl TextPair {
    /// Tokens that both texts start with: the prompt, as a rule. It is computed once.
    fn shared_tokens(&self) -> usize {
        self.better_ids.iter().zip(&self.worse_ids).take_while(|(a, b)| a == b).count()
    }

    fn tokens(&self) -> usize {
        self.better_ids.len() + self.worse_ids.len() - self.shared_tokens()
    }

    fn validate(&self) -> Result<()> {
        if self.better_ids.is_empty() || self.worse_ids.is_empty() {
            let problem = "one of its texts has no token".to_owned();
            return Err(EngineError::Sample { id: self.id.clone(), problem });
        }
        Ok(())
    }
}

/// Scores of one pair.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct PairScores {
    /// Position in the pairs that were passed in.
    pub index: usize,
    /// Score of the better text.
    pub better: f64,
    /// Score of the worse text.
    pub worse: f64,
}

/// Some pairs laid end to end, each a tree of two branches.
struct PairBatch {
    packed: Packed,
    /// Last token of each text, `[2P]`: the better one of each pair, then the worse one.
    ends: Tensor,
    pairs: i64,
}

impl PairBatch {
    fn new(pairs: &[&TextPair], model: &ShardedModel) -> Result<Self> {
        let branches: Vec<[&[u32]; 2]> = pairs
            .iter()
            .map(|pair| {
                let shared = pair.shared_tokens();
                [&pair.better_ids[shared..], &pair.worse_ids[shared..]]
            })
            .collect();
        let mut trees = Vec::with_capacity(pairs.len());
        for (pair, branches) in pairs.iter().zip(&branches) {
            match &pair.better_ids[..pair.shared_tokens()] {
                [] => trees.extend(branches.map(|text| Tree { prompt: text, branches: &[] })),
                prompt => trees.push(Tree { prompt, branches }),
            }
        }
        if trees.is_empty() {
            trees.push(EMPTY_ROUND);
        }
        let packed = Packed::trees(&trees)?.to_device(model.settings().device);
        Ok(Self { ends: packed.last_indices(), packed, pairs: pairs.len() as i64 })
    }
}

impl ShardedModel {
    /// Scores `[B]` fp32 of last hidden states `[B, H]`. `params`: those of the head block.
    fn scores(&self, params: &[Tensor], hidden_bh: &Tensor) -> Result<Tensor> {
        let HeadSpec::Score(head) = &self.head else {
            return Err(no_score_head());
        };
        let normed_bh = self.decoder.final_norm(params, hidden_bh)?;
        Ok(self.decoder.score(head, params, &normed_bh)?)
    }
}

fn no_score_head() -> EngineError {
    let problem = "pairs need a model with a score head; this one is a language model";
    EngineError::Unsuited(problem.to_owned())
}

/// One optimiser step on a batch of pairs. Every rank passes the same pairs in the same order.
/// Returns `loss`, `accuracy` (share of pairs ranked right), `margin` (mean difference of
/// scores), `grad_norm`, `pairs`, the same on every rank.
///
/// # Errors
/// A model without score head or optimiser, texts that do not fit, a loss or gradient that is
/// not finite (the step is not applied), a failed collective.
pub fn train_pairs(
    model: &mut ShardedModel,
    pairs: &[TextPair],
    learning_rate: f64,
    regularization: f64,
) -> Result<Metrics> {
    let step = pairs_step(model, pairs, learning_rate, regularization);
    let step = step.inspect_err(|_| model.discard_gradients());
    let (figures, grad_norm) = step.map_err(|error| error.at_step(model.optimizer_step()))?;
    let [loss, correct, margin] = model.sum_over_ranks(figures)?;
    let count = pairs.len() as f64;
    let entries = [
        ("loss", loss),
        ("accuracy", correct / count),
        ("margin", margin / count),
        ("grad_norm", grad_norm),
        ("pairs", count),
        ("learning_rate", learning_rate),
    ];
    Ok(entries.into_iter().map(|(name, value)| (name.to_owned(), value)).collect())
}

fn pairs_step(
    model: &mut ShardedModel,
    pairs: &[TextPair],
    learning_rate: f64,
    regularization: f64,
) -> Result<([f64; 3], f64)> {
    if pairs.is_empty() {
        return Err(EngineError::Unsuited("a batch without pairs has no loss".to_owned()));
    }
    let spec = Pairwise { regularization };
    let plan = plan(model, pairs)?;
    let mut figures = [0.0; 3];
    for indices in plan.rank(model.rank()) {
        let members: Vec<_> = indices.iter().map(|&index| &pairs[index]).collect();
        let batch = PairBatch::new(&members, model)?;
        if let Some(terms) = train_on_pairs(model, &batch, &spec, pairs.len())? {
            figures[0] += terms.loss.double_value(&[]);
            figures[1] += terms.correct_pairs as f64;
            figures[2] += terms.margin_sum;
        }
    }
    Ok((figures, model.optimizer_step_on(learning_rate)?))
}

fn plan(model: &ShardedModel, pairs: &[TextPair]) -> Result<Plan> {
    if !matches!(model.head, HeadSpec::Score(_)) {
        return Err(no_score_head());
    }
    pairs.iter().try_for_each(TextPair::validate)?;
    let lengths: Vec<_> = pairs.iter().map(TextPair::tokens).collect();
    Plan::new(&lengths, model.world_size(), model.settings().micro_batch_tokens)
}

/// Forward and backward of one micro-batch; `None` when it holds no pair.
fn train_on_pairs(
    model: &mut ShardedModel,
    batch: &PairBatch,
    spec: &Pairwise,
    all_pairs: usize,
) -> Result<Option<PairwiseTerms>> {
    let trace = model.forward(&batch.packed)?;
    let head = model.head_index();
    let params = model.acquire(head, None)?;
    let (mut grad_nh, mut terms) = (trace.hidden_nh.zeros_like(), None);
    if batch.pairs > 0 {
        let hidden_bh = trace.hidden_nh.index_select(0, &batch.ends).set_requires_grad(true);
        let mut inputs = vec![hidden_bh];
        inputs.extend(leaves(params));
        let computed = tch::with_grad(|| {
            let scores_b = model.scores(&inputs[1..], &inputs[0])?;
            let scores_p2 = scores_b.view([batch.pairs, 2]);
            let (better_p, worse_p) = (scores_p2.select(1, 0), scores_p2.select(1, 1));
            Ok::<_, EngineError>(pairwise(spec, &better_p, &worse_p, all_pairs)?)
        })?;
        let mut grads = Tensor::run_backward(&[&computed.loss], &inputs, false, false);
        let _guard = no_grad_guard();
        let reduce = model.settings.reduce.kind();
        for (slot, grad) in grads.drain(1..).enumerate() {
            model.blocks[head].add_gradient(slot, &grad, reduce);
        }
        if let Some(grad_bh) = grads.pop() {
            grad_nh = grad_nh.index_add(0, &batch.ends, &grad_bh);
        }
        terms = Some(computed);
    }
    model.release(head)?;
    model.reduce(head)?;
    model.backward(trace, grad_nh, &batch.packed)?;
    Ok(terms)
}

/// Scores this rank's share of the pairs, without gradients; the shares of all ranks cover every
/// pair once.
///
/// # Errors
/// A model without score head, texts that do not fit, a failed collective.
pub fn score_pairs(model: &mut ShardedModel, pairs: &[TextPair]) -> Result<Vec<PairScores>> {
    let plan = plan(model, pairs)?;
    let _guard = no_grad_guard();
    let mut rows = Vec::new();
    for indices in plan.rank(model.rank()) {
        let members: Vec<_> = indices.iter().map(|&index| &pairs[index]).collect();
        let batch = PairBatch::new(&members, model)?;
        let hidden_nh = model.hidden(&batch.packed)?;
        let head = model.head_index();
        let params = model.acquire(head, None)?;
        let hidden_bh = hidden_nh.index_select(0, &batch.ends);
        let scores = match batch.pairs {
            0 => Vec::new(),
            _ => floats(&model.scores(&params, &hidden_bh)?)?,
        };
        drop(params);
        model.release(head)?;
        for (position, &index) in indices.iter().enumerate() {
            let better = f64::from(scores[2 * position]);
            let worse = f64::from(scores[2 * position + 1]);
            rows.push(PairScores { index, better, worse });
        }
    }
    rows.sort_by_key(|row| row.index);
    Ok(rows)
}
