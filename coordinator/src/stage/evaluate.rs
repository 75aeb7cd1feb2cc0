//! `evaluate`: held-out prompts, answered by the untrained model and by the exported folder with
//! the same random streams, and compared prompt by prompt.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use plumb_algo::rule::Rule;
use plumb_algo::statistics::{Summary, paired_difference};
use plumb_config::{EvaluateStage, Measure};
use plumb_domain::{Label, Prompt, Role, StepId};
use plumb_telemetry::JsonLines;

use super::label::parse_rule;
use super::meter::Meter;
use super::model_source::component_path;
use super::sample_log::{SampleLine, fetch};
use super::{Figures, Outputs, StageContext};
use crate::algorithm::grpo::mix;
use crate::fleet::rewards::RewardFleet;
use crate::fleet::rollout::{GenerateSettings, RolloutFleet};
use crate::job::error::JobError;
use crate::job::summary::{AnswerPair, MeasureResult};
use crate::ports::{Phase, PhaseError, PhaseKey, PlainSample, Rewards as _, SampleScores};

/// Whole repeats of one model's evaluation after a lost worker.
const REPEATS: u32 = 3;

/// Attempts of this stage's score calls lie above those of any training step.
const FIRST_ATTEMPT: u32 = 1_000_000_000;

/// One model's answers.
struct Answers {
    samples: Vec<PlainSample>,
    scores: BTreeMap<String, SampleScores>,
}

pub(super) async fn run(
    stage: &EvaluateStage,
    context: &StageContext,
    outputs: &mut Outputs,
) -> Result<Figures, JobError> {
    let prompts = choose(&outputs.heldout, stage.max_prompts_per_label);
    if outputs.rewards.is_none() {
        let group = context.fleet.group(Role::Reward).await?;
        let path = |name: &str| component_path(context, name);
        let rewards = RewardFleet::load(group, &context.recipe, path).await?;
        outputs.rewards = Some(Arc::new(rewards));
    }
    let rewards = outputs.rewards.clone().ok_or_else(|| JobError::Stage {
        stage: stage.name.clone(),
        problem: "no reward worker".to_owned(),
    })?;
    let exported = context.folder.path("export");
    let before =
        answers(stage, context, &rewards, outputs.model.clone(), "before", &prompts).await?;
    let after = answers(stage, context, &rewards, exported, "after", &prompts).await?;
    let mut figures = Figures::new();
    for measure in &stage.measure {
        let fail = |problem: String| JobError::Stage {
            stage: stage.name.clone(),
            problem: format!("measure {:?}: {problem}", measure.name),
        };
        let (old, new) = (
            by_prompt(measure, context, &before).map_err(&fail)?,
            by_prompt(measure, context, &after).map_err(&fail)?,
        );
        let result = compare(measure, &old, &new).map_err(&fail)?;
        figures.insert(format!("{} before", result.name), result.before);
        figures.insert(format!("{} after", result.name), result.after);
        outputs.measures.push(result);
    }
    outputs.answers = shown(stage.shown_per_label, &prompts, &before, &after);
    Ok(figures)
}

/// The first prompts of each label.
fn choose(prompts: &[Prompt], most: usize) -> Vec<Prompt> {
    let mut taken: BTreeMap<&Label, usize> = BTreeMap::new();
    let mut chosen = Vec::new();
    for prompt in prompts {
        let count = taken.entry(&prompt.label).or_default();
        *count += 1;
        if most == 0 || *count <= most {
            chosen.push(prompt.clone());
        }
    }
    chosen
}

/// Generates and scores with one model; a lost worker means once more.
async fn answers(
    stage: &EvaluateStage,
    context: &StageContext,
    rewards: &RewardFleet,
    model: PathBuf,
    name: &str,
    prompts: &[Prompt],
) -> Result<Answers, JobError> {
    let group = context.fleet.group(Role::Rollout).await?;
    let mut repeats = 0;
    let answers = loop {
        match once(stage, context, rewards, model.clone(), prompts).await {
            Err(PhaseError::Lost { worker, cause, .. }) if repeats < REPEATS => {
                repeats += 1;
                context.log.restarted();
                context.events.notice("warn", format!("{worker} lost ({cause}); evaluating again"));
                group.wait_ready().await?;
                rewards.group().wait_ready().await?;
                rewards.load_missing().await?;
            }
            other => break other?,
        }
    };
    let mut file = JsonLines::create(context.folder.samples(&format!("{}-{name}", stage.name)))?;
    for sample in &answers.samples {
        file.append(&SampleLine::new(sample).with_scores(answers.scores.get(&sample.id)))?;
    }
    Ok(answers)
}

async fn once(
    stage: &EvaluateStage,
    context: &StageContext,
    rewards: &RewardFleet,
    model: PathBuf,
    prompts: &[Prompt],
) -> Result<Answers, PhaseError> {
    let recipe = &context.recipe;
    let group = context.fleet.group(Role::Rollout).await.map_err(|error| match error {
        JobError::Phase(error) => error,
        other => PhaseError::Failed(crate::job::error::chain(&other)),
    })?;
    let settings = GenerateSettings {
        sampling: stage.sampling.clone().unwrap_or_else(|| recipe.sampling.clone()),
        samples_per_prompt: stage.samples_per_prompt,
        seed: recipe.seed,
        phase: "evaluate",
    };
    let attempt = FIRST_ATTEMPT + group.fresh_attempt();
    let key = |phase| PhaseKey { step: StepId(0), phase, attempt };
    let start = std::time::Instant::now();
    let rollout = RolloutFleet::load(group, recipe.clone(), model, settings).await?;
    let meter = Meter::new(&context.events, &stage.name, prompts.len());
    let heard = |p: &_| meter.heard(p);
    let generation = rollout.answer(key(Phase::Generate), prompts, &heard).await?;
    context.log.span("evaluate", "answers", start.elapsed().as_secs_f64(), true);
    let scores = rewards.score(key(Phase::Score), &generation).await?;
    let samples = fetch(context, &generation).await?;
    let scores = scores.into_iter().map(|s| (s.sample_id.clone(), s)).collect();
    Ok(Answers { samples, scores })
}

/// A measure's mean over each prompt's answers.
fn by_prompt(
    measure: &Measure,
    context: &StageContext,
    answers: &Answers,
) -> Result<BTreeMap<String, f64>, String> {
    let rule = measure.rule.as_ref().map(parse_rule).transpose()?;
    let mix = mix(&context.recipe);
    let mut sums: BTreeMap<String, (f64, f64)> = BTreeMap::new();
    for sample in &answers.samples {
        let label = sample.label.as_str();
        if measure.label.as_deref().is_some_and(|wanted| wanted != label) {
            continue;
        }
        let score = |component: &str| match answers.scores.get(&sample.id) {
            Some(scores) => scores
                .scores
                .get(component)
                .cloned()
                .unwrap_or_else(|| Err(format!("component {component:?} was not scored"))),
            None => Err("the reward worker returned none".to_owned()),
        };
        let value = match (&rule, &measure.component) {
            (Some(rule), _) => rule_score(rule, sample)?,
            (None, Some(component)) => score(component)?,
            (None, None) => mix.reward(label, score).map_err(|e| e.to_string())?.total,
        };
        let sum = sums.entry(sample.prompt_id.to_string()).or_default();
        *sum = (sum.0 + value, sum.1 + 1.0);
    }
    Ok(sums.into_iter().map(|(prompt, (sum, n))| (prompt, sum / n)).collect())
}

fn rule_score(rule: &Rule, sample: &PlainSample) -> Result<f64, String> {
    rule.score(&sample.answer()).map_err(|error| format!("sample {}: {error}", sample.id))
}

/// Means before and after, and the standard error of the change paired by prompt.
fn compare(
    measure: &Measure,
    before: &BTreeMap<String, f64>,
    after: &BTreeMap<String, f64>,
) -> Result<MeasureResult, String> {
    if !before.keys().eq(after.keys()) {
        return Err(format!("{} prompts before, {} after", before.len(), after.len()));
    }
    let (old, new): (Vec<f64>, Vec<f64>) =
        (before.values().copied().collect(), after.values().copied().collect());
    let mean = |values: &[f64]| Summary::of(values).map(|s| s.mean).map_err(|e| e.to_string());
    let change = paired_difference(&old, &new).map_err(|e| e.to_string())?;
    Ok(MeasureResult {
        name: measure.name.clone(),
        label: measure.label.clone(),
        before: mean(&old)?,
        after: mean(&new)?,
        // A lone prompt says nothing of its spread; JSON has no infinity.
        se: if change.standard_error.is_finite() { change.standard_error } else { 0.0 },
        n: change.n,
        lower_is_better: measure.lower_is_better,
    })
}

/// The first answers of each label, side by side.
fn shown(most: usize, prompts: &[Prompt], before: &Answers, after: &Answers) -> Vec<AnswerPair> {
    let first = |answers: &Answers, prompt: &Prompt| {
        let sample = answers.samples.iter().find(|s| s.prompt_id == prompt.id);
        sample.map(|s| s.response.clone()).unwrap_or_default()
    };
    choose(prompts, most)
        .iter()
        .filter(|_| most > 0)
        .map(|prompt| AnswerPair {
            label: prompt.label.to_string(),
            question: prompt.question().to_owned(),
            before: first(before, prompt),
            after: first(after, prompt),
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn measure() -> Measure {
        Measure {
            name: "m".into(),
            label: None,
            component: None,
            rule: None,
            reward: true,
            lower_is_better: false,
        }
    }

    fn values(values: &[(&str, f64)]) -> BTreeMap<String, f64> {
        values.iter().map(|(k, v)| ((*k).to_owned(), *v)).collect()
    }

    #[test]
    fn the_standard_error_is_of_the_change_paired_by_prompt() {
        // Changes 1 and 3: mean 2, unbiased variance 2, se sqrt(2 / 2) = 1.
        let before = values(&[("a", 0.0), ("b", 10.0)]);
        let after = values(&[("a", 1.0), ("b", 13.0)]);
        let result = compare(&measure(), &before, &after).unwrap();
        assert_eq!((result.before, result.after, result.se, result.n), (5.0, 7.0, 1.0, 2));
    }

    #[test]
    fn other_prompts_before_than_after_are_an_error() {
        let error = compare(&measure(), &values(&[("a", 0.0)]), &values(&[("b", 1.0)]));
        assert!(error.is_err());
    }
}
