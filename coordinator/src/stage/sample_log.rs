//! Sample texts: fetched from their owners, written to `samples/*.jsonl`.

use std::collections::BTreeMap;

use futures::future::try_join_all;
use plumb_domain::{Label, PromptId};
use plumb_proto::Message as _;
use plumb_proto::object::{FinishReason, Sample, SampleBatch};
use serde::Serialize;

use super::StageContext;
use crate::ports::{Generation, PhaseError, PlainSample, SampleScores};

/// One line of a sample file.
#[derive(Serialize)]
pub(super) struct SampleLine<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) step: Option<u64>,
    pub(super) id: &'a str,
    pub(super) prompt_id: &'a str,
    pub(super) label: &'a str,
    pub(super) question: &'a str,
    pub(super) response: &'a str,
    pub(super) tokens: usize,
    pub(super) finish: &'a str,
    pub(super) policy_version: u64,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub(super) scores: BTreeMap<&'a str, serde_json::Value>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) reward: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) advantage: Option<f64>,
}

impl<'a> SampleLine<'a> {
    pub(super) fn new(sample: &'a PlainSample) -> Self {
        Self {
            step: None,
            id: &sample.id,
            prompt_id: sample.prompt_id.as_str(),
            label: sample.label.as_str(),
            question: &sample.question,
            response: &sample.response,
            tokens: sample.response_ids.len(),
            finish: sample.finish,
            policy_version: sample.policy_version,
            scores: BTreeMap::new(),
            reward: None,
            advantage: None,
        }
    }

    /// Adds component scores; a failed one shows its cause.
    pub(super) fn with_scores(mut self, scores: Option<&'a SampleScores>) -> Self {
        for (component, score) in scores.into_iter().flat_map(|s| &s.scores) {
            let value = match score {
                Ok(score) => serde_json::json!(score),
                Err(cause) => serde_json::json!({ "failed": cause }),
            };
            self.scores.insert(component, value);
        }
        self
    }
}

/// Fetches the samples of a generation, in the order of its groups.
pub(super) async fn fetch(
    context: &StageContext,
    generation: &Generation,
) -> Result<Vec<PlainSample>, PhaseError> {
    let peers = context.fleet.cluster().peers();
    let batches = try_join_all(generation.groups.iter().map(|group| async move {
        let bytes = peers.fetch(&group.object).await.map_err(|status| PhaseError::SamplesLost {
            owner: group.owner.clone(),
            cause: status.message().to_owned(),
        })?;
        SampleBatch::decode(bytes).map_err(|error| {
            PhaseError::Failed(format!("object {} is no sample batch: {error}", group.object.id))
        })
    }))
    .await?;
    let samples = batches.into_iter().flat_map(|batch| batch.samples);
    samples.map(plain).collect()
}

fn plain(sample: Sample) -> Result<PlainSample, PhaseError> {
    let wrong = |what: String| PhaseError::Failed(format!("sample {}: {what}", sample.id));
    let finish = match sample.finish() {
        FinishReason::Eos => "eos",
        FinishReason::StopString => "stop_string",
        FinishReason::Length => "length",
        FinishReason::Unspecified => return Err(wrong("it does not say why it ended".into())),
    };
    Ok(PlainSample {
        prompt_id: PromptId::new(sample.prompt_id.clone()).map_err(|e| wrong(e.to_string()))?,
        label: Label::new(sample.label.clone()).map_err(|e| wrong(e.to_string()))?,
        policy_version: sample.segments.last().map_or(0, |s| s.policy_version),
        finish,
        id: sample.id,
        prompt_ids: sample.prompt_ids,
        response_ids: sample.response_ids,
        question: sample.question,
        response: sample.response,
        reference: sample.reference,
    })
}
