//! Pairs of answers as the engine takes them, packed.

use plumb_loss::preference::{PairValues, PopTerms, PreferenceTerms, pop, pop_fixed, preference};
use tch::{Kind, Tensor};

use crate::preference_objective::{PreferenceObjective, margins};
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
    /// By how much the better answer is better, for [`crate::PairMargin::Own`].
    pub margin: Option<f64>,
    /// A pair that is preferred with less certainty, for losses that compare two. Its own such
    /// pair is passed over.
    pub unpreferred: Option<Box<AnswerPair>>,
}

/// log p of two answers given their prompt: sums over their tokens, in nats.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct AnswerLogProbs {
    /// Of the better answer.
    pub better: f64,
    /// Of the worse answer.
    pub worse: f64,
}

impl AnswerPair {
    /// Tokens that go through the layers; an answer's last one predicts nothing.
    pub(crate) fn tokens(&self) -> usize {
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

    pub(crate) fn validate(&self) -> Result<()> {
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

/// What a micro-batch of pairs adds to the figures.
pub(crate) enum BatchTerms {
    Pairs(PreferenceTerms),
    PairsOfPairs(PopTerms),
}

/// Some pairs laid end to end. P pairs, M answer tokens. Where pairs are compared with unpreferred
/// ones, each is followed by its own.
pub(crate) struct PairBatch<'a> {
    pub(crate) pairs: Vec<&'a AnswerPair>,
    pub(crate) batch: ResponseBatch,
    /// Which answer each token is of: 2p for the better one of pair p, 2p + 1 for the worse. `[M]`
    answer_m: Tensor,
}

impl<'a> PairBatch<'a> {
    pub(crate) fn new(pairs: Vec<&'a AnswerPair>, model: &ShardedModel) -> Result<Self> {
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
    pub(crate) fn answer_logps(&self, logp_m: &Tensor) -> Tensor {
        let pairs = self.pairs.len() as i64;
        let zeros = Tensor::zeros([2 * pairs], (Kind::Float, logp_m.device()));
        zeros.index_add(0, &self.answer_m, logp_m).view([pairs, 2])
    }

    /// The loss of the answers' token log-probs `[M]`; `all_pairs`: of the whole batch, unpreferred
    /// ones not counted.
    pub(crate) fn terms(
        &self,
        objective: &PreferenceObjective,
        logp_m: &Tensor,
        all_pairs: usize,
    ) -> Result<BatchTerms> {
        let logp_p2 = self.answer_logps(logp_m);
        let (better_p, worse_p) = (logp_p2.select(1, 0), logp_p2.select(1, 1));
        let values = match objective.needs_reference() {
            true => self.log_ratios(&better_p, &worse_p)?,
            false => self.mean_log_probs(&better_p, &worse_p)?,
        };
        let margin_p = margins(&self.pairs).to_device(logp_m.device());
        if let Some(loss) = objective.loss(&margin_p) {
            return Ok(BatchTerms::Pairs(preference(&loss, &values, all_pairs)?));
        }
        // Every second pair is the unpreferred one of the pair before it.
        let every_second = |first: i64| {
            let of = |values_p: &Tensor| values_p.slice(0, first, None, 2);
            PairValues { better: of(&values.better), worse: of(&values.worse) }
        };
        let (preferred, unpreferred) = (every_second(0), every_second(1));
        let terms = match objective {
            PreferenceObjective::Pop(spec) => pop(spec, &preferred, &unpreferred, all_pairs)?,
            PreferenceObjective::PopFixed(spec) => {
                pop_fixed(spec, &preferred, &unpreferred, all_pairs)?
            }
            _ => return Err(EngineError::Unsuited("a loss of single pairs".to_owned())),
        };
        Ok(BatchTerms::PairsOfPairs(terms))
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
