//! `reward_model`: a score head and its backbone learn the pairs.

use plumb_config::RewardModelStage;
use plumb_domain::Role;
use plumb_proto::actor::{PairScore, TextPair};
use rand::SeedableRng as _;
use rand::seq::SliceRandom as _;
use rand_chacha::ChaCha8Rng;

use super::label::Pairs;
use super::{Figures, Outputs, StageContext};
use crate::fleet::trainer::Trainer;
use crate::job::error::JobError;
use crate::ports::PhaseError;

/// Whole repeats of the stage after a lost rank: it is short and keeps no checkpoint.
const REPEATS: u32 = 2;

pub(super) async fn run(
    stage: &RewardModelStage,
    context: &StageContext,
    outputs: &mut Outputs,
) -> Result<Figures, JobError> {
    let pairs = outputs.pairs.get(&stage.pairs).ok_or_else(|| JobError::Stage {
        stage: stage.name.clone(),
        problem: format!("stage {} left no pairs", stage.pairs),
    })?;
    let folder = context.folder.model(&stage.name);
    let mut repeats = 0;
    let figures = loop {
        match train(stage, context, pairs, &outputs.model).await {
            Err(JobError::Phase(PhaseError::Lost { worker, cause, .. })) if repeats < REPEATS => {
                repeats += 1;
                context.log.restarted();
                let text = format!("{worker} lost ({cause}); stage {} from its start", stage.name);
                context.events.notice("warn", text);
                context.fleet.group(Role::RewardTrainer).await?.wait_ready().await?;
            }
            other => break other?,
        }
    };
    context.fleet.release(Role::RewardTrainer).await;
    outputs.artefacts.insert(stage.name.clone(), format!("models/{}", stage.name));
    let accuracy = figures.get("heldout_accuracy").copied();
    if accuracy.is_some_and(|a| a < stage.min_accuracy) {
        return Err(JobError::Stage {
            stage: stage.name.clone(),
            problem: format!(
                "held-out accuracy {:.3} is below min_accuracy {}; the model is in {}",
                accuracy.unwrap_or_default(),
                stage.min_accuracy,
                folder.display()
            ),
        });
    }
    Ok(figures)
}

async fn train(
    stage: &RewardModelStage,
    context: &StageContext,
    pairs: &Pairs,
    model: &std::path::Path,
) -> Result<Figures, JobError> {
    let recipe = &context.recipe;
    let group = context.fleet.group(Role::RewardTrainer).await?;
    let trainer = Trainer::load(group, recipe, stage, model.to_owned()).await?;
    let batches = batches(&pairs.train, stage, recipe.seed);
    let steps = batches.len() as u64;
    for (step, batch) in batches.iter().enumerate() {
        let step = step as u64;
        let start = std::time::Instant::now();
        let rate = stage.optimizer.learning_rate_at(step, steps);
        let figures = trainer.train(step, batch, rate, stage.regularization).await?;
        context.log.span(
            "reward_model",
            &format!("step {}", step + 1),
            start.elapsed().as_secs_f64(),
            true,
        );
        context.log.step(&stage.name, step + 1, &figures)?;
        context.events.step_finished(&stage.name, step + 1, steps, &figures);
    }
    let mut figures: Figures = [("steps".to_owned(), steps as f64)].into();
    if !pairs.heldout.is_empty() {
        let scores = trainer.score(steps, &pairs.heldout).await?;
        if scores.len() != pairs.heldout.len() {
            return Err(JobError::Stage {
                stage: stage.name.clone(),
                problem: format!(
                    "{} of {} held-out pairs were scored",
                    scores.len(),
                    pairs.heldout.len()
                ),
            });
        }
        let (accuracy, margin) = accuracy(&scores);
        figures.insert("heldout_accuracy".to_owned(), accuracy);
        figures.insert("heldout_margin".to_owned(), margin);
        figures.insert("heldout_pairs".to_owned(), scores.len() as f64);
    }
    let folder = context.folder.model(&stage.name);
    if let Some(parent) = folder.parent() {
        std::fs::create_dir_all(parent).map_err(|source| JobError::Io {
            what: "made",
            path: parent.to_owned(),
            source,
        })?;
    }
    let bytes = trainer.export(&folder, recipe.model.dtype.as_str()).await?;
    figures.insert("bytes".to_owned(), bytes as f64);
    Ok(figures)
}

/// Every epoch's pairs, shuffled by seed, cut into steps; a last short step stays.
fn batches(pairs: &[TextPair], stage: &RewardModelStage, seed: u64) -> Vec<Vec<TextPair>> {
    let mut batches = Vec::new();
    for epoch in 0..stage.epochs {
        let mut order = pairs.to_vec();
        let mut random = ChaCha8Rng::seed_from_u64(seed);
        random.set_stream(u64::from(epoch));
        order.shuffle(&mut random);
        batches.extend(order.chunks(stage.pairs_per_step).map(<[TextPair]>::to_vec));
    }
    batches
}

/// Share of pairs whose better answer scores higher, and the mean difference.
fn accuracy(scores: &[PairScore]) -> (f64, f64) {
    let n = scores.len() as f64;
    let right = scores.iter().filter(|s| s.better > s.worse).count() as f64;
    let margin = scores.iter().map(|s| s.better - s.worse).sum::<f64>();
    (right / n, margin / n)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn accuracy_counts_strictly_higher_scores() {
        let score = |better, worse| PairScore { id: String::new(), better, worse };
        let (accuracy, margin) = accuracy(&[score(1.0, 0.0), score(0.5, 0.5), score(0.0, 2.0)]);
        assert!((accuracy - 1.0 / 3.0).abs() < 1e-12);
        assert!((margin + 1.0 / 3.0).abs() < 1e-12);
    }

    #[test]
    fn every_epoch_has_every_pair_once_in_another_order() {
        let stage: RewardModelStage = toml::from_str(
            "name='rm'\npairs='l'\nepochs=2\npairs_per_step=3\noptimizer={learning_rate=1e-5}",
        )
        .unwrap();
        let pair = |i: u32| TextPair { id: i.to_string(), better_ids: vec![i], worse_ids: vec![i] };
        let pairs: Vec<TextPair> = (0..7).map(pair).collect();
        let batches = batches(&pairs, &stage, 1);
        assert_eq!(batches.iter().map(Vec::len).collect::<Vec<_>>(), [3, 3, 1, 3, 3, 1]);
        let epoch = |e: usize| -> Vec<u32> {
            batches[e * 3..e * 3 + 3].iter().flatten().map(|p| p.better_ids[0]).collect()
        };
        let mut sorted = epoch(0);
        sorted.sort_unstable();
        assert_eq!(sorted, (0..7).collect::<Vec<_>>());
        assert_ne!(epoch(0), epoch(1));
    }
}
