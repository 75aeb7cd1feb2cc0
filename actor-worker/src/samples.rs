//! Samples and log-probs from their owners, joined by sample id.

use std::collections::BTreeMap;

use plumb_engine::{OldLogProbs, PolicySample, PolicyUpdate, ResponseSample};
use plumb_proto::actor::{SampleAdvantage, UpdateRequest};
use plumb_proto::object::{LogProbBatch, ObjectRef, Sample, SampleBatch, ValueBatch};
use plumb_runtime::WorkerContext;
use tonic::Status;

use crate::advantage::TokenAdvantages;
use crate::convert::invalid;

/// Log-probs of responses by sample id.
pub(crate) type LogProbsById = BTreeMap<String, Vec<f32>>;

/// Fetches samples in the order of the references, which is the same on every rank.
///
/// # Errors
/// An owner that is gone, bytes that do not match their digest.
pub(crate) async fn fetch_samples(
    context: &WorkerContext,
    references: &[ObjectRef],
) -> Result<Vec<ResponseSample>, Status> {
    let mut samples = Vec::new();
    for reference in references {
        let batch: SampleBatch = context.fetch_message(reference).await?;
        samples.extend(batch.samples.into_iter().map(response_sample));
    }
    Ok(samples)
}

fn response_sample(sample: Sample) -> ResponseSample {
    ResponseSample {
        id: sample.id,
        prompt_ids: sample.prompt_ids,
        response_ids: sample.response_ids,
        rollout_logps: sample.logps,
    }
}

/// Fetches log-probs.
///
/// # Errors
/// As [`fetch_samples`].
pub(crate) async fn fetch_log_probs(
    context: &WorkerContext,
    references: &[ObjectRef],
) -> Result<LogProbsById, Status> {
    let mut rows = LogProbsById::new();
    for reference in references {
        let batch: LogProbBatch = context.fetch_message(reference).await?;
        rows.extend(batch.rows.into_iter().map(|row| (row.sample_id, row.logps)));
    }
    Ok(rows)
}

/// Fetches a critic's values by sample id.
///
/// # Errors
/// As [`fetch_samples`].
pub(crate) async fn fetch_values(
    context: &WorkerContext,
    references: &[ObjectRef],
) -> Result<BTreeMap<String, Vec<f32>>, Status> {
    let mut rows = BTreeMap::new();
    for reference in references {
        let batch: ValueBatch = context.fetch_message(reference).await?;
        rows.extend(batch.rows.into_iter().map(|row| (row.sample_id, row.values)));
    }
    Ok(rows)
}

/// What an update runs on, apart from the samples.
pub(crate) struct UpdateInputs {
    pub(crate) samples: Vec<ResponseSample>,
    pub(crate) reference: LogProbsById,
    pub(crate) old: LogProbsById,
}

/// Fetches everything that an update names.
///
/// # Errors
/// As [`fetch_samples`].
pub(crate) async fn fetch_inputs(
    context: &WorkerContext,
    request: &UpdateRequest,
) -> Result<UpdateInputs, Status> {
    Ok(UpdateInputs {
        samples: fetch_samples(context, &request.samples).await?,
        reference: fetch_log_probs(context, &request.reference_logps).await?,
        old: fetch_log_probs(context, &request.old_logps).await?,
    })
}

/// Joins samples with advantages and log-probs, leaving out those not to be kept.
///
/// # Errors
/// A sample without advantage, or without log-probs that the update needs.
#[allow(clippy::result_large_err)]
pub(crate) fn join(
    inputs: UpdateInputs,
    advantages: &[SampleAdvantage],
    layout: &TokenAdvantages,
    update: &PolicyUpdate,
    needs_reference: bool,
) -> Result<Vec<PolicySample>, Status> {
    let advantages: BTreeMap<_, _> = advantages.iter().map(|a| (a.sample_id.as_str(), a)).collect();
    let UpdateInputs { samples, mut reference, mut old } = inputs;
    let mut joined = Vec::with_capacity(samples.len());
    for sample in samples {
        let advantage = advantages
            .get(sample.id.as_str())
            .ok_or_else(|| invalid("advantages", format!("hold none for sample {}", sample.id)))?;
        if !advantage.keep {
            continue;
        }
        let reference_logps = take(&mut reference, &sample, "reference_logps", needs_reference)?;
        let recomputed = update.old_logps == OldLogProbs::Recomputed;
        let old_logps = take(&mut old, &sample, "old_logps", recomputed)?;
        let tokens = layout.of_tokens(
            advantage.advantage,
            &sample.rollout_logps,
            reference_logps.as_deref(),
        )?;
        joined.push(PolicySample { sample, advantages: tokens, old_logps, reference_logps });
    }
    Ok(joined)
}

#[allow(clippy::result_large_err)]
pub(crate) fn take(
    rows: &mut LogProbsById,
    sample: &ResponseSample,
    field: &str,
    needed: bool,
) -> Result<Option<Vec<f32>>, Status> {
    let row = rows.remove(&sample.id);
    let (tokens, id) = (sample.response_ids.len(), &sample.id);
    match &row {
        None if needed => Err(invalid(field, format!("hold no row for sample {id}"))),
        Some(row) if row.len() != tokens => {
            let got = row.len();
            Err(invalid(field, format!("sample {id} has {tokens} tokens but {got} numbers")))
        }
        _ => Ok(row.filter(|_| needed)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use plumb_loss::policy::Objective;

    fn update(old_logps: OldLogProbs) -> PolicyUpdate {
        PolicyUpdate {
            objective: Objective::default(),
            importance: None,
            norm_tokens: 1.0,
            old_logps,
            mini_batches: 1,
            epochs: 1,
            learning_rate: 1e-3,
            temperature: 1.0,
        }
    }

    fn inputs(old: &[(&str, usize)]) -> UpdateInputs {
        let sample = |id: &str| ResponseSample {
            id: id.into(),
            prompt_ids: vec![1],
            response_ids: vec![2, 3],
            rollout_logps: vec![-1.0, -2.0],
        };
        let rows = old.iter().map(|&(id, tokens)| (id.to_owned(), vec![0.0; tokens]));
        UpdateInputs {
            samples: vec![sample("a"), sample("b")],
            reference: LogProbsById::new(),
            old: rows.collect(),
        }
    }

    fn advantage(id: &str, keep: bool) -> SampleAdvantage {
        SampleAdvantage { sample_id: id.into(), advantage: 2.0, keep }
    }

    #[test]
    fn samples_not_kept_are_left_out() {
        let layout = TokenAdvantages::new(None).unwrap();
        let advantages = [advantage("b", true), advantage("a", false)];
        let update = update(OldLogProbs::Rollout);
        let joined = join(inputs(&[]), &advantages, &layout, &update, false).unwrap();
        assert_eq!(joined.len(), 1);
        assert_eq!(
            (joined[0].sample.id.as_str(), joined[0].advantages.as_slice()),
            ("b", &[2.0, 2.0][..])
        );
    }

    #[test]
    fn what_is_missing_is_named() {
        let layout = TokenAdvantages::new(None).unwrap();
        let both = [advantage("a", true), advantage("b", true)];
        let message = |inputs, advantages: &[SampleAdvantage]| {
            let update = update(OldLogProbs::Recomputed);
            join(inputs, advantages, &layout, &update, false).unwrap_err().message().to_owned()
        };
        let text = message(inputs(&[("a", 2), ("b", 2)]), &both[..1]);
        assert!(text.contains("advantages") && text.contains("sample b"), "{text}");
        let text = message(inputs(&[("a", 2)]), &both);
        assert!(text.contains("old_logps") && text.contains("sample b"), "{text}");
        let text = message(inputs(&[("a", 2), ("b", 3)]), &both);
        assert!(text.contains("2 tokens but 3"), "{text}");
    }
}
