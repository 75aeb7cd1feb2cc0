//! HC-RLHF's paired-off-policy losses.

use plumb_golden::{Case, Failure};
use plumb_loss::preference::{
    Identical, PairSpan, PairValues, Pop, PopFixed, PopTerms, Window, pop, pop_fixed,
};
use serde_json::{Value, json};
use tch::Tensor;

use crate::pairs::{Answers, answer_log_probs, length, numbers, share, spans, token_log_probs};
use crate::tensors::{gradient, leaf, nested, tensor};

use crate::{Check, Consumer};

pub(crate) const CONSUMERS: &[Consumer] = &[
    ("hc_rlhf/dpo_pop_loss", Check::Result(dpo_pop)),
    ("hc_rlhf/dpo_pop_fixed_loss", Check::Result(dpo_pop_fixed)),
    ("hc_rlhf/dpo_pop_fixed_ema_loss", Check::Result(pop_fixed_ema)),
    ("hc_rlhf/simpo_pop_fixed_ema_loss", Check::Result(pop_fixed_ema)),
];

/// Pairs of one kind, with where their log-probs are.
struct Side {
    better: Answers,
    worse: Answers,
    spans: Vec<Option<PairSpan>>,
}

impl Side {
    fn read(case: &Case, name: &str) -> Result<Self, Failure> {
        let better = Answers::read(case, &format!("{name}_chosen"))?;
        let worse = Answers::read(case, &format!("{name}_rejected"))?;
        let spans = spans(&better, &worse, Identical::Skip)?;
        Ok(Self { better, worse, spans })
    }

    fn ends(&self, kept: &[usize], of: fn(&PairSpan) -> (i64, i64)) -> Vec<(i64, i64)> {
        kept.iter().filter_map(|row| self.spans[*row].as_ref().map(of)).collect()
    }

    /// Log-probs of better and worse answers; theirs start at row `offset` of `tokens`.
    fn log_probs(
        &self,
        tokens: &Tensor,
        offset: usize,
        kept: &[usize],
    ) -> Result<(Tensor, Tensor), Failure> {
        let worse_at = offset + self.better.len();
        Ok((
            answer_log_probs(tokens, offset, kept, &self.ends(kept, PairSpan::better))?,
            answer_log_probs(tokens, worse_at, kept, &self.ends(kept, PairSpan::worse))?,
        ))
    }

    fn mean_log_probs(
        &self,
        (better, worse): &(Tensor, Tensor),
        kept: &[usize],
    ) -> Result<PairValues, Failure> {
        let tokens = |of| -> Vec<i64> {
            let ends = self.ends(kept, of).into_iter();
            ends.map(|span| Window::CompatShifted.token_count(span)).collect()
        };
        let (b, w) = (tokens(PairSpan::better), tokens(PairSpan::worse));
        PairValues::mean_log_probs(better, worse, &b, &w).map_err(Failure::refused)
    }
}

/// Both kinds of pairs with the policy's logits.
struct Batch {
    preferred: Side,
    unpreferred: Side,
    /// Pairs of which neither kind is identical.
    kept: Vec<usize>,
    logits: Tensor,
}

impl Batch {
    fn read(case: &Case) -> Result<Self, Failure> {
        let (preferred, unpreferred) = (Side::read(case, "pref")?, Side::read(case, "unpref")?);
        if preferred.spans.len() != unpreferred.spans.len() {
            return Err(Failure::Malformed("batches of different size".to_owned()));
        }
        let differ =
            |row: &usize| preferred.spans[*row].is_some() && unpreferred.spans[*row].is_some();
        let kept = (0..preferred.spans.len()).filter(differ).collect();
        Ok(Self { preferred, unpreferred, kept, logits: leaf(&case.inputs, "policy_logits")? })
    }

    fn all_tokens(&self, logits: &Tensor) -> Result<Tensor, Failure> {
        let Self { preferred, unpreferred, .. } = self;
        let parts = [&preferred.better, &preferred.worse, &unpreferred.better, &unpreferred.worse];
        token_log_probs(logits, &parts)
    }

    fn side_tokens(logits: &Tensor, side: &Side) -> Result<Tensor, Failure> {
        token_log_probs(logits, &[&side.better, &side.worse])
    }

    /// Log-ratios of both kinds, all four parts scored by the same models.
    fn log_ratios(&self, case: &Case) -> Result<(PairValues, PairValues), Failure> {
        let ours = self.all_tokens(&self.logits)?;
        let reference = self.all_tokens(&tensor(&case.inputs, "ref_logits")?)?;
        let unpreferred_at = 2 * self.preferred.better.len();
        let of = |side: &Side, offset: usize| {
            let (better, worse) = side.log_probs(&ours, offset, &self.kept)?;
            let (ref_better, ref_worse) = side.log_probs(&reference, offset, &self.kept)?;
            PairValues::log_ratios(&better, &worse, &ref_better, &ref_worse)
                .map_err(Failure::refused)
        };
        Ok((of(&self.preferred, 0)?, of(&self.unpreferred, unpreferred_at)?))
    }

    /// The policy scores the preferred pairs, the moving average the others. With a reference
    /// log-ratios (DPO), else mean log-probs (SimPO).
    fn with_moving_average(&self, case: &Case) -> Result<(PairValues, PairValues), Failure> {
        let ours = Self::side_tokens(&self.logits, &self.preferred)?;
        let average = tensor(&case.inputs, "ema_logits_unpref")?;
        let average = Self::side_tokens(&average, &self.unpreferred)?;
        let preferred = self.preferred.log_probs(&ours, 0, &self.kept)?;
        let unpreferred = self.unpreferred.log_probs(&average, 0, &self.kept)?;
        if !case.inputs.has("ref_logits") {
            return Ok((
                self.preferred.mean_log_probs(&preferred, &self.kept)?,
                self.unpreferred.mean_log_probs(&unpreferred, &self.kept)?,
            ));
        }
        let reference = self.all_tokens(&tensor(&case.inputs, "ref_logits")?)?;
        let of = |side: &Side, (better, worse): &(Tensor, Tensor), offset| {
            let (ref_better, ref_worse) = side.log_probs(&reference, offset, &self.kept)?;
            PairValues::log_ratios(better, worse, &ref_better, &ref_worse).map_err(Failure::refused)
        };
        let unpreferred_at = 2 * self.preferred.better.len();
        Ok((
            of(&self.preferred, &preferred, 0)?,
            of(&self.unpreferred, &unpreferred, unpreferred_at)?,
        ))
    }

    fn fixed(
        &self,
        case: &Case,
        (preferred, unpreferred): &(PairValues, PairValues),
    ) -> Result<PopTerms, Failure> {
        let spec = PopFixed {
            beta: case.params.number("scale_coeff")?,
            margin_min: case.params.number("margin_min")?,
            margin_max: case.params.number("margin_max")?,
        };
        pop_fixed(&spec, preferred, unpreferred, self.kept.len()).map_err(Failure::refused)
    }

    fn gradient_length(&self, terms: &PopTerms) -> Value {
        json!(length(&gradient(&terms.loss, &self.logits)))
    }
}

fn dpo_pop(case: &Case) -> Result<Value, Failure> {
    let batch = Batch::read(case)?;
    let (preferred, unpreferred) = batch.log_ratios(case)?;
    let spec = Pop {
        beta: case.params.number("scale_coeff")?,
        lambda: case.params.number_or("lambda", Pop::default().lambda)?,
    };
    let terms = pop(&spec, &preferred, &unpreferred, batch.kept.len()).map_err(Failure::refused)?;
    let own = share(terms.correct_preferred, terms.pairs);
    let other = share(terms.correct_unpreferred, terms.pairs);
    Ok(json!({
        "loss": nested(&terms.loss),
        "avg_reward": numbers(&terms.mean_reward()),
        "pref_chosen_sample_reward": numbers(&terms.preferred.better),
        "pref_rejected_sample_reward": numbers(&terms.preferred.worse),
        "unpref_chosen_sample_reward": numbers(&terms.unpreferred.better),
        "unpref_rejected_sample_reward": numbers(&terms.unpreferred.worse),
        "reward_self_accuracy": f64::from((own + other) / 2.0),
        "reward_pop_accuracy": f64::from(share(terms.correct_pop, terms.pairs)),
        "pref_reward_margin": numbers(&terms.preferred.margin()),
        "unpref_reward_margin": numbers(&terms.unpreferred.margin()),
        "pop_margin": numbers(&terms.margin()),
        "grad_logits_l2": batch.gradient_length(&terms),
        "constraint_values": numbers(&terms.constraint),
    }))
}

fn dpo_pop_fixed(case: &Case) -> Result<Value, Failure> {
    let batch = Batch::read(case)?;
    let terms = batch.fixed(case, &batch.log_ratios(case)?)?;
    Ok(json!({
        "loss": nested(&terms.loss),
        "pref_chosen_sample_reward": numbers(&terms.preferred.better),
        "pref_rejected_sample_reward": numbers(&terms.preferred.worse),
        "accuracy": f64::from(share(terms.correct_preferred, terms.pairs)),
        "pref_reward_margin": numbers(&terms.preferred.margin()),
        "grad_logits_l2": batch.gradient_length(&terms),
        // The fixed forms keep no constraint.
        "constraint_values": [],
    }))
}

fn pop_fixed_ema(case: &Case) -> Result<Value, Failure> {
    let batch = Batch::read(case)?;
    let terms = batch.fixed(case, &batch.with_moving_average(case)?)?;
    Ok(json!({
        "loss": nested(&terms.loss),
        "pref_chosen_sample_reward": numbers(&terms.preferred.better),
        "pref_rejected_sample_reward": numbers(&terms.preferred.worse),
        "unpref_chosen_sample_reward": numbers(&terms.unpreferred.better),
        "unpref_rejected_sample_reward": numbers(&terms.unpreferred.worse),
        "accuracy": f64::from(share(terms.correct_preferred, terms.pairs)),
        "pref_reward_margin": numbers(&terms.preferred.margin()),
        "unpref_reward_margin": numbers(&terms.unpreferred.margin()),
        "pop_margin": numbers(&terms.margin()),
        "grad_logits_l2": batch.gradient_length(&terms),
        "constraint_values": [],
    }))
}
