//! Direct preference optimisation on pairs of answers: DPO, IPO, SimPO, with margins, and
//! preferences over preferences.
//!
//! What an answer is worth is made of the log-prob of all of its tokens: its log-ratio to the
//! reference (DPO, IPO) or its mean log-prob (SimPO). The reference's log-probs come with the
//! pairs: [`answer_log_probs`] under the model before it was trained gives them, so no second
//! model is held. A pair is one tree, whose prompt is computed once, and never cut over
//! micro-batches. The loss is normalised by the pairs of the whole batch, so that it does not
//! depend on the cut into micro-batches and ranks.

use tch::{Kind, Tensor};

use crate::head::{TokenGradients, TokenValues};
use crate::lm_head::floats;
use crate::micro_batch::Plan;
use crate::optimizer::OptimizerStep;
use crate::policy_update::Metrics;
use crate::preference_batch::{AnswerLogProbs, AnswerPair, BatchTerms, PairBatch};
use crate::preference_objective::PreferenceObjective;
use crate::sharded_model::ShardedModel;
use crate::{EngineError, Result};

/// Sums over pairs, of this rank until they are reduced.
#[derive(Debug, Clone, Copy, Default)]
struct Figures {
    loss: f64,
    correct: f64,
    better_reward: f64,
    worse_reward: f64,
    /// Of pairs that are compared with unpreferred ones.
    unpreferred_correct: f64,
    unpreferred_margin: f64,
    wider: f64,
    constraint: f64,
}

fn sum(values_p: &Tensor) -> f64 {
    values_p.sum(Kind::Double).double_value(&[])
}

impl Figures {
    /// Adds a micro-batch; returns its loss.
    fn add(&mut self, terms: BatchTerms) -> Tensor {
        let (loss, correct, rewards) = match terms {
            BatchTerms::Pairs(terms) => (terms.loss, terms.correct_pairs, terms.rewards),
            BatchTerms::PairsOfPairs(terms) => {
                self.unpreferred_correct += terms.correct_unpreferred as f64;
                self.unpreferred_margin += sum(&terms.unpreferred.margin());
                self.wider += terms.correct_pop as f64;
                self.constraint += sum(&terms.constraint);
                (terms.loss, terms.correct_preferred, terms.preferred)
            }
        };
        self.loss += loss.double_value(&[]);
        self.correct += correct as f64;
        self.better_reward += sum(&rewards.better);
        self.worse_reward += sum(&rewards.worse);
        loss
    }

    fn metrics(
        self,
        model: &ShardedModel,
        objective: &PreferenceObjective,
        pairs: usize,
    ) -> Result<Metrics> {
        let sums = [self.loss, self.correct, self.better_reward, self.worse_reward];
        let [loss, correct, better, worse] = model.sum_over_ranks(sums)?;
        let count = pairs as f64;
        let mut entries = vec![
            ("loss", loss),
            ("accuracy", correct / count),
            ("margin", (better - worse) / count),
            ("better_reward", better / count),
            ("worse_reward", worse / count),
            ("pairs", count),
        ];
        if objective.compares_pairs() {
            let more =
                [self.unpreferred_correct, self.unpreferred_margin, self.wider, self.constraint];
            let [correct, margin, wider, constraint] = model.sum_over_ranks(more)?;
            entries.extend([
                ("unpreferred_accuracy", correct / count),
                ("unpreferred_margin", margin / count),
                ("wider_accuracy", wider / count),
                ("constraint", constraint / count),
            ]);
        }
        Ok(entries.into_iter().map(|(name, value)| (name.to_owned(), value)).collect())
    }
}

/// One optimiser step on a batch of pairs. Every rank passes the same pairs in the same order.
/// Returns `loss`, `accuracy` (share of pairs whose better answer has the higher implicit
/// reward), `margin` (mean difference of implicit rewards), `better_reward`, `worse_reward`,
/// `pairs`, `grad_norm` and `skipped_steps` ([`OptimizerStep::report`]), `learning_rate`, with
/// adapters `adapter_delta_norm`; where pairs are compared with unpreferred ones these figures are
/// the preferred pairs', and there are `unpreferred_accuracy`, `unpreferred_margin`,
/// `wider_accuracy` (share of pairs whose preferred gap is the wider) and `constraint` (mean of
/// [`plumb_loss::preference::PopTerms::constraint`]). The same on every rank.
///
/// # Errors
/// A model with a score head or without optimiser, pairs that do not fit or lack what the loss
/// needs, a loss or gradient that is not finite (the step is not applied), a failed
/// collective.
pub fn train_preferences(
    model: &mut ShardedModel,
    pairs: &[AnswerPair],
    objective: &PreferenceObjective,
    learning_rate: f64,
) -> Result<Metrics> {
    let step = preference_step(model, pairs, objective, learning_rate);
    let step = step.inspect_err(|_| model.discard_gradients());
    let (figures, step) = step.map_err(|error| error.at_step(model.optimizer_step()))?;
    let mut metrics = figures.metrics(model, objective, pairs.len())?;
    step.report(&mut metrics);
    metrics.insert("learning_rate".to_owned(), learning_rate);
    let norm = model.adapter_delta_norm()?;
    metrics.extend(norm.map(|norm| ("adapter_delta_norm".to_owned(), norm)));
    Ok(metrics)
}

fn preference_step(
    model: &mut ShardedModel,
    pairs: &[AnswerPair],
    objective: &PreferenceObjective,
    learning_rate: f64,
) -> Result<(Figures, OptimizerStep)> {
    let mut figures = Figures::default();
    objective.check(pairs)?;
    for (_, members) in micro_batches(model, pairs, objective.compares_pairs())? {
        let batch = PairBatch::new(members, model)?;
        let mut loss = |values: &TokenValues| {
            let logp_m = values.logp_m.detach().set_requires_grad(true);
            let terms = tch::with_grad(|| batch.terms(objective, &logp_m, pairs.len()))?;
            let loss = figures.add(terms);
            let mut grads = Tensor::run_backward(&[&loss], &[&logp_m], false, false);
            match grads.pop() {
                Some(logp_m) => Ok(TokenGradients { logp_m, entropy_m: None }),
                None => Err(EngineError::Unsuited("the loss returned no gradient".to_owned())),
            }
        };
        model.train_on_sequences(&batch.batch.packed, &batch.batch.chosen, 1.0, &mut loss)?;
    }
    Ok((figures, model.optimizer_step_on(learning_rate)?))
}

/// The loss of pairs without training on them: what [`train_preferences`] returns, less
/// `grad_norm` and `learning_rate`.
///
/// # Errors
/// As [`train_preferences`].
pub fn measure_preferences(
    model: &mut ShardedModel,
    pairs: &[AnswerPair],
    objective: &PreferenceObjective,
) -> Result<Metrics> {
    let mut figures = Figures::default();
    objective.check(pairs)?;
    for (_, members) in micro_batches(model, pairs, objective.compares_pairs())? {
        let batch = PairBatch::new(members, model)?;
        let values = model.token_values(&batch.batch.packed, &batch.batch.chosen, 1.0)?;
        if !batch.pairs.is_empty() {
            let _ = figures.add(batch.terms(objective, &values.logp_m, pairs.len())?);
        }
    }
    figures.metrics(model, objective, pairs.len())
}

/// Log-probs of this rank's share of the answers, each with its pair's position; the shares of
/// all ranks cover every pair once. Every rank passes the same pairs in the same order.
///
/// # Errors
/// Pairs that do not fit, a log-prob that is not a number, a failed collective.
pub fn answer_log_probs(
    model: &mut ShardedModel,
    pairs: &[AnswerPair],
) -> Result<Vec<(usize, AnswerLogProbs)>> {
    let mut rows = Vec::new();
    for (indices, members) in micro_batches(model, pairs, false)? {
        let batch = PairBatch::new(members, model)?;
        let values = model.token_values(&batch.batch.packed, &batch.batch.chosen, 1.0)?;
        let logps = floats(&batch.answer_logps(&values.logp_m).view([-1]))?;
        for (&index, logps) in indices.iter().zip(logps.chunks_exact(2)) {
            let logps = AnswerLogProbs { better: f64::from(logps[0]), worse: f64::from(logps[1]) };
            if !(logps.better.is_finite() && logps.worse.is_finite()) {
                let problem = format!("its answers' log-probs are {logps:?}");
                return Err(EngineError::Sample { id: pairs[index].id.clone(), problem });
            }
            rows.push((index, logps));
        }
    }
    rows.sort_by_key(|(index, _)| *index);
    Ok(rows)
}

type Members<'a> = (Vec<usize>, Vec<&'a AnswerPair>);

/// The pairs of each of this rank's micro-batches, with their positions. Where pairs are compared,
/// each is followed by its unpreferred one.
fn micro_batches<'a>(
    model: &ShardedModel,
    pairs: &'a [AnswerPair],
    compared: bool,
) -> Result<Vec<Members<'a>>> {
    if pairs.is_empty() {
        return Err(EngineError::Unsuited("a batch without pairs has no loss".to_owned()));
    }
    let other = |pair: &'a AnswerPair| pair.unpreferred.as_deref().filter(|_| compared);
    let both = |pair: &'a AnswerPair| std::iter::once(pair).chain(other(pair));
    pairs.iter().flat_map(both).try_for_each(AnswerPair::validate)?;
    let tokens = |pair: &'a AnswerPair| both(pair).map(AnswerPair::tokens).sum();
    let lengths: Vec<usize> = pairs.iter().map(tokens).collect();
    let plan = Plan::new(&lengths, model.world_size(), model.settings().micro_batch_tokens)?;
    let members = |round: &Vec<usize>| {
        (round.clone(), round.iter().flat_map(|&index| both(&pairs[index])).collect())
    };
    Ok(plan.rank(model.rank()).iter().map(members).collect())
}
