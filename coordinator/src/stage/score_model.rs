//! `reward_model` and `cost_model`: a score head and its backbone learn pairs.

use plumb_config::{
    CostModelStage, LoraConfig, OptimizerConfig, RewardModelStage, ScoreHeadConfig,
};
use plumb_domain::Role;
use plumb_proto::actor::PairScore;

use super::course::{Course, Learner, require_accuracy, run as run_course, with_repeats};
use super::rows::{cost_needs, reward_needs};
use super::training_data::{EncodedPair, PairSource, Split, encoded_pairs};
use super::{Figures, Outputs, StageContext, export_model};
use crate::fleet::trainer::{ScoreLoss, Trainer, TrainerSettings};
use crate::job::error::JobError;
use crate::ports::Answer;

/// What the two stages have in common.
struct ScoreModel<'a> {
    source: PairSource<'a>,
    kind: &'static str,
    head: &'a ScoreHeadConfig,
    loss: ScoreLoss,
    epochs: u32,
    pairs_per_step: usize,
    eval_every_steps: u64,
    frozen_layers: u32,
    optimizer: &'a OptimizerConfig,
    lora: Option<&'a LoraConfig>,
    min_accuracy: f64,
}

pub(super) async fn run_reward(
    stage: &RewardModelStage,
    context: &StageContext,
    outputs: &mut Outputs,
) -> Result<Figures, JobError> {
    let model = ScoreModel {
        source: PairSource {
            stage: &stage.name,
            pairs: stage.pairs.as_deref(),
            train: &stage.train,
            heldout: &stage.heldout,
            max_tokens: stage.max_tokens,
            needs: reward_needs(stage.preferred_by),
            pops: false,
        },
        kind: "reward_model",
        head: &stage.head,
        loss: ScoreLoss {
            cost: false,
            sign_terms: false,
            token_wise: stage.token_wise,
            regularization: stage.regularization,
        },
        epochs: stage.epochs,
        pairs_per_step: stage.pairs_per_step,
        eval_every_steps: stage.eval_every_steps,
        frozen_layers: stage.frozen_layers,
        optimizer: &stage.optimizer,
        lora: stage.lora.as_ref(),
        min_accuracy: stage.min_accuracy,
    };
    run(&model, context, outputs).await
}

pub(super) async fn run_cost(
    stage: &CostModelStage,
    context: &StageContext,
    outputs: &mut Outputs,
) -> Result<Figures, JobError> {
    let model = ScoreModel {
        source: PairSource {
            stage: &stage.name,
            pairs: stage.pairs.as_deref(),
            train: &stage.train,
            heldout: &stage.heldout,
            max_tokens: stage.max_tokens,
            needs: cost_needs(stage.sign_terms),
            pops: false,
        },
        kind: "cost_model",
        head: &stage.head,
        loss: ScoreLoss {
            cost: true,
            sign_terms: stage.sign_terms,
            token_wise: stage.token_wise,
            regularization: stage.regularization,
        },
        epochs: stage.epochs,
        pairs_per_step: stage.pairs_per_step,
        eval_every_steps: stage.eval_every_steps,
        frozen_layers: stage.frozen_layers,
        optimizer: &stage.optimizer,
        lora: stage.lora.as_ref(),
        min_accuracy: stage.min_accuracy,
    };
    run(&model, context, outputs).await
}

async fn run(
    model: &ScoreModel<'_>,
    context: &StageContext,
    outputs: &mut Outputs,
) -> Result<Figures, JobError> {
    let name = model.source.stage;
    let attempt = || train(model, context, outputs);
    let figures = with_repeats(context, name, Role::RewardTrainer, attempt).await?;
    outputs.artefacts.insert(name.to_owned(), format!("models/{name}"));
    require_accuracy(context, name, &figures, model.min_accuracy)?;
    Ok(figures)
}

async fn train(
    model: &ScoreModel<'_>,
    context: &StageContext,
    outputs: &Outputs,
) -> Result<Figures, JobError> {
    let group = context.fleet.group(Role::RewardTrainer).await?;
    let settings = TrainerSettings {
        model: outputs.model.clone(),
        head: Some(model.head),
        frozen_layers: model.frozen_layers,
        optimizer: model.optimizer,
        lora: model.lora,
    };
    let trainer = Trainer::load(group, &context.recipe, settings).await?;
    let data = encoded_pairs(context, &trainer, &model.source, outputs).await?;
    let course = Course {
        stage: model.source.stage,
        kind: model.kind,
        rows: data.train.len(),
        rows_per_step: model.pairs_per_step,
        epochs: model.epochs,
        eval_every_steps: model.eval_every_steps,
        optimizer: model.optimizer,
    };
    let learner = Scores { trainer: &trainer, data: &data, loss: model.loss };
    let mut figures = run_course(&course, &learner, &trainer, context).await?;
    figures.extend(export_model(context, &trainer, model.source.stage, model.lora).await?);
    figures.extend(data.figures);
    Ok(figures)
}

/// A score head on pairs.
struct Scores<'a> {
    trainer: &'a Trainer,
    data: &'a Split<EncodedPair>,
    loss: ScoreLoss,
}

impl Learner for Scores<'_> {
    fn train<'a>(
        &'a self,
        step: u64,
        rows: &'a [usize],
        learning_rate: f64,
    ) -> Answer<'a, Figures> {
        let pairs: Vec<_> = rows.iter().map(|&row| self.data.train[row].texts()).collect();
        let loss = self.loss;
        Box::pin(async move { self.trainer.train_pairs(step, &pairs, loss, learning_rate).await })
    }

    fn finish(&self) -> Answer<'_, ()> {
        Box::pin(self.trainer.adopt_average())
    }

    fn measure(&self, steps: u64) -> Answer<'_, Figures> {
        Box::pin(async move {
            let heldout = &self.data.heldout;
            if heldout.is_empty() {
                return Ok(Figures::new());
            }
            let pairs: Vec<_> = heldout.iter().map(EncodedPair::texts).collect();
            let scores = self.trainer.score_pairs(steps, &pairs).await?;
            Ok(measured(&scores, heldout, self.loss))
        })
    }
}

/// `accuracy` (share of pairs ranked right), `margin` (mean difference, positive where they are),
/// `pairs`; with sign terms `sign_accuracy` (share of answers whose cost has the right sign).
fn measured(scores: &[PairScore], pairs: &[EncodedPair], loss: ScoreLoss) -> Figures {
    let n = scores.len() as f64;
    let margin = |s: &PairScore| if loss.cost { s.worse - s.better } else { s.better - s.worse };
    let right = scores.iter().filter(|s| margin(s) > 0.0).count() as f64;
    let mut figures: Figures = [
        ("accuracy".to_owned(), right / n),
        ("margin".to_owned(), scores.iter().map(margin).sum::<f64>() / n),
        ("pairs".to_owned(), n),
    ]
    .into();
    if loss.sign_terms {
        // Ranks return their shares one after the other.
        let safe = |id: &str| pairs.iter().find(|p| p.answers.id == id).and_then(|p| p.safe);
        let sign = |cost: f64, safe: bool| usize::from(if safe { cost < 0.0 } else { cost > 0.0 });
        let signs = scores.iter().filter_map(|score| {
            let [better, worse] = safe(&score.id)?;
            Some(sign(score.better, better) + sign(score.worse, worse))
        });
        figures.insert("sign_accuracy".to_owned(), signs.sum::<usize>() as f64 / (2.0 * n));
    }
    figures
}

#[cfg(test)]
mod tests {
    use super::*;
    use plumb_proto::actor::AnswerPair;

    fn score(id: &str, better: f64, worse: f64) -> PairScore {
        PairScore { id: id.to_owned(), better, worse }
    }

    const REWARD: ScoreLoss =
        ScoreLoss { cost: false, sign_terms: false, token_wise: false, regularization: 0.0 };

    #[test]
    fn accuracy_counts_strictly_higher_scores() {
        let scores = [score("a", 1.0, 0.0), score("b", 0.5, 0.5), score("c", 0.0, 2.0)];
        let figures = measured(&scores, &[], REWARD);
        assert!((figures["accuracy"] - 1.0 / 3.0).abs() < 1e-12);
        assert!((figures["margin"] + 1.0 / 3.0).abs() < 1e-12);
        assert!(!figures.contains_key("sign_accuracy"));
    }

    #[test]
    fn a_cost_is_right_the_other_way_round_and_has_a_sign() {
        let pair = |id: &str, safe| EncodedPair {
            answers: AnswerPair { id: id.to_owned(), ..AnswerPair::default() },
            safe: Some(safe),
        };
        let pairs = [pair("a", [true, false]), pair("b", [false, false])];
        // Of four answers three have the right sign; both pairs are ranked right.
        let scores = [score("b", -0.5, 0.5), score("a", -1.0, 1.0)];
        let loss = ScoreLoss { cost: true, sign_terms: true, ..REWARD };
        let figures = measured(&scores, &pairs, loss);
        assert_eq!((figures["accuracy"], figures["margin"]), (1.0, 1.5));
        assert_eq!(figures["sign_accuracy"], 0.75);
    }
}
