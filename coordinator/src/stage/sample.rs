//! `sample`: answers of the untrained model.

use plumb_config::SampleStage;
use plumb_domain::{Prompt, Role, StepId};
use plumb_telemetry::JsonLines;
use rand::SeedableRng as _;
use rand::seq::SliceRandom as _;
use rand_chacha::ChaCha8Rng;

use super::meter::Meter;
use super::sample_log::{SampleLine, fetch};
use super::{Figures, Outputs, StageContext};
use crate::fleet::rollout::{GenerateSettings, RolloutFleet};
use crate::job::error::JobError;
use crate::ports::{Phase, PhaseError, PhaseKey};

pub(super) async fn run(
    stage: &SampleStage,
    context: &StageContext,
    outputs: &mut Outputs,
) -> Result<Figures, JobError> {
    let recipe = &context.recipe;
    let prompts = choose(stage, &outputs.train, recipe.seed);
    if prompts.is_empty() {
        return Err(JobError::Stage {
            stage: stage.name.clone(),
            problem: format!("no training prompt has a label of {:?}", stage.labels),
        });
    }
    let group = context.fleet.group(Role::Rollout).await?;
    let settings = GenerateSettings {
        sampling: stage.sampling.clone().unwrap_or_else(|| recipe.sampling.clone()),
        samples_per_prompt: stage.samples_per_prompt,
        seed: recipe.seed,
        phase: "sample",
    };
    let mut attempts = 0;
    let (generation, samples) = loop {
        let attempt = group.fresh_attempt();
        let meter = Meter::new(&context.events, &stage.name, prompts.len());
        let key = PhaseKey { step: StepId(0), phase: Phase::Generate, attempt };
        let run = async {
            let rollout = RolloutFleet::load(
                group.clone(),
                recipe.clone(),
                outputs.model.clone(),
                settings.clone(),
            )
            .await?;
            let generation = rollout.answer(key, &prompts, &|p| meter.heard(p)).await?;
            let samples = fetch(context, &generation).await?;
            Ok::<_, JobError>((generation, samples))
        };
        match run.await {
            Err(JobError::Phase(PhaseError::Lost { worker, cause, .. })) if attempts < 3 => {
                attempts += 1;
                context.events.notice("warn", format!("{worker} lost ({cause}); sampling again"));
                context.log.restarted();
                group.wait_ready().await?;
            }
            other => break other?,
        }
    };
    let mut file = JsonLines::create(context.folder.samples(&stage.name))?;
    for sample in &samples {
        file.append(&SampleLine::new(sample))?;
    }
    let count = samples.len() as f64;
    let truncated = samples.iter().filter(|s| s.finish == "length").count() as f64;
    let figures = [
        ("prompts".to_owned(), prompts.len() as f64),
        ("samples".to_owned(), count),
        ("response_tokens".to_owned(), generation.response_tokens() as f64),
        ("truncated".to_owned(), truncated / count.max(1.0)),
    ];
    outputs.samples.insert(stage.name.clone(), samples);
    Ok(figures.into())
}

/// The stage's prompts: of its labels, shuffled by seed, cut to its most.
fn choose(stage: &SampleStage, prompts: &[Prompt], seed: u64) -> Vec<Prompt> {
    let wanted =
        |p: &&Prompt| stage.labels.is_empty() || stage.labels.iter().any(|l| l == p.label.as_str());
    let mut chosen: Vec<Prompt> = prompts.iter().filter(wanted).cloned().collect();
    chosen.shuffle(&mut ChaCha8Rng::seed_from_u64(seed));
    if stage.max_prompts > 0 {
        chosen.truncate(stage.max_prompts);
    }
    chosen
}
