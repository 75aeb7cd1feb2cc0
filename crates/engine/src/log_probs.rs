//! Log-probs of recorded responses under this model: the reference's, or the policy's own at the
//! start of an update.

use crate::lm_head::floats;
use crate::response_batch::{ResponseBatch, ResponseSample, micro_batches};
use crate::sharded_model::ShardedModel;
use crate::{EngineError, Result};

/// Log-probs of one response.
#[derive(Debug, Clone, PartialEq)]
pub struct ResponseLogProbs {
    /// Position in the samples that were passed in.
    pub index: usize,
    /// log p of each response token, `[T]`.
    pub logps: Vec<f32>,
    /// Entropy at each response token, `[T]`.
    pub entropies: Vec<f32>,
}

/// Computes this rank's share; the shares of all ranks cover every sample once. Every rank
/// passes the same samples in the same order.
///
/// # Errors
/// Samples that do not fit, a log-prob that is not a number, a failed collective.
pub fn log_probs(
    model: &mut ShardedModel,
    samples: &[ResponseSample],
    temperature: f64,
) -> Result<Vec<ResponseLogProbs>> {
    samples.iter().try_for_each(ResponseSample::validate)?;
    let (ranks, rank) = (model.world_size(), model.rank());
    let budget_tokens = model.settings().micro_batch_tokens;
    let members: Vec<_> = samples.iter().collect();
    let mut rows = Vec::new();
    for indices in micro_batches(&members, ranks, rank, budget_tokens)? {
        let members = indices.iter().map(|&index| &samples[index]);
        let batch = ResponseBatch::new(members, model.settings().device)?;
        let values = model.token_values(&batch.packed, &batch.chosen, temperature)?;
        let (logps, entropies) = (floats(&values.logp_m)?, floats(&values.entropy_m)?);
        let mut first = 0;
        for &index in &indices {
            let end = first + samples[index].response_ids.len();
            let row = ResponseLogProbs {
                index,
                logps: logps[first..end].to_vec(),
                entropies: entropies[first..end].to_vec(),
            };
            first = end;
            check_finite(&samples[index].id, &row.logps)?;
            rows.push(row);
        }
    }
    rows.sort_by_key(|row| row.index);
    Ok(rows)
}

fn check_finite(id: &str, logps: &[f32]) -> Result<()> {
    match logps.iter().position(|logp| !logp.is_finite()) {
        None => Ok(()),
        Some(token) => {
            let problem = format!("log-prob of response token {token} is {}", logps[token]);
            Err(EngineError::Sample { id: id.to_owned(), problem })
        }
    }
}
