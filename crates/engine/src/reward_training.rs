//! Training a reward or cost model on pairs of texts, and scoring texts with it.
//!
//! A text's score is the head's output at its last token, fp32. The loss of a reward model is
//! Bradley-Terry on pairs ([`plumb_loss::preference::pairwise`]); that of a cost model ranks the
//! other way round (the worse text costs more) and asks for each cost's sign besides
//! ([`plumb_loss::preference::cost`]). Token-wise losses take the scores of all tokens in which
//! the texts of a pair differ ([`plumb_loss::preference::pairwise_tokens`]). All are normalised by the number of pairs of the whole
//! batch, so that they do not depend on the cut into micro-batches and ranks.

use plumb_loss::preference::{
    Cost, CostTerms, Pairwise, PairwiseTerms, SafetyLabels, cost, cost_tokens, pairwise,
    pairwise_tokens,
};
use plumb_model::{HeadSpec, Packed, Tree};
use tch::{Tensor, no_grad_guard};

use crate::lm_head::floats;
use crate::micro_batch::Plan;
use crate::optimizer::OptimizerStep;
use crate::passes::leaves;
use crate::policy_update::Metrics;
use crate::response_batch::EMPTY_ROUND;
use crate::sharded_model::ShardedModel;
use crate::token_scores::{PairLengths, TokenGrid};
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
    /// Whether the better and the worse text are safe, for a cost model's sign terms.
    pub safe: Option<[bool; 2]>,
}

/// What a score head learns of pairs.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum ScoreLoss {
    /// A reward: the better text scores higher.
    Reward(Pairwise),
    /// A reward at every token in which the texts differ (safe-rlhf's token-wise loss).
    RewardTokens(Pairwise),
    /// A cost: the worse text scores higher, and safe texts score below 0, unsafe ones above.
    Cost(Cost),
    /// A cost at every token in which the texts differ.
    CostTokens(Cost),
}

impl ScoreLoss {
    fn needs_safety(&self) -> bool {
        matches!(self, Self::Cost(cost) | Self::CostTokens(cost) if cost.sign_terms)
    }

    fn is_token_wise(&self) -> bool {
        matches!(self, Self::RewardTokens(_) | Self::CostTokens(_))
    }
}

impl TextPair {
    /// Tokens that both texts start with: the prompt, as a rule. It is computed once.
    fn shared_tokens(&self) -> usize {
        self.better_ids.iter().zip(&self.worse_ids).take_while(|(a, b)| a == b).count()
    }

    fn tokens(&self) -> usize {
        self.better_ids.len() + self.worse_ids.len() - self.shared_tokens()
    }

    fn lengths(&self) -> PairLengths {
        let shared = self.shared_tokens();
        let (better, worse) = (self.better_ids.len() - shared, self.worse_ids.len() - shared);
        PairLengths { shared, better, worse }
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
    /// For a token-wise loss.
    grid: Option<TokenGrid>,
    pairs: i64,
    /// Of the better and of the worse texts.
    safe: [Vec<bool>; 2],
}

/// What one micro-batch adds to the figures.
struct ScoreTerms {
    loss: Tensor,
    correct_pairs: f64,
    correct_signs: f64,
    margin_sum: f64,
}

impl ScoreTerms {
    fn of_reward(terms: PairwiseTerms) -> Self {
        Self {
            loss: terms.loss,
            correct_pairs: terms.correct_pairs as f64,
            correct_signs: 0.0,
            margin_sum: terms.margin_sum,
        }
    }

    fn of_cost(terms: CostTerms, better_p: &Tensor, worse_p: &Tensor) -> Self {
        let margin = (worse_p - better_p).detach().sum(tch::Kind::Double);
        Self {
            loss: terms.loss,
            correct_pairs: terms.correct_pairs as f64,
            correct_signs: terms.correct_signs as f64,
            margin_sum: margin.double_value(&[]),
        }
    }
}

impl PairBatch {
    /// Packed tokens that meet the head, `[K]`.
    fn rows(&self) -> &Tensor {
        self.grid.as_ref().map_or(&self.ends, |grid| &grid.rows_k)
    }

    /// The loss of the scores `[K]` of [`PairBatch::rows`].
    fn terms(&self, loss: &ScoreLoss, scores_k: &Tensor, all_pairs: usize) -> Result<ScoreTerms> {
        let labels = SafetyLabels { safer: &self.safe[0], unsafer: &self.safe[1] };
        if let Some(grid) = &self.grid {
            let scores = grid.scores(scores_k);
            let tokens = grid.pairs(&scores);
            return Ok(match loss {
                ScoreLoss::Reward(spec) | ScoreLoss::RewardTokens(spec) => {
                    ScoreTerms::of_reward(pairwise_tokens(spec, tokens, all_pairs)?)
                }
                ScoreLoss::Cost(spec) | ScoreLoss::CostTokens(spec) => {
                    let [better_p, worse_p] = grid.ends(&scores);
                    let terms = cost_tokens(spec, tokens, labels, all_pairs)?;
                    ScoreTerms::of_cost(terms, &better_p, &worse_p)
                }
            });
        }
        let scores_p2 = scores_k.view([self.pairs, 2]);
        let (better_p, worse_p) = (scores_p2.select(1, 0), scores_p2.select(1, 1));
        Ok(match loss {
            ScoreLoss::Reward(spec) | ScoreLoss::RewardTokens(spec) => {
                ScoreTerms::of_reward(pairwise(spec, &better_p, &worse_p, all_pairs)?)
            }
            ScoreLoss::Cost(spec) | ScoreLoss::CostTokens(spec) => {
                let terms = cost(spec, &better_p, &worse_p, labels, all_pairs)?;
                ScoreTerms::of_cost(terms, &better_p, &worse_p)
            }
        })
    }

    fn new(pairs: &[&TextPair], token_wise: bool, model: &ShardedModel) -> Result<Self> {
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
        let device = model.settings().device;
        let packed = Packed::trees(&trees)?.to_device(device);
        let lengths = || pairs.iter().map(|pair| pair.lengths()).collect::<Vec<_>>();
        let grid = token_wise.then(|| TokenGrid::new(&lengths(), device));
        let safe = [0, 1].map(|text| {
            // Without sign terms the labels only fill a count that is not reported.
            pairs.iter().map(|pair| pair.safe.is_some_and(|safe| safe[text])).collect()
        });
        Ok(Self { ends: packed.last_indices(), packed, grid, pairs: pairs.len() as i64, safe })
    }
}

impl ShardedModel {
    /// Scores `[B]` fp32 of last hidden states `[B, H]`. `params`: those of the head block.
    pub(crate) fn scores(&self, params: &[Tensor], hidden_bh: &Tensor) -> Result<Tensor> {
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
/// scores, positive where they are ranked right), `grad_norm` and `skipped_steps`
/// ([`OptimizerStep::report`]), `pairs`, `learning_rate`, with sign terms `sign_accuracy` (share of
/// texts whose cost has the right sign), with adapters `adapter_delta_norm`; the same on every
/// rank. Accuracies and margin are those of the scores at the texts' ends, also of a token-wise
/// loss.
///
/// # Errors
/// A model without score head or optimiser, texts that do not fit or lack their safety labels, a
/// loss or gradient that is not finite (the step is not applied), a failed collective.
pub fn train_pairs(
    model: &mut ShardedModel,
    pairs: &[TextPair],
    loss: &ScoreLoss,
    learning_rate: f64,
) -> Result<Metrics> {
    let step = pairs_step(model, pairs, loss, learning_rate);
    let step = step.inspect_err(|_| model.discard_gradients());
    let (figures, step) = step.map_err(|error| error.at_step(model.optimizer_step()))?;
    let [loss_sum, correct, margin, signs] = model.sum_over_ranks(figures)?;
    let count = pairs.len() as f64;
    let mut entries = vec![
        ("loss", loss_sum),
        ("accuracy", correct / count),
        ("margin", margin / count),
        ("pairs", count),
        ("learning_rate", learning_rate),
    ];
    if loss.needs_safety() {
        entries.push(("sign_accuracy", signs / (2.0 * count)));
    }
    entries.extend(model.adapter_delta_norm()?.map(|norm| ("adapter_delta_norm", norm)));
    let named = |(name, value): (&str, f64)| (name.to_owned(), value);
    let mut metrics: Metrics = entries.into_iter().map(named).collect();
    step.report(&mut metrics);
    Ok(metrics)
}

fn pairs_step(
    model: &mut ShardedModel,
    pairs: &[TextPair],
    loss: &ScoreLoss,
    learning_rate: f64,
) -> Result<([f64; 4], OptimizerStep)> {
    if pairs.is_empty() {
        return Err(EngineError::Unsuited("a batch without pairs has no loss".to_owned()));
    }
    if let Some(pair) = pairs.iter().find(|pair| loss.needs_safety() && pair.safe.is_none()) {
        let problem = "it is not said which of its texts are safe".to_owned();
        return Err(EngineError::Sample { id: pair.id.clone(), problem });
    }
    let same = |pair: &&TextPair| loss.is_token_wise() && pair.better_ids == pair.worse_ids;
    if let Some(pair) = pairs.iter().find(same) {
        let problem = "its texts are the same, so that no token tells them apart".to_owned();
        return Err(EngineError::Sample { id: pair.id.clone(), problem });
    }
    let plan = plan(model, pairs)?;
    let mut figures = [0.0; 4];
    for indices in plan.rank(model.rank()) {
        let members: Vec<_> = indices.iter().map(|&index| &pairs[index]).collect();
        let batch = PairBatch::new(&members, loss.is_token_wise(), model)?;
        if let Some(terms) = train_on_pairs(model, &batch, loss, pairs.len())? {
            figures[0] += terms.loss.double_value(&[]);
            figures[1] += terms.correct_pairs;
            figures[2] += terms.margin_sum;
            figures[3] += terms.correct_signs;
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
    loss: &ScoreLoss,
    all_pairs: usize,
) -> Result<Option<ScoreTerms>> {
    let trace = model.forward(&batch.packed)?;
    let head = model.head_index();
    let params = model.acquire(head, None)?;
    let (mut grad_nh, mut terms) = (trace.hidden_nh.zeros_like(), None);
    if batch.pairs > 0 {
        let hidden_kh = trace.hidden_nh.index_select(0, batch.rows()).set_requires_grad(true);
        let mut inputs = vec![hidden_kh];
        inputs.extend(leaves(params));
        let computed = tch::with_grad(|| {
            let scores_k = model.scores(&inputs[1..], &inputs[0])?;
            batch.terms(loss, &scores_k, all_pairs)
        })?;
        let mut grads = Tensor::run_backward(&[&computed.loss], &inputs, false, false);
        let _guard = no_grad_guard();
        let reduce = model.settings.reduce.kind();
        for (slot, grad) in grads.drain(1..).enumerate() {
            model.blocks[head].add_gradient(slot, &grad, reduce);
        }
        if let Some(grad_kh) = grads.pop() {
            grad_nh = grad_nh.index_add(0, batch.rows(), &grad_kh);
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
        let batch = PairBatch::new(&members, false, model)?;
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
