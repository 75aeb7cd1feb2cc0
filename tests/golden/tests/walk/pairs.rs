//! Pairs of answers in golden files: ids, masks, spans and log-probs.

use plumb_golden::{Case, Failure, encode_all};
use plumb_loss::logprobs::log_probs;
use plumb_loss::preference::{Answer, Identical, PairSpan, Window, pair_spans, sum_log_probs};
use serde_json::Value;
use tch::{Kind, Tensor};

/// A batch of answers, one a row.
pub(crate) struct Answers {
    ids: Vec<Vec<i64>>,
    attended: Vec<Vec<bool>>,
}

impl Answers {
    /// `<name>_input_ids` and `<name>_attention_mask`.
    pub(crate) fn read(case: &Case, name: &str) -> Result<Self, Failure> {
        let ids = case.inputs.matrix(&format!("{name}_input_ids"))?;
        let attended = case.inputs.mask(&format!("{name}_attention_mask"))?;
        let whole = |row: Vec<f64>| row.into_iter().map(|id| id as i64).collect();
        Ok(Self { ids: ids.into_iter().map(whole).collect(), attended })
    }

    pub(crate) fn len(&self) -> usize {
        self.ids.len()
    }

    fn rows(&self) -> Vec<Answer<'_>> {
        let rows = self.ids.iter().zip(&self.attended);
        rows.map(|(ids, attended)| Answer { ids, attended }).collect()
    }
}

/// Spans of all pairs of a batch.
pub(crate) fn spans(
    better: &Answers,
    worse: &Answers,
    identical: Identical,
) -> Result<Vec<Option<PairSpan>>, Failure> {
    pair_spans(&better.rows(), &worse.rows(), identical).map_err(Failure::refused)
}

/// `[rows, T - 1]` log-probs of the next tokens; the answers of `parts` are below one another in
/// the logits' rows.
pub(crate) fn token_log_probs(logits: &Tensor, parts: &[&Answers]) -> Result<Tensor, Failure> {
    let rows: Vec<&Vec<i64>> = parts.iter().flat_map(|part| &part.ids).collect();
    let width = rows.first().map_or(0, |row| row.len()) as i64;
    let ids: Vec<i64> = rows.iter().copied().flatten().copied().collect();
    if ids.is_empty() {
        return Ok(Tensor::zeros([rows.len() as i64, 0], (Kind::Double, tch::Device::Cpu)));
    }
    let ids = Tensor::from_slice(&ids).reshape([-1, width]);
    log_probs(&logits.narrow(1, 0, width - 1), &ids.narrow(1, 1, width - 1))
        .map_err(Failure::refused)
}

/// `[kept]` log-probs of the answers of the `kept` rows, as the references slice them; row `i` of
/// the batch is row `offset + i` of `token_logp`.
pub(crate) fn answer_log_probs(
    token_logp: &Tensor,
    offset: usize,
    kept: &[usize],
    spans: &[(i64, i64)],
) -> Result<Tensor, Failure> {
    let rows: Vec<i64> = kept.iter().map(|row| (offset + row) as i64).collect();
    let rows = token_logp.index_select(0, &Tensor::from_slice(&rows));
    sum_log_probs(&rows, spans, Window::CompatShifted).map_err(Failure::refused)
}

/// A share as the references hold it, in float32.
pub(crate) fn share(count: usize, of: usize) -> f32 {
    count as f32 / of as f32
}

/// `[n]` numbers as a list.
pub(crate) fn numbers(tensor: &Tensor) -> Value {
    let flat = tensor.detach().to_kind(Kind::Double);
    encode_all(&(0..flat.size()[0]).map(|i| flat.double_value(&[i])).collect::<Vec<_>>())
}

/// The length of a gradient.
pub(crate) fn length(gradient: &Tensor) -> f64 {
    gradient.square().sum(Kind::Double).sqrt().double_value(&[])
}
