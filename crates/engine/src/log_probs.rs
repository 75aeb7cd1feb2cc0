//! Log-probs of recorded responses under this model: the reference's, or the policy's own at the
//! start of an update.

use plumb_model::{Decoder, Weights};

use crate::head::FusedHead;
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
    let members: Vec<_> = samples.iter().collect();
    let mut rows = Vec::new();
    for indices in micro_batches(&members, ranks, rank, model.settings())? {
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

/// Log-probs of one response under weights that are all in memory, `[T]`: the very operations, on
/// the very shapes, of [`log_probs()`] and [`crate::update_policy`] over a model that takes one
/// sample a pass ([`crate::EngineSettings::one_sample_a_pass`]), so the same to the bit.
///
/// # Errors
/// An empty prompt, tokens that the model refuses, a log-prob that is not a number.
pub fn response_logps(
    decoder: &Decoder,
    weights: &Weights,
    prompt_ids: &[u32],
    response_ids: &[u32],
    temperature: f64,
) -> Result<Vec<f32>> {
    let _guard = tch::no_grad_guard();
    let sample = ResponseSample {
        prompt_ids: prompt_ids.to_vec(),
        response_ids: response_ids.to_vec(),
        rollout_logps: vec![0.0; response_ids.len()],
        ..ResponseSample::default()
    };
    sample.validate()?;
    let batch = ResponseBatch::new([&sample], weights.device())?;
    let layout = decoder.layout(&batch.packed, weights.kind())?;
    let (embedding, layers) = match weights.blocks.as_slice() {
        [embedding, layers @ .., _head] => (embedding, layers),
        _ => return Err(EngineError::Unsuited("a model without layers".to_owned())),
    };
    let mut hidden_nh = decoder.embed(embedding, &batch.packed.input_ids)?;
    for (index, params) in layers.iter().enumerate() {
        hidden_nh = decoder.layer(index, params, &hidden_nh, &layout)?;
    }
    let hidden_mh = hidden_nh.index_select(0, &batch.chosen.rows_m);
    let normed_mh = decoder.final_norm(weights.head_params(), &hidden_mh)?;
    let head = FusedHead { weight_vh: weights.output_weight()?, temperature };
    let logps = floats(&head.values(&normed_mh, &batch.chosen.targets_m)?.logp_m)?;
    check_finite("scored in rollout", &logps)?;
    Ok(logps)
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
