//! Scoring one request: every component on the samples of its labels.

use std::sync::Arc;

use plumb_algo::rule::{Answer, Rule};
use plumb_proto::{object, reward};
use plumb_runtime::DeviceThread;
use tonic::Status;

use crate::component::{ClassifierSpec, Component, Kind};
use crate::models::Models;
use crate::outcome::{Deadline, Outcome, finite};
use crate::plan::Plan;

/// Scores `samples`: one entry per sample, in their order, with the components of its label in
/// the order they were loaded in. A component that fails on a sample says so in its entry.
///
/// # Errors
/// When the device thread is gone, or a rule panicked.
pub async fn score(
    components: &Arc<Vec<Component>>,
    models: &DeviceThread<Models>,
    samples: Arc<Vec<object::Sample>>,
    plan: &Plan,
) -> Result<Vec<reward::SampleScore>, Status> {
    // Rules run on threads of their own while the models have the device.
    let mut runs = Vec::new();
    for (place, component) in components.iter().enumerate() {
        let chosen = plan.samples_of(place).to_vec();
        if chosen.is_empty() {
            continue;
        }
        let work = Work { components: components.clone(), place, samples: samples.clone() };
        let name = component.name.clone();
        let run = match &component.kind {
            Kind::Rule(_) => {
                let chosen = chosen.clone();
                Run::Rule(tokio::task::spawn_blocking(move || work.rule(&chosen)))
            }
            Kind::Classifier(_) => Run::Classifier(work),
        };
        runs.push((name, chosen, run));
    }
    let mut scores: Vec<reward::SampleScore> = samples
        .iter()
        .map(|s| reward::SampleScore { sample_id: s.id.clone(), scores: Vec::new() })
        .collect();
    for (name, chosen, run) in runs {
        let outcomes = match run {
            Run::Rule(task) => task
                .await
                .map_err(|e| Status::internal(format!("reward component {name:?}: {e}")))?,
            Run::Classifier(work) => {
                let chosen = chosen.clone();
                models.run(move |models| work.classifier(models, &chosen)).await?
            }
        };
        for (sample, outcome) in chosen.into_iter().zip(outcomes) {
            scores[sample].scores.push(entry(&name, outcome));
        }
    }
    Ok(scores)
}

enum Run {
    Rule(tokio::task::JoinHandle<Vec<Outcome>>),
    Classifier(Work),
}

/// One component and the samples of the request.
struct Work {
    components: Arc<Vec<Component>>,
    place: usize,
    samples: Arc<Vec<object::Sample>>,
}

impl Work {
    fn rule(&self, chosen: &[usize]) -> Vec<Outcome> {
        let component = &self.components[self.place];
        let Kind::Rule(rule) = &component.kind else { return Vec::new() };
        let deadline = Deadline::after(component.timeout);
        chosen.iter().map(|place| apply(rule, &self.samples[*place], &deadline)).collect()
    }

    fn classifier(&self, models: &mut Models, chosen: &[usize]) -> Vec<Outcome> {
        let component = &self.components[self.place];
        let Kind::Classifier(spec) = &component.kind else { return Vec::new() };
        let samples: Vec<&object::Sample> =
            chosen.iter().map(|place| &self.samples[*place]).collect();
        classify(models, spec, &samples, &Deadline::after(component.timeout))
    }
}

fn apply(rule: &Rule, sample: &object::Sample, deadline: &Deadline) -> Outcome {
    if let Some(late) = deadline.passed() {
        return Err(late);
    }
    let answer = Answer {
        question: &sample.question,
        response: &sample.response,
        reference: sample.reference.as_deref(),
        response_tokens: sample.response_ids.len(),
    };
    rule.score(&answer).map_err(|error| error.to_string()).and_then(finite)
}

fn classify(
    models: &Models,
    spec: &ClassifierSpec,
    samples: &[&object::Sample],
    deadline: &Deadline,
) -> Vec<Outcome> {
    match models.get(&spec.model) {
        Some(model) => model.score(spec, samples, deadline),
        None => {
            let missing = format!("model {} is not loaded", spec.model.folder.display());
            vec![Err(missing); samples.len()]
        }
    }
}

fn entry(component: &str, outcome: Outcome) -> reward::ComponentScore {
    let (score, error) = match outcome {
        Ok(score) => (score, None),
        // Not a number that a mix could take for a reward.
        Err(error) => (f64::NAN, Some(error)),
    };
    reward::ComponentScore { component: component.to_owned(), score, error }
}

#[cfg(test)]
#[path = "score_tests.rs"]
mod tests;
