//! DPO and SimPO of safe-rlhf, HC-RLHF and LightRFT.

use plumb_golden::{Case, Failure};
use plumb_loss::preference::{
    Identical, Margin, Objective, PairSpan, PairValues, Pairwise, Preference, PreferenceTerms,
    Window, pairwise, pairwise_with_margin, preference,
};
use serde_json::{Map, Value, json};
use tch::Tensor;

use crate::pairs::{Answers, answer_log_probs, length, numbers, share, spans, token_log_probs};
use crate::tensors::{gradient, leaf, nested, tensor};

use crate::{Check, Consumer};

pub(crate) const CONSUMERS: &[Consumer] = &[
    ("safe_rlhf/dpo_loss", Check::Result(safe_rlhf_dpo)),
    ("hc_rlhf/dpo_margin_loss", Check::Result(hc_dpo)),
    ("hc_rlhf/simpo_margin_loss", Check::Result(hc_simpo)),
    ("lightrft/pairwise_and_dpo_loss", Check::Result(lightrft)),
];

fn safe_rlhf_dpo(case: &Case) -> Result<Value, Failure> {
    let batch = Batch::read(case, Identical::Refuse)?;
    let (terms, mut result) = batch.result(case, &batch.log_ratios(case)?, Margin::Scalar(0.0))?;
    result.insert("reward".to_owned(), numbers(&terms.rewards.sum()));
    Ok(Value::Object(result))
}

fn hc_dpo(case: &Case) -> Result<Value, Failure> {
    let batch = Batch::read(case, Identical::Skip)?;
    with_margin(case, &batch, &batch.log_ratios(case)?)
}

fn hc_simpo(case: &Case) -> Result<Value, Failure> {
    let batch = Batch::read(case, Identical::Skip)?;
    with_margin(case, &batch, &batch.mean_log_probs()?)
}

fn with_margin(case: &Case, batch: &Batch, values: &PairValues) -> Result<Value, Failure> {
    let (_, result) = if case.inputs.has("sample_margin") {
        let margins = tensor(&case.inputs, "sample_margin")?;
        batch.result(case, values, Margin::CompatAllPairs(&margins))?
    } else {
        batch.result(case, values, Margin::Scalar(case.params.number_or("margin", 0.0)?))?
    };
    Ok(Value::Object(result))
}

/// A batch of pairs with the policy's logits, without the pairs that are skipped.
struct Batch {
    better: Answers,
    worse: Answers,
    logits: Tensor,
    kept: Vec<usize>,
    spans: Vec<PairSpan>,
}

impl Batch {
    fn read(case: &Case, identical: Identical) -> Result<Self, Failure> {
        let (better, worse) = (Answers::read(case, "better")?, Answers::read(case, "worse")?);
        let all = spans(&better, &worse, identical)?;
        let kept: Vec<usize> = (0..all.len()).filter(|row| all[*row].is_some()).collect();
        let spans = all.into_iter().flatten().collect();
        Ok(Self { better, worse, logits: leaf(&case.inputs, "logits")?, kept, spans })
    }

    fn ends(&self, of: fn(&PairSpan) -> (i64, i64)) -> Vec<(i64, i64)> {
        self.spans.iter().map(of).collect()
    }

    /// Log-probs of the better and the worse answers.
    fn log_probs(&self, logits: &Tensor) -> Result<(Tensor, Tensor), Failure> {
        let tokens = token_log_probs(logits, &[&self.better, &self.worse])?;
        let of =
            |offset, ends: Vec<(i64, i64)>| answer_log_probs(&tokens, offset, &self.kept, &ends);
        Ok((
            of(0, self.ends(PairSpan::better))?,
            of(self.better.len(), self.ends(PairSpan::worse))?,
        ))
    }

    fn log_ratios(&self, case: &Case) -> Result<PairValues, Failure> {
        let (better, worse) = self.log_probs(&self.logits)?;
        let (ref_better, ref_worse) = self.log_probs(&tensor(&case.inputs, "ref_logits")?)?;
        PairValues::log_ratios(&better, &worse, &ref_better, &ref_worse).map_err(Failure::refused)
    }

    fn mean_log_probs(&self) -> Result<PairValues, Failure> {
        let (better, worse) = self.log_probs(&self.logits)?;
        let tokens = |ends: Vec<(i64, i64)>| -> Vec<i64> {
            ends.into_iter().map(|span| Window::CompatShifted.token_count(span)).collect()
        };
        let (b, w) = (tokens(self.ends(PairSpan::better)), tokens(self.ends(PairSpan::worse)));
        PairValues::mean_log_probs(&better, &worse, &b, &w).map_err(Failure::refused)
    }

    fn result(
        &self,
        case: &Case,
        values: &PairValues,
        margin: Margin<'_>,
    ) -> Result<(PreferenceTerms, Map<String, Value>), Failure> {
        let spec = Preference::with_margin(case.params.number("scale_coeff")?, margin);
        let terms = preference(&spec, values, self.kept.len()).map_err(Failure::refused)?;
        let mut result = Map::new();
        let mut put = |key: &str, value: Value| result.insert(key.to_owned(), value);
        put("loss", nested(&terms.loss));
        put("better_sample_reward", numbers(&terms.rewards.better));
        put("worse_sample_reward", numbers(&terms.rewards.worse));
        put("reward_accuracy", json!(f64::from(share(terms.correct_pairs, terms.pairs))));
        put("reward_margin", numbers(&terms.rewards.margin()));
        put("grad_logits_l2", json!(length(&gradient(&terms.loss, &self.logits))));
        Ok((terms, result))
    }
}

fn lightrft(case: &Case) -> Result<Value, Failure> {
    if case.inputs.has("chosen") {
        return lightrft_pairwise(case);
    }
    let of = |key: &str| tensor(&case.inputs, key);
    let values = PairValues::log_ratios(
        &of("policy_chosen")?,
        &of("policy_rejected")?,
        &of("ref_chosen")?,
        &of("ref_rejected")?,
    )
    .map_err(Failure::refused)?;
    let objective = if case.params.flag("ipo")? {
        Objective::Ipo
    } else {
        let label_smoothing = case.params.number("label_smoothing")?;
        Objective::Logistic { label_smoothing, margin: Margin::Scalar(0.0) }
    };
    let spec = Preference { beta: case.params.number("beta")?, objective };
    let pairs = values.better.size()[0] as usize;
    let terms = preference(&spec, &values, pairs).map_err(Failure::refused)?;
    Ok(json!({
        "loss": nested(&terms.loss),
        "chosen_rewards": numbers(&terms.rewards.better),
        "rejected_rewards": numbers(&terms.rewards.worse),
    }))
}

fn lightrft_pairwise(case: &Case) -> Result<Value, Failure> {
    let (chosen, reject) = (tensor(&case.inputs, "chosen")?, tensor(&case.inputs, "reject")?);
    let (spec, pairs) = (Pairwise::default(), chosen.numel());
    let plain = pairwise(&spec, &chosen, &reject, pairs).map_err(Failure::refused)?;
    let mut result = json!({ "no_margin": nested(&plain.loss) });
    if case.inputs.has("margin") {
        let margin = tensor(&case.inputs, "margin")?;
        let ours = pairwise_with_margin(&spec, &chosen, &reject, &margin, pairs);
        result["margin"] = nested(&ours.map_err(Failure::refused)?.loss);
    }
    Ok(result)
}
