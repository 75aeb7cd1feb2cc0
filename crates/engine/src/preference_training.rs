//! Direct preference optimisation on pairs of answers: DPO, IPO, SimPO, with margins.
//!
//! What an answer is worth is made of the log-prob of all of its tokens: its log-ratio to the
//! reference (DPO, IPO) or its mean log-prob (SimPO). The reference's log-probs come with the
//! pairs: [`answer_log_probs`] under the model before it was trained gives them, so no second
//! model is held. A pair is one tree, whose prompt is computed once, and never cut over
//! micro-batches. The loss is normalised by the pairs of the whole batch, so that it does not
//! depend on the cut into micro-batches and ranks.

use plumb_loss::preference::{
    Margin, Objective, PairValues, Preference, PreferenceTerms, preference,
};
use tch::{Kind, Tensor};

use crate::head::{TokenGradients, TokenValues};
use crate::lm_head::floats;
use crate::micro_batch::Plan;
use crate::optimizer::OptimizerStep;
use crate::policy_update::Metrics;
use crate::response_batch::{ResponseBatch, ResponseSample};
use crate::sharded_model::ShardedModel;
use crate::{EngineError, Result};

/// A prompt and two answers to it of which the first is better.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct AnswerPair {
    /// Name of the pair, for messages and results.
    pub id: String,
    /// Token ids of the prompt, at least one.
    pub prompt_ids: Vec<u32>,
    /// Token ids of the better answer with what ends it, at least one.
    pub better_ids: Vec<u32>,
    /// Token ids of the worse answer, at least one.
    pub worse_ids: Vec<u32>,
    /// The reference's log-probs of the answers.
    pub reference: Option<AnswerLogProbs>,
}

/// log p of two answers given their prompt: sums over their tokens, in nats.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct AnswerLogProbs {
    /// Of the better answer.
    pub better: f64,
    /// Of the worse answer.
    pub worse: f64,
}

/// A preference loss on answers.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum PreferenceObjective {
    /// Log-ratios to the reference, logistic loss (Rafailov et al. 2023).
    Dpo {
        /// Scale of the implicit reward.
        beta: f64,
        /// Assumed share of pairs that are labelled the wrong way round, in `[0, 1]`.
        label_smoothing: f64,
        /// By how much the rewards are to differ.
        margin: f64,
    },
    /// Log-ratios to the reference, squared distance to `1 / (2 beta)` (Azar et al. 2023).
    Ipo {
        /// Strength of the pull towards the reference, above 0.
        beta: f64,
    },
    /// Mean log-probs, without a reference, logistic loss (Meng et al. 2024).
    SimPo {
        /// Scale of the implicit reward.
        beta: f64,
        /// By how much the rewards are to differ.
        margin: f64,
    },
}

impl PreferenceObjective {
    /// Whether pairs need the reference's log-probs.
    #[must_use]
    pub fn needs_reference(&self) -> bool {
        !matches!(self, Self::SimPo { .. })
    }

    fn loss(&self) -> Preference<'static> {
        let logistic = |label_smoothing, margin| Objective::Logistic {
            label_smoothing,
            margin: Margin::Scalar(margin),
        };
        match *self {
            Self::Dpo { beta, label_smoothing, margin } => {
                Preference { beta, objective: logistic(label_smoothing, margin) }
            }
            Self::Ipo { beta } => Preference { beta, objective: Objective::Ipo },
            Self::SimPo { beta, margin } => Preference { beta, objective: logistic(0.0, margin) },
        }
    }
}

impl AnswerPair {
    /// Tokens that go through the layers; an answer's last one predicts nothing.
    fn tokens(&self) -> usize {
        self.prompt_ids.len() + self.better_ids.len() + self.worse_ids.len() - 2
    }

    fn samples(&self) -> [ResponseSample; 2] {
        [&self.better_ids, &self.worse_ids].map(|answer| ResponseSample {
            id: self.id.clone(),
            prompt_ids: self.prompt_ids.clone(),
            response_ids: answer.clone(),
            rollout_logps: Vec::new(),
        })
    }

    fn validate(&self) -> Result<()> {
        let refuse = |problem: &str| {
            Err(EngineError::Sample { id: self.id.clone(), problem: problem.to_owned() })
        };
        if self.prompt_ids.is_empty() {
            return refuse("has no prompt token, so nothing predicts its first token");
        }
        if self.better_ids.is_empty() || self.worse_ids.is_empty() {
            return refuse("one of its answers has no token");
        }
        match self.reference {
            Some(AnswerLogProbs { better, worse })
                if !(better.is_finite() && worse.is_finite()) =>
            {
                refuse("a log-prob of the reference is not finite")
            }
            _ => Ok(()),
        }
    }
}

/// Some pairs laid end to end. P pairs, M answer tokens.
struct PairBatch<'a> {
    pairs: Vec<&'a AnswerPair>,
    batch: ResponseBatch,
    /// Which answer each token is of: 2p for the better one of pair p, 2p + 1 for the worse. `[M]`
    answer_m: Tensor,
}

impl<'a> PairBatch<'a> {
    fn new(pairs: Vec<&'a AnswerPair>, model: &ShardedModel) -> Result<Self> {
        let device = model.settings().device;
        let samples: Vec<_> = pairs.iter().flat_map(|pair| pair.samples()).collect();
        let samples: Vec<_> = samples.iter().collect();
        // One tree a pair, also where neighbours have the same prompt: attention costs the square
        // of a tree's tokens.
        let batch = ResponseBatch::of_groups(samples.chunks(2), device)?;
        let answers = batch.cu_responses.windows(2).enumerate();
        let answers = answers.flat_map(|(answer, bounds)| {
            std::iter::repeat_n(answer as i64, (bounds[1] - bounds[0]) as usize)
        });
        let answer_m = Tensor::from_slice(&answers.collect::<Vec<_>>()).to_device(device);
        Ok(Self { pairs, batch, answer_m })
    }

    /// log p of each answer, `[P, 2]` float: the sums over its tokens.
    fn answer_logps(&self, logp_m: &Tensor) -> Tensor {
        let pairs = self.pairs.len() as i64;
        let zeros = Tensor::zeros([2 * pairs], (Kind::Float, logp_m.device()));
        zeros.index_add(0, &self.answer_m, logp_m).view([pairs, 2])
    }

    fn terms(
        &self,
        objective: &PreferenceObjective,
        logp_m: &Tensor,
        all_pairs: usize,
    ) -> Result<PreferenceTerms> {
        let logp_p2 = self.answer_logps(logp_m);
        let (better_p, worse_p) = (logp_p2.select(1, 0), logp_p2.select(1, 1));
        let values = match objective.needs_reference() {
            true => self.log_ratios(&better_p, &worse_p)?,
            false => self.mean_log_probs(&better_p, &worse_p)?,
        };
        Ok(preference(&objective.loss(), &values, all_pairs)?)
    }
}

impl PairBatch<'_> {
    fn log_ratios(&self, better_p: &Tensor, worse_p: &Tensor) -> Result<PairValues> {
        let reference = |pick: fn(&AnswerLogProbs) -> f64| {
            let logps = self.pairs.iter().map(|pair| pair.reference.as_ref().map(pick));
            let logps: Vec<f64> = logps.collect::<Option<_>>().ok_or_else(no_reference)?;
            Ok::<_, EngineError>(Tensor::from_slice(&logps).to_kind(Kind::Float))
        };
        let (better_ref_p, worse_ref_p) = (reference(|r| r.better)?, reference(|r| r.worse)?);
        let device = better_p.device();
        let (better_ref_p, worse_ref_p) =
            (better_ref_p.to_device(device), worse_ref_p.to_device(device));
        Ok(PairValues::log_ratios(better_p, worse_p, &better_ref_p, &worse_ref_p)?)
    }

    fn mean_log_probs(&self, better_p: &Tensor, worse_p: &Tensor) -> Result<PairValues> {
        let tokens = |answer: fn(&AnswerPair) -> &Vec<u32>| -> Vec<i64> {
            self.pairs.iter().map(|pair| answer(pair).len() as i64).collect()
        };
        let (better, worse) = (tokens(|pair| &pair.better_ids), tokens(|pair| &pair.worse_ids));
        Ok(PairValues::mean_log_probs(better_p, worse_p, &better, &worse)?)
    }
}

fn no_reference() -> EngineError {
    let problem = "log-ratios need the reference's log-probs, but a pair has none";
    EngineError::Unsuited(problem.to_owned())
}

/// Sums over pairs, of this rank until they are reduced.
#[derive(Debug, Clone, Copy, Default)]
struct Figures {
    loss: f64,
    correct: f64,
    better_reward: f64,
    worse_reward: f64,
}

impl Figures {
    fn add(&mut self, terms: &PreferenceTerms) {
        let sum = |rewards_p: &Tensor| rewards_p.sum(Kind::Double).double_value(&[]);
        self.loss += terms.loss.double_value(&[]);
        self.correct += terms.correct_pairs as f64;
        self.better_reward += sum(&terms.rewards.better);
        self.worse_reward += sum(&terms.rewards.worse);
    }

    fn metrics(self, model: &ShardedModel, pairs: usize) -> Result<Metrics> {
        let sums = [self.loss, self.correct, self.better_reward, self.worse_reward];
        let [loss, correct, better, worse] = model.sum_over_ranks(sums)?;
        let count = pairs as f64;
        let entries = [
            ("loss", loss),
            ("accuracy", correct / count),
            ("margin", (better - worse) / count),
            ("better_reward", better / count),
            ("worse_reward", worse / count),
            ("pairs", count),
        ];
        Ok(entries.into_iter().map(|(name, value)| (name.to_owned(), value)).collect())
    }
}

/// One optimiser step on a batch of pairs. Every rank passes the same pairs in the same order.
/// Returns `loss`, `accuracy` (share of pairs whose better answer has the higher implicit
/// reward), `margin` (mean difference of implicit rewards), `better_reward`, `worse_reward`,
/// `pairs`, `grad_norm` and `skipped_steps` ([`OptimizerStep::report`]), `learning_rate`, the same on every rank.
///
/// # Errors
/// A model with a score head or without optimiser, pairs that do not fit or lack the reference's
/// log-probs, a loss or gradient that is not finite (the step is not applied), a failed
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
    let mut metrics = figures.metrics(model, pairs.len())?;
    step.report(&mut metrics);
    metrics.insert("learning_rate".to_owned(), learning_rate);
    Ok(metrics)
}

fn preference_step(
    model: &mut ShardedModel,
    pairs: &[AnswerPair],
    objective: &PreferenceObjective,
    learning_rate: f64,
) -> Result<(Figures, OptimizerStep)> {
    let mut figures = Figures::default();
    for (_, members) in micro_batches(model, pairs, objective.needs_reference())? {
        let batch = PairBatch::new(members, model)?;
        let mut loss = |values: &TokenValues| {
            let logp_m = values.logp_m.detach().set_requires_grad(true);
            let terms = tch::with_grad(|| batch.terms(objective, &logp_m, pairs.len()))?;
            figures.add(&terms);
            let mut grads = Tensor::run_backward(&[&terms.loss], &[&logp_m], false, false);
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
    for (_, members) in micro_batches(model, pairs, objective.needs_reference())? {
        let batch = PairBatch::new(members, model)?;
        let values = model.token_values(&batch.batch.packed, &batch.batch.chosen, 1.0)?;
        if !batch.pairs.is_empty() {
            figures.add(&batch.terms(objective, &values.logp_m, pairs.len())?);
        }
    }
    figures.metrics(model, pairs.len())
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

/// The pairs of each of this rank's micro-batches, with their positions.
fn micro_batches<'a>(
    model: &ShardedModel,
    pairs: &'a [AnswerPair],
    needs_reference: bool,
) -> Result<Vec<Members<'a>>> {
    if pairs.is_empty() {
        return Err(EngineError::Unsuited("a batch without pairs has no loss".to_owned()));
    }
    pairs.iter().try_for_each(AnswerPair::validate)?;
    // On every rank, whatever its share: a rank that refused alone would leave the others waiting.
    if needs_reference && pairs.iter().any(|pair| pair.reference.is_none()) {
        return Err(no_reference());
    }
    let lengths: Vec<_> = pairs.iter().map(AnswerPair::tokens).collect();
    let plan = Plan::new(&lengths, model.world_size(), model.settings().micro_batch_tokens)?;
    let members =
        |round: &Vec<usize>| (round.clone(), round.iter().map(|&index| &pairs[index]).collect());
    Ok(plan.rank(model.rank()).iter().map(members).collect())
}
